// The file that describes a cluster to `tandem plan search`. Its form: docs/plan.md.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "scheduler/planner/cluster_now.h"
#include "scheduler/planner/plan_search.h"

namespace tandem::cli {

/// Fills `classes`, `groups`, `links` and the KV sizes of a task from YAML. INVALID_ARGUMENT
/// "`where`: KEY…" for a key that is unknown, missing or out of range, and for a cluster of more
/// than 10,000 nodes or 1,000 groups.
absl::StatusOr<planner::PlanTask> ParseCluster(const std::string& yaml, const std::string& where);

/// The file for a running cluster, which ParseCluster reads: a kind and a group for each of
/// planner::Classify's classes, and the links between them. Numbers have six digits.
/// FAILED_PRECONDITION when there is no worker, or none has measured both kinds of step.
absl::StatusOr<std::string> ClusterYaml(const planner::ClusterNow& cluster);

}  // namespace tandem::cli
