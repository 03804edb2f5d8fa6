// The file that describes a cluster to `tandem plan search`. Its form: docs/plan.md.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "scheduler/planner/plan_search.h"

namespace tandem::cli {

/// Fills `classes`, `groups`, `links` and the KV sizes of a task from YAML. INVALID_ARGUMENT
/// "`where`: KEY…" for a key that is unknown, missing or out of range.
absl::StatusOr<planner::PlanTask> ParseCluster(const std::string& yaml, const std::string& where);

}  // namespace tandem::cli
