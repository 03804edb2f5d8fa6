// Everything a worker tells Prometheus. Called by the prefill loop, the decode loop and the
// handoff on both sides; scraped through server/metrics_server.h. Families: docs/metrics.md.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace prometheus {
class Registry;
}

namespace tandem::workers {

struct WorkerMetricsOptions {
  std::string model_name;
  /// Unique among the workers of one registry.
  std::string worker_name;
  /// "prefill" or "decode".
  std::string phase;
  /// Longest sequence: the upper end of the histograms of tokens per request.
  uint32_t context_tokens = 0;
};

/// The state of a worker now, each with the limit that bounds it.
struct WorkerLoadValues {
  uint32_t running = 0;
  uint32_t waiting = 0;
  /// Most requests that may wait.
  uint32_t queue_limit = 0;
  uint64_t kv_used_tokens = 0;
  uint64_t kv_limit_tokens = 0;
  uint64_t handoff_held_bytes = 0;
  uint64_t handoff_limit_bytes = 0;
  /// Open data-plane connections.
  uint32_t connections = 0;
  /// Sequences whose KV was put aside, and its encoded bytes.
  uint32_t parked = 0;
  uint64_t parked_bytes = 0;
};

enum class HandoffDirection { kSend, kReceive };

/// Thread-safe. Every call is cheap: atomics and short locks, no allocation but for the first use
/// of a label value. Seconds are durations by one process's monotonic clock.
class WorkerMetrics {
 public:
  /// Adds this worker's metrics to `registry`, which several workers of one process may share
  /// (then each family is exposed once, with a series per worker).
  WorkerMetrics(std::shared_ptr<prometheus::Registry> registry, WorkerMetricsOptions options);
  ~WorkerMetrics();
  WorkerMetrics(const WorkerMetrics&) = delete;
  WorkerMetrics& operator=(const WorkerMetrics&) = delete;

  const std::shared_ptr<prometheus::Registry>& registry() const { return registry_; }

  /// Of this phase alone; under the names without a phase, of the `whole` worker.
  void SetLoad(const WorkerLoadValues& load, const WorkerLoadValues& whole);
  /// Once, at start: the KV cache's unit of reuse and how many of them fit.
  void SetCacheConfig(uint32_t chunk_tokens, uint64_t chunks);

  /// A request left the queue after `seconds`, either phase.
  void PrefillQueued(double seconds);
  void DecodeQueued(double seconds);
  /// A prompt is done: of `prompt_tokens`, `cached_tokens` were reused. `queue_seconds`: before
  /// its first step; `seconds`: first step to first token.
  void PrefillDone(uint32_t prompt_tokens, uint32_t cached_tokens, double queue_seconds,
                   double seconds);
  /// A sequence left the decode batch with `generated_tokens` made here. `queue_seconds`: arrival
  /// to first step, handoff included; `seconds`: first step to last token.
  void DecodeDone(uint32_t generated_tokens, double queue_seconds, double seconds);
  /// One forward pass over `tokens` prompt tokens.
  void PrefillStep(uint32_t tokens, double seconds);
  /// One forward pass that gave each of `sequences` a token. `seconds`: what they waited for it,
  /// i.e. since the end of the previous step, or the step alone when the batch was empty before.
  void DecodeStep(uint32_t sequences, double seconds);
  /// Tokens sampled, the first token of a request on the prefill worker included.
  void GeneratedTokens(uint32_t n);
  /// A request ended here, once each: "stop", "length", "cancelled", "handoff" (prefilled and
  /// pulled), "moved" (it goes on elsewhere) or "error"; other words count as "error".
  void RequestEnded(std::string_view finish);

  /// A sequence's KV was put aside to make room; a sequence with its KV was sent elsewhere.
  void Parked();
  void Moved();

  /// A sequence's KV has left whole, or arrived whole.
  void HandoffSent(uint64_t bytes, double seconds);
  void HandoffReceived(uint64_t bytes, double seconds);
  void HandoffFailed(HandoffDirection direction, absl::StatusCode code);
  /// Computed KV was dropped because nobody pulled it in time.
  void HandoffLeaseExpired();
  /// A request was refused: "queue_full", "draining", "invalid", "model"; other words count as
  /// "other".
  void Rejected(std::string_view reason);

 private:
  struct Families;
  const std::shared_ptr<prometheus::Registry> registry_;
  const std::unique_ptr<Families> families_;
};

}  // namespace tandem::workers
