// `tandem explain`: why a request went where it went.
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status.h"
#include "cli/cluster_call.h"
#include "cli/table.h"

namespace tandem::cli {
namespace {

std::string Milliseconds(double seconds) { return absl::StrFormat("%.1f", seconds * 1e3); }

Row CandidateRow(const v1::Candidate& candidate) {
  return {candidate.chosen() ? "*" : "",
          candidate.prefill_worker(),
          candidate.decode_worker().empty() ? "-" : candidate.decode_worker(),
          absl::StrFormat("%.3f", candidate.score()),
          Milliseconds(candidate.ttft_s()),
          Milliseconds(candidate.queue_s()),
          Milliseconds(candidate.compute_s()),
          Milliseconds(candidate.load_s()),
          absl::StrCat(candidate.cached_tokens()),
          Milliseconds(candidate.tpot_s()),
          Milliseconds(candidate.step_s()),
          Milliseconds(candidate.decode_wait_s()),
          Milliseconds(candidate.handoff_s())};
}

void Write(const v1::Decision& decision, const Terminal& terminal) {
  terminal.out << absl::StrFormat(
      "dispatch %d, %.1f s ago, %s\n%d tokens to place; the request had waited %.1f ms in the "
      "router\n\n",
      decision.dispatch(), decision.age_s(), decision.reason(), decision.prompt_tokens(),
      decision.queued_s() * 1e3);
  if (decision.candidates().empty()) {
    terminal.out << "nobody else could take it\n\n";
    return;
  }
  std::vector<Row> rows = {{"", "PREFILL", "DECODE", "SCORE", "TTFT MS", "QUEUE", "COMPUTE", "LOAD",
                            "CACHED", "TPOT MS", "STEP", "WAIT", "HANDOFF"}};
  for (const v1::Candidate& candidate : decision.candidates()) {
    rows.push_back(CandidateRow(candidate));
  }
  terminal.out << Table(rows) << "\n";
}

}  // namespace

int RunExplain(std::span<char* const> args, const Terminal& terminal) {
  std::string router = DefaultRouter(terminal);
  bool json = false;
  const Command command = {
      "explain",
      "REQUEST_ID",
      "Shows, for each time that the request was sent to workers, which pairs there were to choose "
      "from, and what was predicted of them: lower scores are better, `*` is the one that was "
      "taken. The router that had the request remembers it for a while.",
      {RouterOption(router),
       {"json", "", "Write JSON, one line.", ReadSwitch([&json] { json = true; })}}};
  std::vector<std::string> operands;
  if (const auto exit_code = ReadCommandLine(command, args, terminal, operands)) return *exit_code;
  if (operands.size() != 1) {
    return ReportUsage(absl::InvalidArgumentError("explain: one request id is needed; see --help"),
                       terminal);
  }
  v1::ExplainRequest request;
  request.set_request_id(operands[0]);
  v1::ExplainResponse response;
  if (const int code =
          AskCluster(router, terminal, request, response, &v1::ClusterService::Stub::Explain)) {
    return code;
  }
  if (json) {
    WriteJson(response, /*with_defaults=*/true, terminal.out);
    return kOk;
  }
  for (const v1::Decision& decision : response.decisions()) Write(decision, terminal);
  return kOk;
}

}  // namespace tandem::cli
