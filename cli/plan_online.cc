// `tandem plan workload` and `tandem plan decisions`: what a running router has seen, and what its
// planner has made of it.
#include <algorithm>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/status.h"
#include "base/files.h"
#include "cli/cluster_call.h"
#include "cli/phase.h"
#include "cli/plan.h"
#include "cli/table.h"
#include "scheduler/planner/workload.h"

namespace tandem::cli {
namespace {

std::optional<int> ReadFlagsOnly(const Command& command, std::span<char* const> args,
                                 const Terminal& terminal) {
  std::vector<std::string> operands;
  if (const auto exit_code = ReadCommandLine(command, args, terminal, operands)) return exit_code;
  if (operands.empty()) return std::nullopt;
  return ReportUsage(
      absl::InvalidArgumentError(absl::StrCat("unexpected argument '", operands[0], "'")),
      terminal);
}

/// An answer whose lists have different lengths is cut to the shortest.
planner::Workload WorkloadOf(const v1::GetWorkloadResponse& response) {
  planner::Workload workload;
  const int n = std::min({response.arrival_s_size(), response.prompt_tokens_size(),
                          response.output_tokens_size(), response.cached_tokens_size()});
  for (int i = 0; i < n; ++i) {
    workload.push_back({.arrival_s = response.arrival_s(i),
                        .prompt_tokens = response.prompt_tokens(i),
                        .output_tokens = response.output_tokens(i),
                        .cached_tokens = response.cached_tokens(i)});
  }
  return workload;
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

int RunPlanWorkload(std::span<char* const> args, const Terminal& terminal) {
  std::string router = DefaultRouter(terminal), out;
  const Command command = {
      "plan workload",
      "",
      "Writes the requests that a router has had lately, at most 4096 of the last ten minutes, as "
      "the CSV that `tandem plan search --workload` reads.",
      {RouterOption(router),
       {"out", "FILE", "Where to. Default: standard output.",
        ReadText([&out](std::string value) { out = std::move(value); })}}};
  if (const auto exit_code = ReadFlagsOnly(command, args, terminal)) return *exit_code;
  v1::GetWorkloadResponse response;
  if (const int code = AskCluster(router, terminal, v1::GetWorkloadRequest(), response,
                                  &v1::ClusterService::Stub::GetWorkload)) {
    return code;
  }
  const planner::Workload workload = WorkloadOf(response);
  const std::string csv = planner::WorkloadCsv(workload);
  if (out.empty()) {
    terminal.out << csv;
  } else if (const absl::Status status = WriteWholeFile(out, csv); !status.ok()) {
    terminal.err << "tandem: " << status.message() << "\n";
    return kFailed;
  }
  const planner::WorkloadStats stats = planner::Describe(workload);
  terminal.err << absl::StrFormat(
      "%d requests, %.2f/s (deviation of the gaps %.2f of their mean), prompts of %.0f tokens, "
      "%.0f "
      "of them cached, answers of %.0f\n",
      workload.size(), stats.rate_rps, stats.gap_cv, stats.mean_prompt_tokens,
      stats.mean_cached_tokens, stats.mean_output_tokens);
  return kOk;
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
  if (const auto exit_code = ReadFlagsOnly(command, args, terminal)) return *exit_code;
  v1::GetPlanResponse response;
  if (const int code = AskCluster(router, terminal, v1::GetPlanRequest(), response,
                                  &v1::ClusterService::Stub::GetPlan)) {
    return code;
  }
  if (!json) {
    Write(response, router, terminal);
    return kOk;
  }
  WriteJson(response, /*with_defaults=*/true, terminal.out);
  return kOk;
}

}  // namespace tandem::cli
