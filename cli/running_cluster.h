// What `tandem plan` takes from a running cluster instead of from files: what its router answers.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "scheduler/planner/workload.h"

namespace tandem::cli {

/// The workers that are registered and do not drain, what they have measured of themselves and of
/// the links between them, as a file that ParseCluster reads. Errors of the call, with a hint where
/// there is one, and of ClusterYaml.
absl::StatusOr<std::string> RunningClusterYaml(const std::string& router);

/// The requests that the router has had lately. Errors of the call as above.
absl::StatusOr<planner::Workload> RunningWorkload(const std::string& router);

}  // namespace tandem::cli
