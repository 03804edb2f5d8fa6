// A plan for a large cluster, in the manner of DistServe's Algorithm 2: find the best placement of
// a cell (nodes that fast links join), and repeat it. No I/O.
#pragma once

#include <atomic>

#include "absl/status/statusor.h"
#include "scheduler/planner/plan_search.h"

namespace tandem::planner {

/// Cells are the groups of nodes, large ones cut into equal parts; equal cells are searched once
/// (SearchLocally). Two cells become one domain where that gains two steps of the grid or more: for
/// racks that do badly alone, across slow links. So the time grows with the kinds of cells, not
/// with nodes. Sensitivities are those of the domains found. As SearchPlan; REQUIRES: a task that
/// CheckTask passes, with a node.
absl::StatusOr<Plan> SearchDomains(const PlanTask& task, const std::atomic<bool>& stop);

}  // namespace tandem::planner
