// `tandem`: the command-line client. Finds the sub-command and runs it.
#include <unistd.h>

#include <cstdlib>
#include <iostream>
#include <string_view>

#include "base/version.h"
#include "cli/client.h"
#include "cli/interrupt.h"

namespace {

constexpr char kHelp[] = R"(tandem talks to a Tandem router, and has tools for an operator.

Usage: tandem COMMAND [FLAG]...

  generate   Continue a prompt, and stream the text.
  status     Show the workers and their load.
  explain    Show why a request went where it went.
  phase      Tell a worker to prefill, to decode, or both.
  tokenize   Show the token ids of a text.
  kv         Look at a model's KV cache.
  plan       Simulate placements, and find the best one.

'tandem COMMAND --help' lists the command's flags; --version prints the version.
)";

}  // namespace

int main(int argc, char** argv) {
  using namespace tandem;
  cli::HoldSignals();
  const cli::Terminal terminal{.out = std::cout,
                               .err = std::cerr,
                               .out_is_terminal = isatty(STDOUT_FILENO) == 1,
                               .err_is_terminal = isatty(STDERR_FILENO) == 1,
                               .getenv = [](const char* name) { return std::getenv(name); }};
  const std::string_view command = argc < 2 ? "" : argv[1];
  const std::span<char* const> args(argv + std::min(argc, 2), argv + argc);
  if (command == "generate") return cli::RunGenerate(args, terminal);
  if (command == "status") return cli::RunStatus(args, terminal);
  if (command == "explain") return cli::RunExplain(args, terminal);
  if (command == "phase") return cli::RunPhase(args, terminal);
  if (command == "tokenize") return cli::RunTokenize(args, terminal);
  if (command == "kv") return cli::RunKv(args, terminal);
  if (command == "plan") return cli::RunPlan(args, terminal);
  if (command == "--version") {
    std::cout << "tandem " << kVersion << " (" << kCommit << ")\n";
    return cli::kOk;
  }
  if (command == "--help" || command == "-h" || command == "help") {
    std::cout << kHelp;
    return cli::kOk;
  }
  std::cerr << (command.empty() ? "tandem: which command?"
                                : "tandem: unknown command '" + std::string(command) + "'")
            << "\n\n"
            << kHelp;
  return cli::kUsage;
}
