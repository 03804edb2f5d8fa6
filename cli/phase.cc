// `tandem phase`: tells a worker what to do from now on.
#include "cli/phase.h"

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "cli/cluster_call.h"

namespace tandem::cli {

std::string PhaseName(v1::Phase phase) {
  switch (phase) {
    case v1::PHASE_PREFILL:
      return "prefill";
    case v1::PHASE_DECODE:
      return "decode";
    case v1::PHASE_STORE:
      return "store";
    case v1::PHASE_MIXED:
      return "mixed";
    default:
      return "?";
  }
}

v1::Phase ParsePhase(std::string_view name) {
  if (name == "auto") return v1::PHASE_AUTO;
  for (const v1::Phase phase : {v1::PHASE_PREFILL, v1::PHASE_DECODE, v1::PHASE_MIXED}) {
    if (PhaseName(phase) == name) return phase;
  }
  return v1::PHASE_UNSPECIFIED;
}

int RunPhase(std::span<char* const> args, const Terminal& terminal) {
  std::string router = DefaultRouter(terminal);
  v1::AssignPhaseRequest request;
  const Command command = {
      "phase",
      "WORKER prefill|decode|mixed|auto",
      "Tells a worker, by its name or id, what to do from now on. It moves the sequences that it "
      "may no longer have to others; no request notices. `tandem status` shows when it is done. "
      "The planner changes the phase no more, until `auto` leaves it to the planner.",
      {RouterOption(router),
       {"force", "", "Even when nobody is left who does what it does now.",
        ReadSwitch([&request] { request.set_force(true); })}}};
  std::vector<std::string> operands;
  if (const auto exit_code = ReadCommandLine(command, args, terminal, operands)) return *exit_code;
  if (operands.size() != 2) {
    return ReportUsage(
        absl::InvalidArgumentError("phase: a worker and its phase are needed; see --help"),
        terminal);
  }
  const v1::Phase phase = ParsePhase(operands[1]);
  if (phase == v1::PHASE_UNSPECIFIED) {
    return ReportUsage(absl::InvalidArgumentError(absl::StrCat(
                           "phase: '", operands[1],
                           "' is not a phase; allowed are prefill, decode, mixed and auto")),
                       terminal);
  }
  request.set_worker(operands[0]);
  request.set_phase(phase);
  v1::AssignPhaseResponse response;
  if (const int code =
          AskCluster(router, terminal, request, response, &v1::ClusterService::Stub::AssignPhase)) {
    return code;
  }
  terminal.out << operands[0] << " was told: " << operands[1] << "\n";
  return kOk;
}

}  // namespace tandem::cli
