// Fuzz target: any bytes as a workload's CSV. What is accepted can be written, read again, paced
// and, when it is small, simulated. Run by libFuzzer, and by workload_fuzz_test.cc.
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "scheduler/planner/placement_goodput.h"
#include "scheduler/planner/plan_search.h"

namespace tandem::planner {
namespace {

void Require(bool condition) {
  if (!condition) std::abort();
}

void Use(const Workload& workload) {
  const auto again = ParseWorkload(WorkloadCsv(workload), "again.csv");
  Require(again.ok() && again->size() == workload.size());
  uint64_t tokens = 0;
  for (size_t i = 0; i < workload.size(); ++i) {
    const WorkloadRequest &one = workload[i], &two = (*again)[i];
    Require(one.prompt_tokens >= 1 && one.output_tokens >= 1);
    Require(one.cached_tokens <= one.prompt_tokens);
    Require(one.prompt_tokens == two.prompt_tokens && one.output_tokens == two.output_tokens);
    Require(one.cached_tokens == two.cached_tokens);
    tokens += one.prompt_tokens + one.output_tokens;
  }
  PlanTask task;
  task.classes = {{.name = "n", .count = 2}};
  task.classes[0].speed.latency.prefill = {.base_s = 1e-3, .per_token_s = 1e-5};
  task.classes[0].speed.latency.decode.base_s = 1e-2;
  task.links = {{.bytes_per_s = 1e9}};
  task.workload = workload;
  if (!CheckTask(task).ok()) return;
  double before_s = 0;
  for (const WorkloadRequest& one : AtRate(workload, 3)) {
    Require(std::isfinite(one.arrival_s) && one.arrival_s >= before_s);
    before_s = one.arrival_s;
  }
  if (tokens > 5000 || workload.size() > 64) return;
  const auto result = SimulatePlacement(task, {{.prefill = 1, .decode = 1}}, 3);
  Require(result.ok());
  Require(result->attainment.both >= 0 && result->attainment.both <= 1);
}

}  // namespace
}  // namespace tandem::planner

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto workload = tandem::planner::ParseWorkload(text, "fuzz.csv");
  if (workload.ok()) {
    tandem::planner::Use(*workload);
    return 0;
  }
  const absl::Status& status = workload.status();
  const bool explained = absl::IsInvalidArgument(status) && !status.message().empty() &&
                         status.message().size() < 4096;
  if (!explained) std::abort();
  return 0;
}
