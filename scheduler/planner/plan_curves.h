// What a report shows of a plan beyond its figures: attainment against rate and against the
// objectives' scale, as DistServe (OSDI'24) does in figures 8 and 9, and every step of a minute. No
// I/O; thread-safe.
#pragma once

#include <atomic>
#include <vector>

#include "absl/status/statusor.h"
#include "scheduler/planner/plan_search.h"

namespace tandem::planner {

struct CurvePoint {
  /// Requests a second of the whole cluster, or what both objectives are multiplied by.
  double x = 0;
  Attainment attainment;
};

/// In rising order of x; no point where a search was stopped, or where no worker serves.
struct PlacementCurves {
  std::vector<CurvePoint> by_rate, by_scale;
};

struct PlanCurves {
  /// The runner-up's are empty when there is none.
  PlacementCurves best, runner_up, colocated;
  /// Requests a second of the whole at which `by_scale` was simulated: the best one's ShownRps.
  double scale_rps = 0;
  /// Place of the domain that is traced: that with the most nodes.
  size_t traced_domain = 0;
  /// That domain at its ShownRps, with its steps and handoffs up to `trace_end_s`. The requests are
  /// repeated until they last that long, if 40,000 do.
  SimulationResult trace;
  double trace_end_s = 0;
};

/// Simulates the plan, its runner-up and all mixed with the plan's own requests, on as many threads
/// as the task says; a domain gets its share of the requests by its goodput. `trace_s`: seconds of
/// the trace. Ends early, with what it has, when `stop` is set.
absl::StatusOr<PlanCurves> CurvesOf(const Plan& plan, double trace_s,
                                    const std::atomic<bool>& stop);

}  // namespace tandem::planner
