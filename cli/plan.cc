// `tandem plan`: finds the sub-command.
#include "cli/plan.h"

#include <string>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace tandem::cli {
namespace {

constexpr char kHelp[] = R"(tandem plan simulates how placements serve a workload.

Usage: tandem plan COMMAND [FLAG]...

  search     Find the best phase for each node of a cluster, running or described by a file.
  cluster    Save what a running router knows of its workers and links, for a search.
  workload   Save the requests that a running router has had lately, for a search.
  decisions  Show what a running router's planner has decided, and why.
  compat     Run cases of DistServe's simulator by its own rules, to be compared with it.

'tandem plan COMMAND --help' lists the command's flags.
)";

}  // namespace

int RunPlan(std::span<char* const> args, const Terminal& terminal) {
  const std::string_view name = args.empty() ? "" : args[0];
  if (name == "search") return RunPlanSearch(args.subspan(1), terminal);
  if (name == "cluster") return RunPlanCluster(args.subspan(1), terminal);
  if (name == "workload") return RunPlanWorkload(args.subspan(1), terminal);
  if (name == "decisions") return RunPlanDecisions(args.subspan(1), terminal);
  if (name == "compat") return RunPlanCompat(args.subspan(1), terminal);
  if (name == "--help" || name == "-h" || name == "help") {
    terminal.out << kHelp;
    return kOk;
  }
  terminal.err << (name.empty() ? "tandem: plan: which command?"
                                : absl::StrCat("tandem: unknown command 'plan ", View(name), "'"))
               << "\n\n"
               << kHelp;
  return kUsage;
}

}  // namespace tandem::cli
