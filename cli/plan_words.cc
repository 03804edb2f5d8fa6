#include "cli/plan_words.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "scheduler/planner/cluster_now.h"
#include "scheduler/planner/plan_use.h"

namespace tandem::cli {

using namespace planner;  // NOLINT: this file is about nothing else

std::string Rps(double rps) { return absl::StrFormat("%.3g", rps); }

std::string VariantName(const PlanTask& task, const WorkerVariant& variant) {
  const NodeClass& nodes = task.classes[variant.node_class];
  return nodes.widths.empty() ? nodes.name : absl::StrCat(nodes.name, " x", variant.devices);
}

std::string InWords(const PlanTask& task, const PlannedPlacement& placement) {
  const std::vector<WorkerVariant> variants = VariantsOf(task);
  std::string words;
  for (size_t v = 0; v < variants.size(); ++v) {
    for (const Phase phase : kPhases) {
      const uint32_t n = placement.counts[v].of(phase);
      if (n == 0) continue;
      absl::StrAppend(&words, words.empty() ? "" : ", ", n, " ", PhaseWord(phase), " (",
                      VariantName(task, variants[v]), ")");
    }
  }
  return words;
}

uint32_t Devices(const PlanTask& task) {
  uint32_t devices = 0;
  for (const NodeClass& nodes : task.classes) devices += nodes.count * nodes.devices;
  return devices;
}

std::string Bottleneck(const Plan& plan) {
  const PlanUse use = UseOf(plan);
  const std::pair<double, const char*> all[] = {{use.prefill, "prefill"},
                                                {use.decode, "decode"},
                                                {use.links, "links"},
                                                {use.kv_room, "KV room"}};
  const Attainment& attained = plan.at_goodput.attainment;
  return absl::StrFormat(
      "%s; in use: prefill %.0f %%, decode %.0f %%, links %.0f %%, KV room %.0f %%; TTFT missed by "
      "%.1f %% of the requests, TPOT by %.1f %%",
      std::max_element(std::begin(all), std::end(all))->second, 100 * use.prefill, 100 * use.decode,
      100 * use.links, 100 * use.kv_room, 100 * (1 - attained.ttft), 100 * (1 - attained.tpot));
}

}  // namespace tandem::cli
