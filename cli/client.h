// What every sub-command needs to talk to a router: its address, a channel, and errors in words.
#pragma once

#include <google/protobuf/message.h>
#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include <functional>
#include <memory>
#include <optional>
#include <ostream>
#include <span>
#include <string>
#include <vector>

#include "cli/options.h"
#include "grpcpp/support/status.h"

namespace tandem::cli {

/// Where a sub-command writes and what surrounds it; main passes the process's own.
struct Terminal {
  std::ostream& out;
  std::ostream& err;
  bool out_is_terminal = false;
  bool err_is_terminal = false;
  std::function<const char*(const char*)> getenv;
};

/// Exit codes.
inline constexpr int kOk = 0, kFailed = 1, kUsage = 2, kInterrupted = 130;

/// --router's default: TANDEM_ROUTER, else 127.0.0.1:8470.
std::string DefaultRouter(const Terminal& terminal);

/// The --router flag, which puts its value into `address`. `address` must outlive it.
Option RouterOption(std::string& address);

/// Does not connect yet, and ignores HTTP proxies.
std::shared_ptr<grpc::Channel> Connect(const std::string& router);

/// The call's error, with a hint behind the message where there is one. `context`: the call's.
absl::Status WithHint(const grpc::Status& status, const std::string& router, grpc::Channel& channel,
                      const grpc::ClientContext& context);

/// Writes "tandem: CODE: message" to `terminal.err`. Returns kFailed.
int ReportFailure(const absl::Status& status, const Terminal& terminal);

/// Both of these.
int ReportError(const grpc::Status& status, const std::string& router, grpc::Channel& channel,
                const grpc::ClientContext& context, const Terminal& terminal);

/// Applies the flags and fills `operands`. Returns what to exit with instead of going on: after
/// --help, or after telling the fault of a command line.
std::optional<int> ReadCommandLine(const Command& command, std::span<char* const> args,
                                   const Terminal& terminal, std::vector<std::string>& operands);

/// Writes the message as one line of JSON, and flushes. `with_defaults`: fields that are zero or
/// empty, too.
void WriteJson(const google::protobuf::Message& message, bool with_defaults, std::ostream& out);

/// Writes the fault of a command line. Returns kUsage.
int ReportUsage(const absl::Status& status, const Terminal& terminal);

/// The sub-commands; `args` is what follows their name. They return the exit code.
int RunGenerate(std::span<char* const> args, const Terminal& terminal);
int RunExplain(std::span<char* const> args, const Terminal& terminal);
int RunPhase(std::span<char* const> args, const Terminal& terminal);
int RunStatus(std::span<char* const> args, const Terminal& terminal);
int RunTokenize(std::span<char* const> args, const Terminal& terminal);
int RunKv(std::span<char* const> args, const Terminal& terminal);
int RunPlan(std::span<char* const> args, const Terminal& terminal);

}  // namespace tandem::cli
