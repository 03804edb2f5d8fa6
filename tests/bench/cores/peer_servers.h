// llama.cpp's own servers behind a balancer, simulated: what Tandem is compared with. Written for
// the benchmark alone, without any of Tandem's policies.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "scheduler/core/latency_model.h"
#include "scheduler/planner/workload.h"

namespace tandem::bench {

struct PeerOptions {
  uint32_t servers = 2;
  /// Slots of a server; who finds none waits.
  uint32_t sequences = 8;
  /// Tokens of a step at most (`-b`, `-ub`).
  uint32_t step_tokens = 512;
  /// Steps of prompts alone and steps of sequences alone, in turn, instead of both in one.
  bool by_turns = false;
};

struct PeerLatencies {
  /// Of each request: seconds to the first token, and mean seconds a token after it (0 for none).
  std::vector<double> ttft_s, tpot_s;
};

/// Serves the requests, which must be in order of arrival. Each goes to the server with the fewest,
/// in turn among equals. A server's step takes a token of each sequence that is being decoded, and
/// prompts in order of arrival up to its limit: it costs what a prefill step over all these tokens
/// does, and the reading of the sequences' KV; without prompts, what a decode step costs. Pure and
/// deterministic.
PeerLatencies ServeByPeer(std::span<const planner::WorkloadRequest> workload,
                          const scheduler::LatencyModel& latency, const PeerOptions& options);

}  // namespace tandem::bench
