// A cluster and its plan as a picture: groups of nodes, what phase each worker is in, links by
// bandwidth, and who hands over to whom. For the report of `tandem plan search`. Pure functions,
// thread-safe.
#pragma once

#include <string>

#include "scheduler/planner/plan_search.h"

namespace tandem::cli {

/// "10 Gbit/s, 0.1 ms".
std::string LinkName(const planner::Link& link);

/// An `<svg>` as wide as 1,000. Groups with equal nodes in equal phases are one box; five boxes at
/// most, the rest is said. Arcs above are handovers between boxes as simulated at the plan's
/// goodput.
std::string TopologySvg(const planner::PlanTask& task, const planner::Plan& plan);

}  // namespace tandem::cli
