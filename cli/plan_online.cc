// `tandem plan cluster`, `tandem plan workload` and `tandem plan decisions`: what a running router
// knows of its workers, what requests it has had, and what its planner has made of both.
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/files.h"
#include "base/status.h"
#include "cli/cluster_call.h"
#include "cli/kv.h"
#include "cli/phase.h"
#include "cli/plan.h"
#include "cli/running_cluster.h"
#include "cli/table.h"
#include "scheduler/planner/workload.h"

namespace tandem::cli {
namespace {

Option OutOption(std::string& out) {
  return {"out", "FILE", "Where to. Default: standard output.",
          ReadText([&out](std::string value) { out = std::move(value); })};
}

absl::Status WriteOut(const std::string& text, const std::string& path, const Terminal& terminal) {
  if (!path.empty()) return WriteWholeFile(path, text);
  terminal.out << text;
  return absl::OkStatus();
}

std::string Rate(double rps) { return rps > 0 ? absl::StrFormat("%.2f/s", rps) : "-"; }

Row DecisionRow(const v1::PlanDecision& decision) {
  const std::string changes =
      absl::StrJoin(decision.changes(), ", ", [](std::string* out, const v1::PhaseChange& change) {
        absl::StrAppend(out, change.worker(), ": ", PhaseName(change.from()), " → ",
                        PhaseName(change.to()));
      });
  return {absl::StrFormat("%.0f s ago", decision.age_s()),
          decision.outcome(),
          decision.trigger(),
          Rate(decision.rate_rps()),
          decision.present().empty() ? "-" : decision.present(),
          Rate(decision.present_rps()),
          decision.wanted().empty() ? "-" : decision.wanted(),
          Rate(decision.wanted_rps()),
          changes.empty() ? "-" : changes,
          decision.reason().empty() ? "-" : decision.reason()};
}

void Write(const v1::GetPlanResponse& plan, const std::string& router, const Terminal& terminal) {
  if (plan.decisions().empty()) {
    terminal.out << "nothing was decided yet\n";
  } else {
    std::vector<Row> rows = {{"WHEN", "OUTCOME", "TRIGGER", "RATE", "PRESENT", "GOODPUT", "WANTED",
                              "GOODPUT", "CHANGES", "REASON"}};
    for (const v1::PlanDecision& decision : plan.decisions()) {
      rows.push_back(DecisionRow(decision));
    }
    terminal.out << Table(rows);
  }
  terminal.out << "router " << router << ": planner " << plan.planner() << ", "
               << (plan.leader().empty()               ? "nobody decides"
                   : plan.leader() == plan.router_id() ? "this router decides"
                                                       : absl::StrCat(plan.leader(), " decides"))
               << ", goodput of the present phases " << Rate(plan.goodput_rps())
               << (plan.change_age_s() < 0
                       ? ", phases were not changed\n"
                       : absl::StrFormat(", phases changed %.0f s ago\n", plan.change_age_s()));
}

}  // namespace

int RunPlanCluster(std::span<char* const> args, const Terminal& terminal) {
  std::string router = DefaultRouter(terminal), out;
  const Command command = {"plan cluster",
                           "",
                           "Writes the workers that a router knows, their speed and the links "
                           "between them, as they have measured them, as the YAML that `tandem "
                           "plan search --cluster` reads.",
                           {RouterOption(router), OutOption(out)}};
  return RunFlagsOnly(command, args, terminal, [&](const std::atomic<bool>&) -> absl::Status {
    ASSIGN_OR_RETURN(const std::string yaml, RunningClusterYaml(router));
    return WriteOut(yaml, out, terminal);
  });
}

int RunPlanWorkload(std::span<char* const> args, const Terminal& terminal) {
  std::string router = DefaultRouter(terminal), out;
  const Command command = {
      "plan workload",
      "",
      "Writes the requests that a router has had lately, at most 4096 of the last ten minutes, as "
      "the CSV that `tandem plan search --workload` reads.",
      {RouterOption(router), OutOption(out)}};
  return RunFlagsOnly(command, args, terminal, [&](const std::atomic<bool>&) -> absl::Status {
    ASSIGN_OR_RETURN(const planner::Workload workload, RunningWorkload(router));
    RETURN_IF_ERROR(WriteOut(planner::WorkloadCsv(workload), out, terminal));
    const planner::WorkloadStats stats = planner::Describe(workload);
    terminal.err << absl::StrFormat(
        "%d requests, %.2f/s (deviation of the gaps %.2f of their mean), prompts of %.0f tokens, "
        "%.0f of them cached, answers of %.0f\n",
        workload.size(), stats.rate_rps, stats.gap_cv, stats.mean_prompt_tokens,
        stats.mean_cached_tokens, stats.mean_output_tokens);
    return absl::OkStatus();
  });
}

int RunPlanDecisions(std::span<char* const> args, const Terminal& terminal) {
  std::string router = DefaultRouter(terminal);
  bool json = false;
  const Command command = {
      "plan decisions",
      "",
      "Shows what a router's planner has decided lately, the oldest first: why it looked, what it "
      "compared, and what came of it.",
      {RouterOption(router),
       {"json", "", "Write JSON, one line.", ReadSwitch([&json] { json = true; })}}};
  return RunFlagsOnly(command, args, terminal, [&](const std::atomic<bool>&) -> absl::Status {
    v1::GetPlanResponse response;
    RETURN_IF_ERROR(
        CallCluster(router, v1::GetPlanRequest(), response, &v1::ClusterService::Stub::GetPlan));
    if (json) {
      WriteJson(response, /*with_defaults=*/true, terminal.out);
    } else {
      Write(response, router, terminal);
    }
    return absl::OkStatus();
  });
}

}  // namespace tandem::cli
