// What a loop tells about its load; reported to routers and exported as metrics.
#pragma once

#include <cstdint>
#include <vector>

namespace tandem::workers {

/// See WorkerLoad and PhaseLoad in proto/tandem/v1/cluster.proto for the meaning of each.
struct LoopLoad {
  struct Job {
    uint64_t id = 0;
    uint32_t tokens_to_compute = 0;
  };
  uint32_t running = 0;
  uint32_t waiting = 0;
  uint64_t waiting_tokens = 0;
  uint64_t tokens_to_compute = 0;
  uint64_t kv_used_tokens = 0;
  uint64_t kv_capacity_tokens = 0;
  uint64_t kv_expected_tokens = 0;
  uint32_t max_sequences = 0;
  uint32_t parked = 0;
  uint64_t parked_bytes = 0;
  double tokens_per_s = 0;
  uint64_t steps = 0;
  std::vector<Job> jobs;
  /// Requests that the loop owes an end, in whatever state; 0 means that it can be stopped.
  uint32_t unfinished = 0;
};

}  // namespace tandem::workers
