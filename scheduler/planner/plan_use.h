// How much of what a plan's workers, links and memory can do is in use at its goodput: what it is
// that limits it. Pure function.
#pragma once

#include "scheduler/planner/plan_search.h"

namespace tandem::planner {

/// Shares, 0 … 1, of the domain in which they are highest.
struct PlanUse {
  /// Of the time that prefill steps may have (a mixed worker's decode steps are not that).
  double prefill = 0;
  /// Of the sequences that the TPOT objective and the workers' limits let run at a time.
  double decode = 0;
  /// Of the time of the node's port that sends or receives most.
  double links = 0;
  /// Of the decode workers' KV room, on average over time.
  double kv_room = 0;
};

/// From PlannedDomain::at_goodput, of each domain.
PlanUse UseOf(const Plan& plan);

}  // namespace tandem::planner
