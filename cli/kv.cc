// `tandem kv`: finds the sub-command; and what those need that run a model.
#include "cli/kv.h"

#include <fstream>
#include <string_view>
#include <thread>

#include "absl/strings/str_cat.h"
#include "base/files.h"
#include "base/log.h"
#include "base/status.h"
#include "cli/interrupt.h"

namespace tandem::cli {
namespace {

struct SubCommand {
  std::string_view name, summary;
  int (*run)(std::span<char* const> args, const Terminal& terminal);
};

constexpr SubCommand kSubCommands[] = {
    {"ls", "List the chunks that workers and stores hold.", RunKvLs},
    {"stat", "Show how full and useful stores are, or what of a prompt is cached.", RunKvStat},
    {"rm", "Drop chunks.", RunKvRm},
    {"pin", "Keep chunks from eviction.", RunKvPin},
    {"profile", "Measure a model and write its profile for the KV codec.", RunKvProfile},
    {"eval", "Measure what each level saves and what it costs the model.", RunKvEval},
    {"dump", "Write K and V of a text as NumPy arrays.", RunKvDump},
};

std::string Help() {
  std::string text =
      "tandem kv looks into the stores of a running cluster (ls, stat, rm, pin), or runs a model "
      "on "
      "a\ntext itself and looks at its KV cache (profile, eval, dump).\n\n"
      "Usage: tandem kv COMMAND [FLAG]...\n\n";
  for (const SubCommand& command : kSubCommands) {
    absl::StrAppend(&text, "  ", View(command.name), std::string(9 - command.name.size(), ' '),
                    View(command.summary), "\n");
  }
  return text + "\n'tandem kv COMMAND --help' lists the command's flags.\n";
}

}  // namespace

KvInput::KvInput() { engine.threads = std::max(1u, std::thread::hardware_concurrency()); }

std::vector<Option> KvInput::Options() {
  return {{"model", "FILE", "The GGUF model.",
           ReadText([this](std::string v) { model_path = std::move(v); })},
          {"text", "FILE", "The text, UTF-8.",
           ReadText([this](std::string v) { text_path = std::move(v); })},
          {"k-type", "TYPE", "How the cache stores K: f16, bf16, f32, q8_0, ... Default f16.",
           ReadText([this](std::string v) { engine.k_type = std::move(v); })},
          {"v-type", "TYPE", "How it stores V. Default f16.",
           ReadText([this](std::string v) { engine.v_type = std::move(v); })},
          {"no-flash-attention", "", "Compute attention without it.",
           ReadSwitch([this] { engine.flash_attention = false; })},
          {"threads", "N", "Compute threads. Default: all cores.",
           ReadUint32([this](uint32_t v) { engine.threads = v; })},
          {"gpu-layers", "N", "Layers to put on a GPU; -1: all. Default -1.",
           ReadInt32([this](int32_t v) { gpu_layers = v; })}};
}

absl::StatusOr<std::shared_ptr<const workers::Model>> LoadModel(const KvInput& input) {
  if (input.model_path.empty()) return absl::InvalidArgumentError("--model is missing");
  return workers::Model::Load({.path = input.model_path, .gpu_layers = input.gpu_layers});
}

absl::StatusOr<std::string> LoadText(const KvInput& input) {
  if (input.text_path.empty()) return absl::InvalidArgumentError("--text is missing");
  const absl::StatusOr<std::string> text = ReadWholeFile(input.text_path);
  if (text.ok()) return text;
  return absl::InvalidArgumentError(
      absl::StrCat("--text is '", input.text_path, "': cannot be read"));
}

std::vector<Option> ReplayFlags(workers::ReplayOptions& replay) {
  workers::ReplayOptions* const r = &replay;
  return {{"context", "N", "Tokens of each context, BOS included. Default 1536.",
           ReadUint32([r](uint32_t v) { r->context_tokens = v; })},
          {"continuation", "N", "Tokens after it by which the loss is measured. Default 256.",
           ReadUint32([r](uint32_t v) { r->continuation_tokens = v; })},
          {"windows", "N", "Contexts, evenly spread over the text. Default 24.",
           ReadUint32([r](uint32_t v) { r->windows = v; })},
          {"chunk", "N", "Tokens of a chunk. Default 256.",
           ReadUint32([r](uint32_t v) { r->chunk_tokens = v; })}};
}

std::string DefaultProfilePath(const std::string& model_path) {
  constexpr std::string_view kModelSuffix = ".gguf";
  const bool named_so = model_path.ends_with(kModelSuffix);
  return model_path.substr(0, model_path.size() - (named_so ? kModelSuffix.size() : 0)) +
         ".kvprofile";
}

absl::StatusOr<std::shared_ptr<const kvstore::codec::Profile>> LoadProfile(
    const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file.is_open()) return absl::NotFoundError(absl::StrCat("cannot open ", path));
  const std::vector<uint8_t> bytes{std::istreambuf_iterator<char>(file), {}};
  absl::StatusOr<kvstore::codec::Profile> profile = kvstore::codec::ParseProfile(bytes);
  if (!profile.ok()) return Annotate(profile.status(), path);
  return std::make_shared<const kvstore::codec::Profile>(*std::move(profile));
}

int RunFlagsOnly(const Command& command, std::span<char* const> args, const Terminal& terminal,
                 const std::function<absl::Status(const std::atomic<bool>& stop)>& work,
                 std::string_view when_interrupted) {
  std::vector<std::string> operands;
  if (const auto exit_code = ReadCommandLine(command, args, terminal, operands)) return *exit_code;
  if (!operands.empty()) {
    return ReportUsage(
        absl::InvalidArgumentError(absl::StrCat("unexpected argument '", operands[0], "'")),
        terminal);
  }
  std::atomic<bool> stop = false;
  const Interrupt interrupt([&stop] { stop = true; });
  const absl::Status status = work(stop);
  if (interrupt.interrupted()) {
    terminal.err << when_interrupted;
    return kInterrupted;
  }
  if (status.ok()) return kOk;
  const int failed = ReportFailure(status, terminal);
  return absl::IsInvalidArgument(status) ? kUsage : failed;
}

int RunKv(std::span<char* const> args, const Terminal& terminal) {
  // Cannot fail with these words. The engine logs, and stdout is for results.
  (void)InitLog("warn", "text");
  const std::string_view name = args.empty() ? "" : args[0];
  for (const SubCommand& command : kSubCommands) {
    if (name == command.name) return command.run(args.subspan(1), terminal);
  }
  if (name == "--help" || name == "-h" || name == "help") {
    terminal.out << Help();
    return kOk;
  }
  terminal.err << (name.empty() ? "tandem: kv: which command?"
                                : absl::StrCat("tandem: unknown command 'kv ", View(name), "'"))
               << "\n\n"
               << Help();
  return kUsage;
}

}  // namespace tandem::cli
