// DistServe's placement algorithms (OSDI'24, §4.1 and §4.2), over whatever tells them a
// configuration's goodput: the planner's simulator or the peer's.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>

#include "absl/status/statusor.h"

namespace tandem::planner {

/// How an instance spreads over devices: `intra_op` devices share each layer (tensor parallelism),
/// `inter_op` groups of them share the layers (pipeline stages).
struct Parallelism {
  int32_t intra_op = 1, inter_op = 1;
  int32_t devices() const { return intra_op * inter_op; }
  bool operator==(const Parallelism&) const = default;
};

/// Requests a second and device of an instance; nothing when the configuration cannot be had (the
/// model does not fit, or its speed is not known).
using PhaseGoodput = std::function<absl::StatusOr<std::optional<double>>(Parallelism)>;

/// One phase's part of a plan.
struct PhaseChoice {
  Parallelism parallelism;
  double per_device_rps = 0;
  /// Instances; 0 when none was found that does anything.
  int64_t instances = 0;
  double instance_rps() const { return per_device_rps * parallelism.devices(); }
};

struct HighAffinityPlan {
  PhaseChoice prefill, decode;
  int64_t devices() const {
    return prefill.instances * prefill.parallelism.devices() +
           decode.instances * decode.parallelism.devices();
  }
};

/// Algorithm 1 (high node affinity: KV moves anywhere at no cost). Each phase alone, over intra_op
/// 1 … devices_per_node and inter_op 1 … nodes × devices_per_node / intra_op: the configuration
/// with the highest goodput a device, the first of equals, as often as `traffic_rps` needs.
/// INVALID_ARGUMENT unless all numbers are positive; errors of the goodput functions.
absl::StatusOr<HighAffinityPlan> HighAffinityPlacement(int32_t nodes, int32_t devices_per_node,
                                                       double traffic_rps,
                                                       const PhaseGoodput& prefill,
                                                       const PhaseGoodput& decode);

/// A prefill and a decode instance that were simulated together.
struct PairChoice {
  /// Segments that both instances are cut into, a node each.
  int32_t segments = 1;
  /// Of one segment, within its node.
  Parallelism prefill, decode;
  double per_device_rps = 0;
  /// Pairs; 0 when none was found that does anything.
  int64_t pairs = 0;
  int32_t devices() const { return segments * (prefill.devices() + decode.devices()); }
};

/// Requests a second and device of a pair of instances (their whole parallelism, all segments
/// together); nothing when it cannot be had.
using PairGoodput =
    std::function<absl::StatusOr<std::optional<double>>(Parallelism prefill, Parallelism decode)>;

/// Algorithm 2 (low node affinity: KV moves only within a node). Both instances are cut into the
/// same number of segments of equal layers, 1 … nodes, and the two segments of a stage share a
/// node: all configurations of both that fit a node together. The pair with the highest goodput a
/// device, the first of equals, as often as `traffic_rps` needs. Errors as above.
absl::StatusOr<PairChoice> LowAffinityPlacement(int32_t nodes, int32_t devices_per_node,
                                                double traffic_rps, const PairGoodput& goodput);

}  // namespace tandem::planner
