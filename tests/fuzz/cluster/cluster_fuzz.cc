// Fuzz target: any bytes as the file that describes a cluster. What is accepted can be simulated.
// Run by libFuzzer, and by cluster_fuzz_test.cc.
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "cli/plan_cluster.h"
#include "scheduler/planner/placement_goodput.h"

namespace tandem::planner {
namespace {

void Require(bool condition) {
  if (!condition) std::abort();
}

void Use(PlanTask task) {
  uint64_t nodes = 0, workers = 0;
  uint32_t last = UINT32_MAX;
  std::vector<PhaseCounts> mixed;  // a node of each class
  for (const WorkerVariant& variant : VariantsOf(task)) {
    const NodeClass& of = task.classes[variant.node_class];
    Require(of.count >= 1 && of.group < task.groups && variant.per_node >= 1);
    const bool first = variant.node_class != last;
    last = variant.node_class;
    mixed.push_back({.mixed = first ? variant.per_node : 0});
    workers += mixed.back().mixed;
  }
  for (const NodeClass& of : task.classes) nodes += of.count;
  Require(nodes >= 1 && nodes <= 10'000);
  Require(task.links.size() == size_t{task.groups} * task.groups);
  Require(task.group_names.size() == task.groups);
  task.workload = {{.arrival_s = 0, .prompt_tokens = 300, .output_tokens = 3},
                   {.arrival_s = 1, .prompt_tokens = 20, .output_tokens = 1}};
  Require(CheckTask(task).ok());
  if (workers > 64) return;
  const double bound_rps = PlacementBound(task).Rps(mixed);
  Require(bound_rps > 0 && std::isfinite(bound_rps));
  const auto result = SimulatePlacement(task, mixed, 1);
  Require(result.ok());
  Require(result->attainment.both >= 0 && result->attainment.both <= 1);
  Require(std::isfinite(result->end_s));
}

}  // namespace
}  // namespace tandem::planner

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  auto task = tandem::cli::ParseCluster(text, "fuzz.yaml");
  if (task.ok()) {
    tandem::planner::Use(*std::move(task));
    return 0;
  }
  const absl::Status& status = task.status();
  const bool explained = absl::IsInvalidArgument(status) && !status.message().empty() &&
                         status.message().size() < 4096;
  if (!explained) std::abort();
  return 0;
}
