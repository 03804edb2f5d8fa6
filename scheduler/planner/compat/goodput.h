// Goodput as the peer measures it: the highest rate at which a fixed list of requests meets the
// objective. Times are milliseconds. Pure functions, thread-safe.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "scheduler/planner/compat/simulator.h"
#include "scheduler/planner/statistics.h"

namespace tandem::planner::compat {

/// Requests of which only the rate is still open.
struct ScalableRequest {
  /// Before the request, at one request a second.
  double unit_gap_s = 0;
  int64_t prompt_tokens = 0, output_tokens = 0;
};

/// The requests at `total_rps` requests a second. REQUIRES: total_rps > 0.
std::vector<Request> AtRate(std::span<const ScalableRequest> requests, double total_rps);

struct SloMs {
  double ttft_ms = 0, tpot_ms = 0;
};

/// Percentiles 50, 90, 99.
struct PercentilesMs {
  double p50 = 0, p90 = 0, p99 = 0;
};
/// REQUIRES: not empty.
PercentilesMs Percentiles(const std::vector<double>& ms);

/// One simulated rate.
struct RatePoint {
  double per_gpu_rate = 0, total_rps = 0;
  Attainment attainment;
  PercentilesMs ttft, tpot;
  bool pass = false;
};

/// What makes a rate pass.
enum class Criterion {
  /// The target's quantile of TTFT and of TPOT each strictly below its limit: the peer's code.
  kPerPhasePercentile,
  /// The share of requests that keep both limits is at least the target: the paper's definition.
  kJointAttainment,
  /// As kJointAttainment, of TTFT or of TPOT alone: Algorithm 1's.
  kTtftAttainment,
  kTpotAttainment,
};

struct GoodputTask {
  Placement placement;
  int64_t num_gpus = 1;
  SloMs slo;
  double attainment_target = 0.9;
  /// Where the bisection begins, and where it ends, in requests a second and GPU.
  double max_per_gpu_rate = 0, eps = 0;
};

struct Goodput {
  /// 0 when no rate passed.
  double best_per_gpu_rate = 0;
  /// In the order tried.
  std::vector<RatePoint> trace;
};

/// INVALID_ARGUMENT as for Simulate and HighestPassingRate, or when there is no request.
absl::StatusOr<Goodput> FindGoodput(const GoodputTask& task,
                                    std::span<const ScalableRequest> requests, Criterion criterion);

}  // namespace tandem::planner::compat
