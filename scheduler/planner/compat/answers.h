// Runs the cases of a folder and writes the answers in the forms that simpeer's compare.py reads.
// Text in memory, no I/O.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "scheduler/planner/compat/case_files.h"

namespace tandem::planner::compat {

struct LatencyAnswer {
  Simulated simulated;
  /// One for each of the case's slo_sets.
  std::vector<Attainment> attainments;
  PercentilesMs ttft, tpot;
};
struct GoodputAnswer {
  Goodput per_phase, joint;
};

/// Errors of Simulate, FindGoodput, SearchPlacement and RunAlgorithm1.
absl::StatusOr<LatencyAnswer> Answer(const LatencyCase& task);
absl::StatusOr<GoodputAnswer> Answer(const GoodputCase& task);

/// "req_id,ttft_ms,tpot_ms,finish_ms" and a line a request, in the order of the case.
std::string LatencyCsv(const LatencyCase& task, const LatencyAnswer& answer);

template <typename Result>
struct Named {
  std::string id;
  Result result;
};

/// {id: {"per_phase": rate, "joint": rate, …traces}}.
std::string GoodputJson(std::span<const Named<GoodputAnswer>> answers);
/// {id: {"best": [pp_cross, tp_p, pp_p, tp_d, pp_d], "per_gpu_rate": rate, …}}, and for Algorithm 1
/// {id: {"best_prefill": …, "best_decode": …, "n_prefill": …, "n_decode": …, …}}.
std::string SearchJson(std::span<const Named<SearchResult>> searches,
                       std::span<const Named<Algorithm1Result>> algorithm1);
/// Attainment, percentiles and counters of latency cases: [{"id": …, "attainment": […], …}].
struct LatencySummary {
  const LatencyCase* task;
  LatencyAnswer answer;
};
std::string ResultsJson(std::span<const Named<LatencySummary>> summaries);

}  // namespace tandem::planner::compat
