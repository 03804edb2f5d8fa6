// Tandem's search for a placement: which node prefills, which decodes, which does both, so that the
// most requests a second meet both objectives. Branch and bound over the simulator. No I/O.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "scheduler/planner/simulator.h"

namespace tandem::planner {

/// Nodes of one class are interchangeable: same speed, same group of links.
struct NodeClass {
  std::string name;
  uint32_t count = 1;
  /// LinkTable's group.
  uint32_t group = 0;
  WorkerSpeed speed;
};

struct PlanTask {
  std::vector<NodeClass> classes;
  /// Between groups, from × groups + to.
  uint32_t groups = 1;
  std::vector<Link> links;
  /// Its rate does not count, its requests and their pace do.
  Workload workload;
  /// Objectives and bytes; failures and kept steps are ignored.
  SimulatorOptions simulator;
  double attainment_target = 0.9;
  uint32_t threads = 1;
};

/// How many nodes of a class do what.
struct PhaseCounts {
  uint32_t prefill = 0, decode = 0, mixed = 0;
  bool operator==(const PhaseCounts&) const = default;
};

struct PlannedPlacement {
  /// By class.
  std::vector<PhaseCounts> counts;
  /// The highest rate of the grid at which the target is met; 0: not even at the lowest.
  double goodput_rps = 0;
  /// What it can sustain at most: work is conserved, steps are full, links cost nothing, and only
  /// the cheapest requests that make up the target count. Higher rates are not tried: a sample of
  /// requests that ends soon may meet them, a cluster cannot.
  double bound_rps = 0;
};

struct Plan {
  PlannedPlacement best;
  /// The best of the others, if there are any.
  std::optional<PlannedPlacement> runner_up;
  /// All nodes mixed: what is had without disaggregation.
  PlannedPlacement colocated;
  /// The best one, simulated at its goodput (at its lowest rate when that is 0).
  SimulationResult at_goodput;
  /// The best one's goodput if every link were ten times as fast.
  double with_fast_links_rps = 0;
  /// With one more node of a class, in the phase that gains most.
  struct OneMore {
    Phase phase = Phase::kMixed;
    double goodput_rps = 0;
  };
  std::vector<OneMore> one_more;
  /// All placements; those simulated; simulations.
  uint64_t placements = 0, simulated = 0, simulations = 0;
};

/// All placements that prefill and decode, in a fixed order, each with its bound. INVALID_ARGUMENT
/// when there is no node or more than 200,000 placements.
absl::StatusOr<std::vector<PlannedPlacement>> EnumeratePlacements(const PlanTask& task);

/// The placement's goodput, on a grid of rates in steps of 2 %, by bisection: attainment is taken
/// to fall with the rate. All placements see the same requests (common random numbers).
/// `at_least_rps`: less is of no interest, and may come back as 0. Counts its simulations.
absl::StatusOr<double> PlacementGoodput(const PlanTask& task,
                                        const std::vector<PhaseCounts>& counts, double at_least_rps,
                                        uint64_t& simulations);

/// The placement with the highest goodput; of equals, all mixed, then the one with the higher
/// bound. Placements whose bound is no better than the second best known are left out. The same
/// result with any number of threads. `stop` ends it early, with CANCELLED. INVALID_ARGUMENT as
/// above, for an empty workload or one without a pace, or numbers out of range.
absl::StatusOr<Plan> SearchPlan(const PlanTask& task, const std::atomic<bool>& stop);

}  // namespace tandem::planner
