// `tandem tokenize`: the token ids of a text, by the served model's vocabulary.
#include "base/status.h"
#include "cli/client.h"
#include "cli/interrupt.h"
#include "tandem/v1/inference.grpc.pb.h"

namespace tandem::cli {
namespace {

struct Settings {
  std::string router;
  v1::TokenizeRequest request;
  bool count = false;
};

Command MakeCommand(Settings& settings) {
  Settings* const s = &settings;
  return {"tokenize",
          "TEXT",
          "Writes the token ids of TEXT, as the served model reads it.",
          {RouterOption(s->router),
           {"no-special-tokens", "", "Leave out tokens that the model adds, such as BOS.",
            ReadSwitch([s] { s->request.set_no_special_tokens(true); })},
           {"count", "", "Write only how many they are.", ReadSwitch([s] { s->count = true; })},
           {"model", "NAME", "Default: the model that is served.",
            ReadText([s](std::string v) { s->request.set_model(std::move(v)); })}}};
}

}  // namespace

int RunTokenize(std::span<char* const> args, const Terminal& terminal) {
  Settings settings;
  settings.router = DefaultRouter(terminal);
  const Command command = MakeCommand(settings);
  std::vector<std::string> operands;
  if (const auto exit_code = ReadCommandLine(command, args, terminal, operands)) return *exit_code;
  if (operands.size() != 1) {
    return ReportUsage(absl::InvalidArgumentError("tokenize takes one text, in quotes; there are " +
                                                  std::to_string(operands.size())),
                       terminal);
  }
  settings.request.set_text(operands[0]);

  const auto channel = Connect(settings.router);
  grpc::ClientContext context;
  Interrupt interrupt([&context] { context.TryCancel(); });
  v1::TokenizeResponse response;
  const grpc::Status status =
      v1::InferenceService::NewStub(channel)->Tokenize(&context, settings.request, &response);
  if (interrupt.interrupted()) return kInterrupted;
  if (!status.ok()) return ReportError(status, settings.router, *channel, context, terminal);
  if (settings.count) {
    terminal.out << response.token_ids_size() << "\n";
    return kOk;
  }
  for (int i = 0; i < response.token_ids_size(); ++i) {
    terminal.out << (i == 0 ? "" : " ") << response.token_ids(i);
  }
  terminal.out << "\n";
  return kOk;
}

}  // namespace tandem::cli
