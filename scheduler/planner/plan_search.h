// Tandem's search for a placement: which node prefills, which decodes, which does both, so that the
// most requests a second meet both objectives. Branch and bound over the simulator where the
// cluster is small; else domains, whose nodes hand over to each other alone, are searched and
// repeated. No I/O.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "scheduler/planner/simulator.h"

namespace tandem::planner {

/// How fast a worker is that has so many of its node's devices (or cores).
struct WorkerWidth {
  uint32_t devices = 1;
  WorkerSpeed speed;
  bool operator==(const WorkerWidth&) const = default;
};

/// Nodes of one class are interchangeable: same speed, same group of links.
struct NodeClass {
  std::string name;
  uint32_t count = 1;
  /// LinkTable's group.
  uint32_t group = 0;
  /// Of a worker that has the whole node; not used where `widths` are given.
  WorkerSpeed speed;
  /// Of a node.
  uint32_t devices = 1;
  /// The search chooses one for each node, which runs as many such workers as it has devices for.
  /// Each divides `devices`.
  std::vector<WorkerWidth> widths;
};

/// How far a search is.
struct PlanProgress {
  /// "placements", "domains" or "joined domains", of which so many are done.
  const char* what = "";
  uint64_t done = 0, of = 0;
  /// Requests a second of the best plan known; 0: none yet.
  double best_rps = 0;
};

struct PlanTask {
  std::vector<NodeClass> classes;
  /// For people; by group, or empty.
  std::vector<std::string> group_names;
  /// Between groups, from × groups + to.
  uint32_t groups = 1;
  std::vector<Link> links;
  /// Between workers of one node; no bytes_per_s: as within its group.
  Link local_link;
  /// Its rate does not count, its requests and their pace do.
  Workload workload;
  /// Objectives and bytes; failures and kept steps are ignored.
  SimulatorOptions simulator;
  double attainment_target = 0.9;
  uint32_t threads = 1;
  /// Called now and then by the searching thread.
  std::function<void(const PlanProgress&)> progress;
  /// A search that is stopped returns the best plan so far, without sensitivities, not CANCELLED.
  bool keep_when_stopped = false;
};

/// A kind of worker that a placement can have: one for each class and width.
struct WorkerVariant {
  uint32_t node_class = 0;
  /// That it has, and how many of it fill a node.
  uint32_t devices = 1, per_node = 1;
  WorkerSpeed speed;
};
/// In the order of classes, then of widths.
std::vector<WorkerVariant> VariantsOf(const PlanTask& task);

/// How many workers of a variant do what.
struct PhaseCounts {
  uint32_t prefill = 0, decode = 0, mixed = 0;
  uint32_t workers() const { return prefill + decode + mixed; }
  uint32_t& of(Phase phase) {
    return phase == Phase::kPrefill ? prefill : phase == Phase::kDecode ? decode : mixed;
  }
  uint32_t of(Phase phase) const { return PhaseCounts(*this).of(phase); }
  auto operator<=>(const PhaseCounts&) const = default;
};

struct PlannedPlacement {
  /// By variant; so by class where no class has widths.
  std::vector<PhaseCounts> counts;
  /// The highest rate of the grid at which the target is met; 0: not even at the lowest.
  double goodput_rps = 0;
  /// What it can sustain at most: work is conserved, steps are full, links cost nothing, and only
  /// the cheapest requests that make up the target count. Higher rates are not tried: a sample of
  /// requests that ends soon may meet them, a cluster cannot.
  double bound_rps = 0;

  /// The rate at which it is shown: its goodput, a tenth of its bound when that is 0.
  double ShownRps() const { return goodput_rps > 0 ? goodput_rps : bound_rps / 10; }
};

/// Equal sets of nodes; those of a set hand over to each other alone, and every set gets requests
/// in proportion to its goodput.
struct PlannedDomain {
  /// The nodes of one set, for any simulation of it; its classes are named as in the whole task.
  PlanTask task;
  /// Of one set, by the variants of its own task: the best one; in the plan that is the runner-up,
  /// where it differs; all mixed.
  PlannedPlacement placement;
  std::optional<PlannedPlacement> runner_up;
  PlannedPlacement colocated;
  /// For each set, by its classes: which class of the whole task they are part of.
  std::vector<std::vector<uint32_t>> members;
  /// Of one set at its ShownRps.
  SimulationResult at_goodput;
};

struct Plan {
  PlannedPlacement best;
  /// The best of the others, if there are any.
  std::optional<PlannedPlacement> runner_up;
  /// All nodes mixed: what is had without disaggregation.
  PlannedPlacement colocated;
  /// How its nodes hand over; one domain of all nodes where the cluster is small.
  std::vector<PlannedDomain> domains;
  /// The best one, simulated at its ShownRps. Of several domains, means by their shares of the
  /// requests, and neither workers nor pairs.
  SimulationResult at_goodput;
  /// The goodput that is reached from the best one if every link were ten times as fast.
  double with_fast_links_rps = 0;
  /// By class: with one more node of it, in the phase and the width that gain most.
  struct OneMore {
    Phase phase = Phase::kMixed;
    /// Of its workers.
    uint32_t devices = 1;
    double goodput_rps = 0;
  };
  std::vector<OneMore> one_more;
  /// All placements (0: too many to count); those simulated; simulations.
  uint64_t placements = 0, simulated = 0, simulations = 0;
  /// False for a search that was stopped.
  bool complete = true;
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

/// The placement with the highest goodput. Up to 200,000 placements and 64 workers: of all; of
/// equals, all mixed, then the one with the higher bound; placements whose bound is no better than
/// the second best known are left out. Larger clusters: the best that domains of at most 64 nodes
/// reach by local search; up to 128 workers are then one domain, whose placement is improved
/// further. The same result with any number of threads. `stop` ends it early, with CANCELLED (but
/// see PlanTask::keep_when_stopped). INVALID_ARGUMENT when there is no node, for an empty workload
/// or one without a pace, or numbers out of range.
absl::StatusOr<Plan> SearchPlan(const PlanTask& task, const std::atomic<bool>& stop);

}  // namespace tandem::planner
