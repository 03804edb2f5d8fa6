// The best placement of some nodes that moving a few at a time leads to: for clusters with too many
// placements to look at all. No I/O.
#pragma once

#include <atomic>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "scheduler/planner/plan_search.h"

namespace tandem::planner {

inline constexpr double kAnyWork = std::numeric_limits<double>::infinity();

struct LocalOptimum {
  PlannedPlacement best;
  /// The best of the others whose goodput was found.
  std::optional<PlannedPlacement> runner_up;
  /// All mixed, at the best of the widths that all classes have.
  PlannedPlacement colocated;
  uint64_t simulated = 0, simulations = 0;
};

/// Hill climbing, from the best of all mixed, of the splits that put each phase where it is best
/// (DistServe's Algorithm 1, over nodes of several kinds), and of `start`: a quarter of the nodes
/// changes its phase or its width at a time, then fewer, at last one or two. What a candidate must
/// beat is tested by a single simulation. Of placements that differ only in which of several
/// interchangeable groups (GroupKinds) does what, one is tried. The same result with any number of
/// threads. Ends early when `stop` is set, and soon after `most_work`: the sum over simulations of
/// requests × (1 + workers/64), of which a core of 2026 does about 200,000 a second. REQUIRES: a
/// task that CheckTask passes, with a node.
absl::StatusOr<LocalOptimum> SearchLocally(const PlanTask& task,
                                           const std::vector<std::vector<PhaseCounts>>& start,
                                           const std::atomic<bool>& stop,
                                           double most_work = kAnyWork);

/// The climb alone, by single moves, from a placement whose goodput and bound are known.
absl::StatusOr<LocalOptimum> ClimbFrom(const PlanTask& task, const PlannedPlacement& start,
                                       double most_work, const std::atomic<bool>& stop);

/// By group: the first one that it can be exchanged with (itself, when there is none before it)
/// because both have equal nodes and equal links to all others.
std::vector<uint32_t> GroupKinds(const PlanTask& task);

/// Those that differ in one worker's phase, or in one node's width.
std::vector<std::vector<PhaseCounts>> Neighbours(const PlanTask& task,
                                                 const std::vector<PhaseCounts>& counts);

/// Placements that prefill on the workers that are comparatively best at it (or worst) and decode
/// on the others, at each class's width in place `width`: of either order `most` splits, evenly
/// spread, and the one with the highest bound.
std::vector<std::vector<PhaseCounts>> PhasesApart(const PlanTask& task, size_t width, size_t most);

}  // namespace tandem::planner
