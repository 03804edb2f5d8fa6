#include "scheduler/planner/placement_algorithms.h"

#include <cmath>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace tandem::planner {
namespace {

constexpr int32_t kMaxNodes = 10'000, kMaxDevices = 1'000;

absl::Status Check(int32_t nodes, int32_t devices_per_node, double traffic_rps) {
  if (nodes >= 1 && nodes <= kMaxNodes && devices_per_node >= 1 &&
      devices_per_node <= kMaxDevices && traffic_rps > 0 && std::isfinite(traffic_rps)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("cannot place ", traffic_rps, " requests a second on ", nodes, " nodes of ",
                   devices_per_node, " devices; allowed are positive rates, 1 to ", kMaxNodes,
                   " nodes and 1 to ", kMaxDevices, " devices"));
}

/// How many instances of `instance_rps` carry the traffic; 0 when they do nothing.
int64_t Needed(double traffic_rps, double instance_rps) {
  return instance_rps > 0 ? static_cast<int64_t>(std::ceil(traffic_rps / instance_rps)) : 0;
}

absl::StatusOr<PhaseChoice> BestPhase(int32_t nodes, int32_t devices_per_node, double traffic_rps,
                                      const PhaseGoodput& goodput) {
  PhaseChoice best;
  for (int32_t intra = 1; intra <= devices_per_node; ++intra) {
    for (int32_t inter = 1; inter * intra <= nodes * devices_per_node; ++inter) {
      const Parallelism parallelism{.intra_op = intra, .inter_op = inter};
      ASSIGN_OR_RETURN(const std::optional<double> per_device_rps, goodput(parallelism));
      if (per_device_rps && *per_device_rps > best.per_device_rps) {
        best = {.parallelism = parallelism, .per_device_rps = *per_device_rps};
      }
    }
  }
  best.instances = Needed(traffic_rps, best.instance_rps());
  return best;
}

}  // namespace

absl::StatusOr<HighAffinityPlan> HighAffinityPlacement(int32_t nodes, int32_t devices_per_node,
                                                       double traffic_rps,
                                                       const PhaseGoodput& prefill,
                                                       const PhaseGoodput& decode) {
  RETURN_IF_ERROR(Check(nodes, devices_per_node, traffic_rps));
  HighAffinityPlan plan;
  ASSIGN_OR_RETURN(plan.prefill, BestPhase(nodes, devices_per_node, traffic_rps, prefill));
  ASSIGN_OR_RETURN(plan.decode, BestPhase(nodes, devices_per_node, traffic_rps, decode));
  return plan;
}

absl::StatusOr<PairChoice> LowAffinityPlacement(int32_t nodes, int32_t devices_per_node,
                                                double traffic_rps, const PairGoodput& goodput) {
  RETURN_IF_ERROR(Check(nodes, devices_per_node, traffic_rps));
  std::vector<Parallelism> within_node;
  for (int32_t intra = 1; intra < devices_per_node; ++intra) {
    for (int32_t inter = 1; inter * intra < devices_per_node; ++inter) {
      within_node.push_back({.intra_op = intra, .inter_op = inter});
    }
  }
  PairChoice best;
  for (int32_t segments = 1; segments <= nodes; ++segments) {
    const auto whole = [&](Parallelism segment) {
      return Parallelism{.intra_op = segment.intra_op, .inter_op = segments * segment.inter_op};
    };
    for (const Parallelism& prefill : within_node) {
      for (const Parallelism& decode : within_node) {
        if (prefill.devices() + decode.devices() > devices_per_node) continue;
        ASSIGN_OR_RETURN(const std::optional<double> per_device_rps,
                         goodput(whole(prefill), whole(decode)));
        if (per_device_rps && *per_device_rps > best.per_device_rps) {
          best = {.segments = segments,
                  .prefill = prefill,
                  .decode = decode,
                  .per_device_rps = *per_device_rps};
        }
      }
    }
  }
  best.pairs = Needed(traffic_rps, best.per_device_rps * best.devices());
  return best;
}

}  // namespace tandem::planner
