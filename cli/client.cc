#include "cli/client.h"

#include <google/protobuf/util/json_util.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "base/status.h"

namespace tandem::cli {
namespace {

/// How long the router asks us to wait, in words; "" when it does not say.
std::string RetryHint(const grpc::ClientContext& context) {
  const auto& trailers = context.GetServerTrailingMetadata();
  const auto found = trailers.find("grpc-retry-pushback-ms");
  int64_t milliseconds = 0;
  if (found == trailers.end() ||
      !absl::SimpleAtoi(absl::string_view(found->second.data(), found->second.size()),
                        &milliseconds)) {
    return "";
  }
  return absl::StrCat("try again in ", absl::FormatDuration(absl::Milliseconds(milliseconds)));
}

}  // namespace

std::string DefaultRouter(const Terminal& terminal) {
  const char* router = terminal.getenv("TANDEM_ROUTER");
  return router == nullptr || *router == '\0' ? "127.0.0.1:8470" : router;
}

Option RouterOption(std::string& address) {
  return {"router", "HOST:PORT", absl::StrCat("Default ", address, "; TANDEM_ROUTER sets another."),
          ReadText([&address](std::string text) { address = std::move(text); })};
}

std::shared_ptr<grpc::Channel> Connect(const std::string& router) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return grpc::CreateCustomChannel(router, grpc::InsecureChannelCredentials(), arguments);
}

absl::Status WithHint(const grpc::Status& status, const std::string& router, grpc::Channel& channel,
                      const grpc::ClientContext& context) {
  std::string hint = RetryHint(context);
  // UNAVAILABLE is also what a router answers that has no worker; the channel knows which it was.
  if (status.error_code() == grpc::StatusCode::UNAVAILABLE &&
      channel.GetState(false) != GRPC_CHANNEL_READY) {
    hint = absl::StrCat("is a router listening on ", router,
                        "? Start one with 'tandemd --model=FILE', or name another by --router or "
                        "TANDEM_ROUTER");
  }
  const absl::Status error = FromGrpc(status);
  return hint.empty()
             ? error
             : absl::Status(error.code(), absl::StrCat(error.message(), "\ntandem: hint: ", hint));
}

int ReportFailure(const absl::Status& status, const Terminal& terminal) {
  terminal.err << "tandem: " << absl::StatusCodeToString(status.code()) << ": " << status.message()
               << "\n";
  return kFailed;
}

int ReportError(const grpc::Status& status, const std::string& router, grpc::Channel& channel,
                const grpc::ClientContext& context, const Terminal& terminal) {
  return ReportFailure(WithHint(status, router, channel, context), terminal);
}

std::optional<int> ReadCommandLine(const Command& command, std::span<char* const> args,
                                   const Terminal& terminal, std::vector<std::string>& operands) {
  if (WantsHelp(args)) {
    terminal.out << HelpText(command);
    return kOk;
  }
  auto parsed = ParseOptions(command, args);
  if (!parsed.ok()) return ReportUsage(parsed.status(), terminal);
  operands = *std::move(parsed);
  return std::nullopt;
}

int ReportUsage(const absl::Status& status, const Terminal& terminal) {
  terminal.err << "tandem: " << status.message() << "\n";
  return kUsage;
}

void WriteJson(const google::protobuf::Message& message, bool with_defaults, std::ostream& out) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  options.always_print_primitive_fields = with_defaults;
  std::string line;
  // Cannot fail: the protocol has no Any.
  (void)google::protobuf::util::MessageToJsonString(message, &line, options);
  out << line << "\n" << std::flush;
}

}  // namespace tandem::cli
