// `tandem generate`: streams a completion to stdout.

#include <chrono>
#include <fstream>
#include <iostream>
#include <iterator>
#include <optional>
#include <sstream>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/status.h"
#include "cli/client.h"
#include "cli/interrupt.h"
#include "server/config_values.h"
#include "tandem/v1/inference.grpc.pb.h"

namespace tandem::cli {
namespace {

struct Settings {
  std::string router;
  v1::GenerateRequest request;
  std::optional<std::string> file;
  absl::Duration timeout = absl::InfiniteDuration();
  bool json = false;
  bool stats = false;
};

void AddSamplingOptions(v1::SamplingParams& sampling, std::vector<Option>& options) {
  v1::SamplingParams* const s = &sampling;
  options.insert(
      options.end(),
      {{"temperature", "T", "0: always the most likely token. Default 1.",
        ReadDouble([s](double v) { s->set_temperature(v); })},
       {"top-k", "K", "Keep the K most likely tokens; 0: all. Default 0.",
        ReadInt32([s](int32_t v) { s->set_top_k(v); })},
       {"top-p", "P", "Keep the smallest set with this total probability. Default 1.",
        ReadDouble([s](double v) { s->set_top_p(v); })},
       {"min-p", "P", "Drop tokens below this share of the most likely one's probability.",
        ReadDouble([s](double v) { s->set_min_p(v); })},
       {"repetition-penalty", "X", "Divide the logits of recent tokens. Default 1.",
        ReadDouble([s](double v) { s->set_repetition_penalty(v); })},
       {"frequency-penalty", "X", "Subtract from a recent token's logit per occurrence.",
        ReadDouble([s](double v) { s->set_frequency_penalty(v); })},
       {"presence-penalty", "X", "Subtract once from every recent token's logit.",
        ReadDouble([s](double v) { s->set_presence_penalty(v); })},
       {"penalty-last-n", "N", "How many tokens are recent; -1: all. Default 64.",
        ReadInt32([s](int32_t v) { s->set_penalty_last_n(v); })},
       {"seed", "N", "The same seed draws the same random numbers. Default: random.",
        ReadUint64([s](uint64_t v) { s->set_seed(v); })},
       {"ignore-eos", "", "Go on after an end-of-sequence token.",
        ReadSwitch([s] { s->set_ignore_eos(true); })},
       {"stop-token", "ID", "End at this token. May be repeated.",
        ReadInt32([s](int32_t v) { s->add_stop_token_ids(v); })}});
}

Command MakeCommand(Settings& settings) {
  Settings* const s = &settings;
  v1::GenerateRequest* const r = &settings.request;
  Command command{"generate",
                  "PROMPT",
                  "Continues PROMPT, and writes the text as it comes. Ctrl-C cancels.",
                  {RouterOption(s->router),
                   {"max-tokens", "N", "Most tokens to generate. Default: what the context holds.",
                    ReadUint32([r](uint32_t v) { r->set_max_tokens(v); })},
                   {"stop", "TEXT", "End before this text. May be repeated.",
                    ReadText([r](std::string v) { r->add_stop(std::move(v)); })},
                   {"file", "FILE", "Read the prompt from a file, '-' for stdin.",
                    ReadText([s](std::string v) { s->file = std::move(v); })}}};
  AddSamplingOptions(*r->mutable_sampling(), command.options);
  command.options.insert(
      command.options.end(),
      {{"timeout", "DURATION", "Give up after so long, e.g. 30s. Default: never.",
        [s](const std::string& text) -> absl::Status {
          ASSIGN_OR_RETURN(s->timeout, server::ParseDuration(text));
          return absl::OkStatus();
        }},
       {"tenant", "NAME", "Whose request this is. Default 'default'.",
        ReadText([r](std::string v) { r->set_tenant(std::move(v)); })},
       {"model", "NAME", "Default: the model that is served.",
        ReadText([r](std::string v) { r->set_model(std::move(v)); })},
       {"request-id", "ID", "For the logs. Default: the router makes one up.",
        ReadText([r](std::string v) { r->set_request_id(std::move(v)); })},
       {"json", "", "Write every message as a line of JSON instead of the text.",
        ReadSwitch([s] { s->json = true; })},
       {"stats", "", "Write statistics to stderr; the default where that is a terminal.",
        ReadSwitch([s] { s->stats = true; })}});
  return command;
}

absl::StatusOr<std::string> ReadPrompt(const std::string& path) {
  std::ifstream file;
  if (path != "-") file.open(path, std::ios::binary);
  std::istream& in = path == "-" ? std::cin : file;
  std::ostringstream text;
  if (in.good() && in.peek() != std::istream::traits_type::eof()) text << in.rdbuf();
  if (in.bad() || (path != "-" && !file.is_open()) || text.bad()) {
    return absl::InvalidArgumentError(absl::StrCat("--file is '", path, "': cannot be read"));
  }
  return text.str();
}

absl::Status SetPrompt(const std::vector<std::string>& operands, Settings& settings) {
  if (settings.file && operands.empty()) {
    ASSIGN_OR_RETURN(*settings.request.mutable_prompt(), ReadPrompt(*settings.file));
    return absl::OkStatus();
  }
  if (operands.size() != 1 || settings.file) {
    return absl::InvalidArgumentError(
        absl::StrCat("generate takes one prompt, in quotes or by --file; there are ",
                     operands.size() + (settings.file ? 1 : 0), "; see tandem generate --help"));
  }
  settings.request.set_prompt(operands[0]);
  return absl::OkStatus();
}

/// "engine 512, memory 1024 (q1)": where cached tokens came from; "" when there are none.
std::string CacheOrigins(const v1::PromptCache& cache) {
  std::vector<std::string> parts;
  const auto add = [&](const char* name, uint32_t n) {
    if (n > 0) parts.push_back(absl::StrCat(name, " ", n));
  };
  add("engine", cache.engine_tokens());
  add("memory", cache.memory_tokens());
  add("disk", cache.disk_tokens());
  add("redis", cache.redis_tokens());
  add("peer", cache.peer_tokens());
  return parts.empty() ? "" : absl::StrCat(absl::StrJoin(parts, ", "), " (", cache.level(), ")");
}

void WriteStats(const v1::GenerateResponse& last, std::ostream& err) {
  const v1::Usage& usage = last.usage();
  const v1::Timings& t = last.timings();
  err << absl::StrFormat("tokens    %d prompt (%d cached), %d generated; ended by %s\n",
                         usage.prompt_tokens(), usage.cached_tokens(), usage.generated_tokens(),
                         last.finish_reason() == v1::FINISH_REASON_STOP ? "stop" : "length")
      << absl::StrFormat("latency   TTFT %.1f ms, TPOT %.2f ms, total %.1f ms\n", t.ttft_s() * 1e3,
                         t.tpot_s() * 1e3, t.total_s() * 1e3)
      << absl::StrFormat("prefill   %s: queued %.1f ms, computed %.1f ms\n", t.prefill_worker(),
                         t.prefill_queue_s() * 1e3, t.prefill_s() * 1e3);
  if (const std::string origins = CacheOrigins(last.prompt_cache()); !origins.empty()) {
    err << absl::StrFormat("cache     %s; spared %.1f ms\n", origins,
                           last.prompt_cache().saved_s() * 1e3);
  }
  if (t.decode_worker().empty()) return;
  err << absl::StrFormat("handoff   %d bytes in %.1f ms\n", t.handoff_bytes(), t.handoff_s() * 1e3)
      << absl::StrFormat("decode    %s: queued %.1f ms, computed %.1f ms\n", t.decode_worker(),
                         t.decode_queue_s() * 1e3, t.decode_s() * 1e3);
}

/// Writes the stream's messages as they come; `last` is the final one.
void WriteStream(grpc::ClientReader<v1::GenerateResponse>& reader, const Settings& settings,
                 const Terminal& terminal, v1::GenerateResponse& last) {
  bool line_open = false;
  v1::GenerateResponse response;
  while (reader.Read(&response)) {
    if (settings.json) {
      WriteJson(response, /*with_defaults=*/false, terminal.out);
    } else if (!response.text().empty()) {
      terminal.out << response.text() << std::flush;
      line_open = response.text().back() != '\n';
    }
    last.Swap(&response);
  }
  if (line_open && terminal.out_is_terminal) terminal.out << "\n" << std::flush;
}

}  // namespace

int RunGenerate(std::span<char* const> args, const Terminal& terminal) {
  Settings settings;
  settings.router = DefaultRouter(terminal);
  settings.stats = terminal.err_is_terminal;
  const Command command = MakeCommand(settings);
  std::vector<std::string> operands;
  if (const auto exit_code = ReadCommandLine(command, args, terminal, operands)) return *exit_code;
  if (const absl::Status status = SetPrompt(operands, settings); !status.ok()) {
    return ReportUsage(status, terminal);
  }

  const auto channel = Connect(settings.router);
  const auto stub = v1::InferenceService::NewStub(channel);
  grpc::ClientContext context;
  if (settings.timeout != absl::InfiniteDuration()) {
    context.set_deadline(absl::ToChronoTime(absl::Now() + settings.timeout));
  }
  Interrupt interrupt([&context] { context.TryCancel(); });
  const auto reader = stub->Generate(&context, settings.request);
  v1::GenerateResponse last;
  WriteStream(*reader, settings, terminal, last);
  const grpc::Status status = reader->Finish();
  if (interrupt.interrupted()) return kInterrupted;
  if (!status.ok()) return ReportError(status, settings.router, *channel, context, terminal);
  if (settings.stats) WriteStats(last, terminal.err);
  return kOk;
}

}  // namespace tandem::cli
