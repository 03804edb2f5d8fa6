// What the workers of a running cluster have told of themselves, for benchmarks that simulate it.
#pragma once

#include <string>
#include <vector>

#include "scheduler/planner/cluster_now.h"

namespace tandem::bench {

/// As the router's own planner sees it; in the order of the workers' names. Ends the program when
/// the router does not answer.
planner::ClusterNow AskCluster(const std::string& router);

/// From node × nodes + to node, as measured; `otherwise` where nothing was.
std::vector<planner::Link> LinksOf(const planner::ClusterNow& cluster,
                                   const planner::Link& otherwise);

}  // namespace tandem::bench
