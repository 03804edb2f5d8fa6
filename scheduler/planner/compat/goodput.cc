#include "scheduler/planner/compat/goodput.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "scheduler/planner/bisection.h"

namespace tandem::planner::compat {
namespace {

bool Passes(const RatePoint& point, const Latencies& latencies, const GoodputTask& task,
            Criterion criterion) {
  const double target = task.attainment_target;
  switch (criterion) {
    case Criterion::kPerPhasePercentile:
      return Quantile(latencies.ttft_ms, target) < task.slo.ttft_ms &&
             Quantile(latencies.tpot_ms, target) < task.slo.tpot_ms;
    case Criterion::kJointAttainment:
      return point.attainment.both >= target;
    case Criterion::kTtftAttainment:
      return point.attainment.ttft >= target;
    case Criterion::kTpotAttainment:
      return point.attainment.tpot >= target;
  }
  return false;
}

}  // namespace

std::vector<Request> AtRate(std::span<const ScalableRequest> requests, double total_rps) {
  std::vector<Request> arriving;
  arriving.reserve(requests.size());
  const double scale = 1 / total_rps;
  double now_ms = 0;
  for (const ScalableRequest& request : requests) {
    // In this order, as the peer does.
    now_ms += request.unit_gap_s * scale * 1000;
    arriving.push_back({.arrival_ms = now_ms,
                        .prompt_tokens = request.prompt_tokens,
                        .output_tokens = request.output_tokens});
  }
  return arriving;
}

PercentilesMs Percentiles(const std::vector<double>& ms) {
  return {.p50 = Quantile(ms, 0.5), .p90 = Quantile(ms, 0.9), .p99 = Quantile(ms, 0.99)};
}

absl::StatusOr<Goodput> FindGoodput(const GoodputTask& task,
                                    std::span<const ScalableRequest> requests,
                                    Criterion criterion) {
  if (requests.empty()) return absl::InvalidArgumentError("there is no request");
  if (task.num_gpus < 1 || !(task.attainment_target > 0) || task.attainment_target > 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("the number of GPUs is ", task.num_gpus, " and the attainment target ",
                     task.attainment_target, "; allowed are 1 and more, and above 0 up to 1"));
  }
  Goodput goodput;
  const auto passes = [&](double rate) -> absl::StatusOr<bool> {
    RatePoint point{.per_gpu_rate = rate, .total_rps = rate * static_cast<double>(task.num_gpus)};
    ASSIGN_OR_RETURN(const Simulated simulated,
                     Simulate(task.placement, AtRate(requests, point.total_rps)));
    const Latencies& latencies = simulated.latencies;
    point.attainment =
        Attained(latencies.ttft_ms, latencies.tpot_ms, task.slo.ttft_ms, task.slo.tpot_ms);
    point.ttft = Percentiles(latencies.ttft_ms);
    point.tpot = Percentiles(latencies.tpot_ms);
    point.pass = Passes(point, latencies, task, criterion);
    goodput.trace.push_back(point);
    return point.pass;
  };
  ASSIGN_OR_RETURN(goodput.best_per_gpu_rate,
                   HighestPassingRate(task.max_per_gpu_rate, task.eps, passes));
  return goodput;
}

}  // namespace tandem::planner::compat
