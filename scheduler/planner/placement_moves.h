// Placements that can be reached from the present one, what they differ in, and requests to try
// them with. Parts of scheduler/planner/replanner. Pure functions, thread-safe.
#pragma once

#include <span>
#include <vector>

#include "scheduler/planner/cluster_now.h"

namespace tandem::planner {

/// Placements that leave fixed nodes what they are, whether they serve or not.
double CountPlacements(const Classes& classes);
/// All of them that prefill and decode.
std::vector<std::vector<PhaseCounts>> AllPlacements(const Classes& classes);
/// Those that differ from `counts` in one node's phase, or in two nodes of the same class that go
/// to, and come from, the same phase; all prefill and decode.
std::vector<std::vector<PhaseCounts>> Neighbours(const Classes& classes,
                                                 const std::vector<PhaseCounts>& counts);

/// Nodes that must change from one to the other. REQUIRES: equal nodes in each class.
uint32_t CountMoves(const std::vector<PhaseCounts>& from, const std::vector<PhaseCounts>& to);
/// Who changes to what, in which order: the least busy ones of those that may be moved, and so that
/// somebody prefills and decodes all the time, if somebody does now; where two would only change
/// places, one of them is mixed in between. REQUIRES: `counts` serve.
std::vector<PhaseChange> ChangesTo(const ClusterNow& cluster, const Classes& classes,
                                   const std::vector<PhaseCounts>& counts);

/// `n` requests drawn from the sample, at this rate, as bursty as the sample is, at least Poisson.
/// Those that have not ended get the length of one that has; where none has, `kNoLength`.
/// REQUIRES: a sample, rate_rps > 0.
inline constexpr uint32_t kNoLength = 128;
Workload Resampled(std::span<const WorkloadRequest> sample, double rate_rps, uint32_t n,
                   uint64_t seed);

}  // namespace tandem::planner
