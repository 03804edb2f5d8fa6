// The prefill loop: one thread that owns a prefill engine, batches waiting prompts first come
// first served, publishes each chunk of KV as soon as it is computed, and samples first tokens.
// Called by the worker's gRPC service.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "base/clock.h"
#include "base/request_context.h"
#include "kvstore/transfer/transfer.h"
#include "workers/engine/engine.h"
#include "workers/engine/sampler.h"
#include "workers/rate_meter.h"
#include "workers/worker_load.h"
#include "workers/worker_metrics.h"

namespace tandem::workers {

/// What happens to one prompt. Calls come from the loop's or the data plane's thread, in the
/// order of declaration, and must not block; Ended comes exactly once, last.
class PrefillEvents {
 public:
  virtual ~PrefillEvents() = default;
  /// The first step begins; the KV can be pulled from now on.
  virtual void Started(double queue_s) = 0;
  /// `stop`: generation ends before this token.
  virtual void FirstToken(int32_t token, bool stop, double prefill_s) = 0;
  /// OK: the KV was pulled (`bytes` of it), or none was to be published.
  virtual void Ended(absl::Status status, uint64_t bytes) = 0;
};

struct PrefillJob {
  RequestContextPtr context;
  std::vector<int32_t> tokens;
  SamplingOptions sampling;
  /// 1: the first token is all; no KV is published.
  uint32_t max_tokens = 0;
  std::string handoff_id;
  std::shared_ptr<PrefillEvents> events;
};

/// All public members are thread-safe. A job's states:
///
///   waiting ── admitted: a free sequence, KV room, buffer room ──> computing
///   computing ── last token's step ──> publishing (max_tokens > 1) or ended
///   publishing ── pulled, lease expired, puller lost ──> ended
///   any ── cancelled, deadline ──> ended
class PrefillLoop {
 public:
  struct Options {
    /// Waiting requests at most; one more is refused.
    uint32_t max_queued = 256;
    /// Tokens per chunk of published KV.
    uint32_t chunk_tokens = 256;
    /// Bytes of published KV held at most. A prompt starts only when all of its KV fits.
    uint64_t handoff_buffer_bytes = 1 << 30;
  };
  /// Starts the thread. `server` and `metrics` must outlive the loop.
  PrefillLoop(std::unique_ptr<Engine> engine, kvstore::HandoffServer* server,
              WorkerMetrics* metrics, Options options);
  /// REQUIRES: every job has ended (see Drain in worker.h), or Stop was called.
  ~PrefillLoop();

  /// Queues a job. INVALID_ARGUMENT when the prompt cannot be computed here, RESOURCE_EXHAUSTED
  /// when the queue is full; then the job's events are never called.
  absl::Status Submit(PrefillJob job);
  LoopLoad load() const;
  /// Ends every job that waits or computes with UNAVAILABLE and stops the thread.
  void Stop();

 private:
  struct Active {
    PrefillJob job;
    Stopwatch since_queued;
    Stopwatch since_started;
    double queue_s = 0;
    int32_t sequence = 0;
    uint32_t computed = 0;   // tokens whose step is done
    uint32_t published = 0;  // tokens handed to the publication
    uint32_t in_step = 0;    // tokens in the step being run
    uint64_t reserved_bytes = 0;
    std::shared_ptr<kvstore::Publication> publication;
  };
  using ActiveList = std::list<std::unique_ptr<Active>>;

  void Run();
  // The parts of one iteration, in order; all on the loop's thread.
  bool WaitForWork();
  void AdmitWaiting();
  void Start(std::unique_ptr<Active> active);
  void DropCancelled();
  void ComputeStep();
  void FinishPrompt(Active& active, size_t item);
  absl::Status PublishComputed(Active& active, bool last);
  // Takes the job out of `computing_` and frees its KV in the engine.
  std::unique_ptr<Active> Remove(Active& active);
  // Removes the job and ends it.
  void Fail(Active& active, const absl::Status& status);

  void OnReleased(const RequestContext& context, PrefillEvents& events, uint64_t reserved_bytes,
                  absl::Status outcome, const kvstore::HandoffStats& stats);
  // `finish`: WorkerMetrics' word for the end when the status is OK.
  void EndJob(PrefillEvents& events, const absl::Status& status, uint64_t bytes,
              std::string_view finish);
  uint64_t BytesFor(const PrefillJob& job) const;

  const std::unique_ptr<Engine> engine_;
  kvstore::HandoffServer* const server_;
  WorkerMetrics* const metrics_;
  const Options options_;

  // The loop thread's own.
  ActiveList computing_;
  std::vector<int32_t> free_sequences_;
  uint64_t kv_reserved_tokens_ = 0;

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  // Guarded by mutex_.
  std::deque<std::unique_ptr<Active>> waiting_;
  uint64_t buffer_reserved_bytes_ = 0;
  uint32_t unfinished_ = 0;
  LoopLoad published_load_;
  mutable RateMeter rate_;
  bool stopping_ = false;

  std::thread thread_;
};

}  // namespace tandem::workers
