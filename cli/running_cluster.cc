#include "cli/running_cluster.h"

#include <algorithm>
#include <vector>

#include "base/status.h"
#include "cli/cluster_call.h"
#include "cli/plan_cluster.h"
#include "server/planner_inputs.h"

namespace tandem::cli {
namespace {

/// The longest report_interval: what has been silent for longer is not there.
constexpr absl::Duration kSilent = absl::Minutes(1);

}  // namespace

absl::StatusOr<std::string> RunningClusterYaml(const std::string& router) {
  v1::ListWorkersResponse response;
  RETURN_IF_ERROR(CallCluster(router, v1::ListWorkersRequest(), response,
                              &v1::ClusterService::Stub::ListWorkers));
  const std::vector<v1::WorkerState> workers(response.workers().begin(), response.workers().end());
  return ClusterYaml(server::ClusterFrom(workers, kSilent));
}

absl::StatusOr<planner::Workload> RunningWorkload(const std::string& router) {
  v1::GetWorkloadResponse response;
  RETURN_IF_ERROR(CallCluster(router, v1::GetWorkloadRequest(), response,
                              &v1::ClusterService::Stub::GetWorkload));
  // An answer whose lists have different lengths is cut to the shortest.
  const int n = std::min({response.arrival_s_size(), response.prompt_tokens_size(),
                          response.output_tokens_size(), response.cached_tokens_size()});
  planner::Workload workload;
  for (int i = 0; i < n; ++i) {
    workload.push_back({.arrival_s = response.arrival_s(i),
                        .prompt_tokens = response.prompt_tokens(i),
                        .output_tokens = response.output_tokens(i),
                        .cached_tokens = response.cached_tokens(i)});
  }
  return workload;
}

}  // namespace tandem::cli
