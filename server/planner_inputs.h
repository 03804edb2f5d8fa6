// What the planner is told of the workers: from their reports to the planner's own terms. Used by
// planner_loop and by `tandem plan`. Pure functions, thread-safe.
#pragma once

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "scheduler/planner/replanner.h"
#include "tandem/v1/cluster.pb.h"

namespace tandem::server {

/// The workers that can be used: stores, those that drain, that have not reported for `timeout`, or
/// that have not reported at all, are left out. Without share_seen.
planner::ClusterNow ClusterFrom(const std::vector<v1::WorkerState>& workers,
                                absl::Duration timeout);

/// The routers that each of those workers is registered with.
std::vector<std::vector<std::string>> RoutersFrom(const std::vector<v1::WorkerState>& workers,
                                                  absl::Duration timeout);

/// In the API's terms; `now_s` on the planner's clock.
v1::Phase ToProto(planner::Phase phase);
v1::PlanDecision ToProto(const planner::PlanDecision& decision, double now_s);

}  // namespace tandem::server
