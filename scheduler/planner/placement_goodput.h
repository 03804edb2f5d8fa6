// What one placement can do: the workers that it is, its bound, a simulation of it, its goodput.
// For the searches. Pure functions, thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "scheduler/planner/plan_search.h"

namespace tandem::planner {

/// Rates of the grid are steps of 2 %: that of place `k`.
double RateOf(int k);
/// The highest place with a rate of at most `rps`; -1 when there is none.
int GridBelow(double rps);

/// INVALID_ARGUMENT for a task whose numbers are out of range.
absl::Status CheckTask(const PlanTask& task);

/// PlannedPlacement::bound_rps of many placements of one task.
class PlacementBound {
 public:
  explicit PlacementBound(const PlanTask& task);
  double Rps(const std::vector<PhaseCounts>& counts) const;
  /// How much better the variant is at prefill than at decode, against others.
  double PrefillAdvantage(size_t variant) const {
    return speeds_[variant].prefill / speeds_[variant].decode;
  }
  /// Tokens a second that a worker of the variant decodes at best.
  double DecodeTokensPerSecond(size_t variant) const { return speeds_[variant].decode; }

 private:
  /// Tokens a second that a worker can do at best, of either kind.
  struct TopSpeed {
    double prefill = 0, decode = 0;
  };
  /// The least work that the requests can cost, of which only the target's share must be done.
  struct LeastWork {
    double requests = 0, prefill_tokens = 0, decode_tokens = 0;
  };
  static TopSpeed TopSpeedOf(const WorkerSpeed& speed);
  static bool CanDo(const std::vector<std::pair<TopSpeed, uint32_t>>& mixed, double time_s,
                    double prefill_tokens, double decode_tokens);

  std::vector<TopSpeed> speeds_;
  LeastWork work_;
};

/// Puts the placement where it belongs; of equals, what came first stays.
void KeepTwoBest(const PlannedPlacement& placement, PlannedPlacement& best,
                 std::optional<PlannedPlacement>& runner_up);

/// Whether some worker prefills and some worker decodes.
bool Serves(const std::vector<PhaseCounts>& counts);

/// The workers of a placement in the order of variants, each variant's prefill, decode and mixed
/// workers one after the other; on which nodes they are, and how those are linked.
struct PlacedWorkers {
  std::vector<SimulatedWorker> workers;
  /// By worker.
  std::vector<uint32_t> variant;
  LinkTable links;
};
PlacedWorkers WorkersOf(const PlanTask& task, const std::vector<PhaseCounts>& counts);

/// The task's requests at a rate, on the placement. `keep_steps_until_s` as SimulatorOptions's.
absl::StatusOr<SimulationResult> SimulatePlacement(const PlanTask& task,
                                                   const std::vector<PhaseCounts>& counts,
                                                   double rps, double keep_steps_until_s = 0);

/// PlacementGoodput for one whose bound is known, of a task that was checked.
absl::StatusOr<double> GoodputUpTo(const PlanTask& task, const std::vector<PhaseCounts>& counts,
                                   double bound_rps, double at_least_rps, uint64_t& simulations);

/// The goodput of a placement that is probably a little better than `from_rps`: the next places of
/// the grid are tried, then ever larger steps. `from_rps` when it does not even reach the next;
/// with `patience`, when it reaches none of so many: one that fails may be noise.
absl::StatusOr<double> GoodputFrom(const PlanTask& task, const std::vector<PhaseCounts>& counts,
                                   double bound_rps, double from_rps, uint64_t& simulations,
                                   int patience = 1);

/// Calls `work` for 0 … n − 1 on so many threads. The first error in that order.
absl::Status ForEachInParallel(uint32_t threads, size_t n,
                               const std::function<absl::Status(size_t)>& work);

}  // namespace tandem::planner
