// Tandem's own simulator: discrete events that drive the real scheduling core (dispatch, the
// prefill and decode policies of scheduler/core) with latency models in place of engines. For the
// planner. Deterministic: the same inputs and seed give the same numbers. Pure functions,
// thread-safe.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "scheduler/core/dispatcher.h"
#include "scheduler/core/latency_model.h"
#include "scheduler/core/prefill_policy.h"
#include "scheduler/planner/link_flows.h"
#include "scheduler/planner/statistics.h"
#include "scheduler/planner/workload.h"

namespace tandem::planner {

/// Tokens of a chunk: what is published, and so handed over, at once.
inline constexpr uint32_t kChunkTokens = 256;

enum class Phase { kPrefill, kDecode, kMixed };
inline constexpr Phase kPhases[] = {Phase::kPrefill, Phase::kDecode, Phase::kMixed};

/// What a worker can do at one width (cores or devices given to it), as its profile says.
struct WorkerSpeed {
  scheduler::LatencyModel latency;
  uint64_t kv_capacity_tokens = 65'536;
  /// Sequences in a decode step, and prompts that are computed at a time.
  uint32_t max_sequences = 16, prefill_sequences = 8;
  /// Prompt tokens that a step has room for; as many as saturate the device, at least.
  uint32_t step_tokens = 512;
  uint32_t StepTokens() const { return std::max(step_tokens, latency.saturation_tokens); }
  bool operator==(const WorkerSpeed&) const = default;
};

struct SimulatedWorker {
  /// Index into the link table.
  uint32_t node = 0;
  Phase phase = Phase::kMixed;
  WorkerSpeed speed;
};

/// The worker is gone from `at_s` on, with all KV that it holds, and back, empty, at `back_s`.
/// Its requests go on elsewhere, from their prompts and the tokens made.
struct WorkerFailure {
  uint32_t worker = 0;
  double at_s = 0, back_s = std::numeric_limits<double>::infinity();
};

struct SimulatorOptions {
  /// Objectives: what is judged, and what dispatch and decode admission aim at.
  double ttft_slo_s = 0.25, tpot_slo_s = 0.1;
  /// KV of a token as it lies in the cache, and what of it goes over the wire.
  double kv_bytes_per_token = 0, wire_share = 1;
  /// Raw bytes a second that the codec turns over; limits how fast a last piece gets there.
  double codec_bytes_per_s = 4e9;
  /// Between client and workers, once a request.
  double request_overhead_s = 0;
  double report_interval_s = 0.25;
  /// scheduler::PlanPrefillStep.
  uint64_t overtake_tokens = scheduler::kDefaultOvertakeTokens;
  /// scheduler::HasRoom.
  double dispatch_ahead_steps = 2;
  /// Decode workers compute prompts, too, where dispatch finds that better.
  bool prefill_on_decode = true;
  std::vector<WorkerFailure> failures;
  uint64_t seed = 1;
  /// Steps and handoffs that begin before this time are kept in SimulationResult.
  double keep_steps_until_s = 0;
};

/// One forward pass.
struct SimulatedStep {
  uint32_t worker = 0;
  bool prefill = false;
  double begin_s = 0, end_s = 0;
  /// Prompt tokens, or sequences.
  uint32_t size = 0;
};

/// KV on its way from a prefill to a decode worker, from when it is pulled until the sequence may
/// join a step there.
struct SimulatedHandoff {
  uint32_t from = 0, to = 0;
  double begin_s = 0, end_s = 0;
};

struct WorkerUse {
  double prefill_busy_s = 0, decode_busy_s = 0;
  /// Prompts and tokens computed; sequences put aside for want of KV room.
  uint64_t prompts = 0, tokens = 0, parked = 0;
  /// Sequences in decode steps, and the tokens of KV that they had, times those steps' seconds.
  double sequence_s = 0, kv_token_s = 0;
  /// Seconds that what it sent, and received, takes on the links alone.
  double send_s = 0, receive_s = 0;
};

struct SimulationResult {
  /// Of each request, by its place in the workload. TTFT: infinity for one that never got a token,
  /// because no worker was left or its KV fits nowhere. TPOT: (last - first)/(tokens - 1), 0 for a
  /// single token, infinity for one that never ended.
  std::vector<double> ttft_s, tpot_s;
  Attainment attainment;
  /// Mean seconds a request: waiting for prefill, in prefill, on the way and waiting for a place.
  double queue_s = 0, prefill_s = 0, handoff_s = 0;
  std::vector<WorkerUse> workers;
  /// Requests by (prefill worker, decode worker).
  std::map<std::pair<uint32_t, uint32_t>, uint64_t> pairs;
  std::vector<SimulatedStep> steps;
  /// In the order in which they end.
  std::vector<SimulatedHandoff> handoffs;
  /// When the last request ended.
  double end_s = 0;
};

/// Runs the workload to its end.
///
/// A request waits in the router until dispatch finds room (scheduler::HasRoom), in order of
/// arrival; then at the worker that dispatch chose until a place and KV room are free, and is
/// computed in steps of at most scheduler::StepTokens. When it begins the decode worker hears of
/// it, and pulls its KV as soon as it has room: while the prompt is computed, except for the last
/// chunk, which leaves when it is. A prefill worker keeps KV until it is pulled, so that bursts
/// wait there. Mixed workers take turns by the rule of scheduler/core/turn_policy.h, as the
/// daemon's. INVALID_ARGUMENT when there is no worker, or one of a phase only, a node that the
/// links do not have, or no request.
absl::StatusOr<SimulationResult> Simulate(std::span<const SimulatedWorker> workers,
                                          const LinkTable& links,
                                          std::span<const WorkloadRequest> workload,
                                          const SimulatorOptions& options);

}  // namespace tandem::planner
