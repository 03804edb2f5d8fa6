#include "tests/bench/simulated/told_cluster.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "server/planner_inputs.h"
#include "tandem/v1/cluster.grpc.pb.h"
#include "tests/e2e/harness.h"

namespace tandem::bench {

planner::ClusterNow AskCluster(const std::string& router) {
  e2e::Client client(router);
  grpc::ClientContext context;
  v1::ListWorkersResponse told;
  const auto status =
      v1::ClusterService::NewStub(client.channel())->ListWorkers(&context, {}, &told);
  if (!status.ok()) {
    std::fprintf(stderr, "the router does not answer: %s\n", status.error_message().c_str());
    std::exit(1);
  }
  std::vector<v1::WorkerState> workers(told.workers().begin(), told.workers().end());
  std::sort(workers.begin(), workers.end(),
            [](const auto& a, const auto& b) { return a.info().name() < b.info().name(); });
  return server::ClusterFrom(workers, absl::InfiniteDuration());
}

std::vector<planner::Link> LinksOf(const planner::ClusterNow& cluster,
                                   const planner::Link& otherwise) {
  const size_t n = cluster.nodes.size();
  std::vector<planner::Link> links(n * n, otherwise);
  for (const planner::MeasuredLink& each : cluster.links)
    links[each.from * n + each.to] = each.link;
  return links;
}

}  // namespace tandem::bench
