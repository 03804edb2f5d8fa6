// The peer's searches for a placement: its own brute force over joint configurations, and the
// paper's Algorithm 1 on the same workers. Pure functions, thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "scheduler/planner/compat/goodput.h"
#include "scheduler/planner/compat/profile.h"
#include "scheduler/planner/placement_algorithms.h"

namespace tandem::planner::compat {

/// The devices and the task of a search.
struct SearchTask {
  int32_t nodes = 1, gpus_per_node = 1;
  /// High: an instance may span nodes as it likes. Low: KV moves within a node only.
  bool high_affinity = true;
  SloMs slo;
  double attainment_target = 0.9;
  double max_per_gpu_rate = 0, eps = 0;
  /// Algorithm 1 only.
  double traffic_rps = 0;
};

/// One prefill and one decode instance, cut into `pp_cross` segments over nodes.
struct JointConfig {
  int32_t pp_cross = 1, tp_prefill = 1, pp_prefill = 1, tp_decode = 1, pp_decode = 1;
  int64_t num_gpus() const {
    return int64_t{pp_cross} * (int64_t{tp_prefill} * pp_prefill + int64_t{tp_decode} * pp_decode);
  }
  bool operator==(const JointConfig&) const = default;
};

/// All that the peer tries, in its order: tensor parallelism over divisors of the heads, pipeline
/// stages over divisors of the layers. INVALID_ARGUMENT when the model's shape is not known or
/// there are more than 10,000 GPUs.
absl::StatusOr<std::vector<JointConfig>> EnumerateConfigs(const ModelProfile& model,
                                                          const SearchTask& task);

struct SearchedConfig {
  JointConfig config;
  /// Nothing when it was skipped; then `skipped` says why.
  std::optional<Goodput> goodput;
  std::string skipped;
};

struct SearchResult {
  std::vector<SearchedConfig> configs;
  /// Index into `configs`: the highest rate a GPU, then the fewest GPUs, then the first; nothing
  /// when all were skipped.
  std::optional<size_t> best;
};

/// The peer's search, by kPerPhasePercentile. Skips what has no memory entry or no latency profile,
/// and what cannot run one of the requests. Errors of EnumerateConfigs.
absl::StatusOr<SearchResult> SearchPlacement(const ModelProfile& model, const SearchTask& task,
                                             std::span<const ScalableRequest> requests);

/// Of one (tp, pp) that fits, has a profile and can run the requests.
struct PhaseConfig {
  Parallelism parallelism;
  Goodput prefill, decode;
};

struct Algorithm1Result {
  HighAffinityPlan plan;
  /// In the order tried.
  std::vector<PhaseConfig> configs;
};

/// Algorithm 1, each phase alone: by kTtftAttainment and kTpotAttainment. Errors of
/// HighAffinityPlacement.
absl::StatusOr<Algorithm1Result> RunAlgorithm1(const ModelProfile& model, const SearchTask& task,
                                               std::span<const ScalableRequest> requests);

}  // namespace tandem::planner::compat
