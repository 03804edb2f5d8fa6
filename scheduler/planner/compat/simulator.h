// DistServe's simulator, event for event: what simdistserve (LLMServe/DistServe @ 82831f1) computes
// for a placement and a list of requests. KV transfer takes no time and KV memory has no limit
// here, since the peer models neither; the planner's own simulator does. Times are milliseconds,
// as the peer's are. Pure functions, thread-safe.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"

namespace tandem::planner::compat {

/// Coefficients of a latency model, in ms. What they multiply: StageCosts.
struct Abc {
  double a = 0, b = 0, c = 0;
};

/// How long batches take. With S stages, each takes 1/S of the whole, and:
///  - prefill of prompts l_i: (a + b Σl + c Σl²)/S + S;
///  - a decode round of B requests with contexts x_i: (a + b Σ(x_i + 1) + c B)/S;
///  - on the first stage 2 + 1e-4 Σ(l_i or x_i) more.
struct StageCosts {
  Abc prefill, decode_small, decode_large;
  /// From so many requests on a batch is decode_large's.
  int64_t decode_large_min_batch = 95;
};

/// What a batch may hold. A queue is taken from the head; the first request that does not fit ends
/// the batch, none is skipped.
struct BatchLimits {
  /// Prompt tokens of a prefill batch.
  int64_t prefill_tokens = 0;
  int64_t decode_requests = 0;
  /// Σ(x_i + 1) of a decode batch; the peer's constant.
  int64_t decode_context_tokens = 50'000;
};

enum class Mode {
  /// Prefill instances hand over to decode instances.
  kDisaggregated,
  /// As vLLM: instances do both, prefill first, never mixed; `prefill_*` describe them.
  kColocated,
  /// Requests leave when they are prefilled; no decode instances.
  kPrefillOnly,
  /// Requests arrive prefilled; no prefill instances.
  kDecodeOnly,
};

/// A placement. Instances and stages of a phase that the mode lacks are ignored.
struct Placement {
  Mode mode = Mode::kDisaggregated;
  int32_t prefill_instances = 1, decode_instances = 1;
  /// Pipeline stages of an instance.
  int32_t prefill_stages = 1, decode_stages = 1;
  StageCosts costs;
  BatchLimits limits;
};

struct Request {
  double arrival_ms = 0;
  int64_t prompt_tokens = 0;
  /// Decode rounds.
  int64_t output_tokens = 0;
};

/// Of each request, by its place in the input.
struct Latencies {
  /// End of prefill - arrival; 0 in kDecodeOnly.
  std::vector<double> ttft_ms;
  /// (finish - end of prefill, or arrival in kDecodeOnly) / output_tokens; 0 in kPrefillOnly.
  std::vector<double> tpot_ms;
  /// Absolute.
  std::vector<double> finish_ms;
};

/// Of first stages.
struct Counters {
  int64_t prefill_batches = 0, max_prefill_batch_requests = 0, max_prefill_batch_tokens = 0;
  int64_t decode_batches = 0, max_decode_batch_requests = 0;
};

struct Simulated {
  Latencies latencies;
  Counters counters;
};

/// Runs the requests to their end.
///
/// New requests go to the prefill instance with the fewest requests queued or in the batch of its
/// first stage; prefilled ones to the decode instance with the fewest queued (the batch does not
/// count); the first of equals. At one instant arrivals come first, then ends of batches in the
/// order in which they began: each hands over and at once forms its stage's next batch; then idle
/// stages that got work begin.
///
/// INVALID_ARGUMENT, naming the number and the limit, when a request could never run (the peer
/// loops forever there), when arrivals are not in order, or when coefficients give a time that is
/// negative or not finite.
absl::StatusOr<Simulated> Simulate(const Placement& placement, std::span<const Request> requests);

}  // namespace tandem::planner::compat
