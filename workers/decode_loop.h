// The decode loop: one thread that owns a decode engine. It pulls a sequence's KV when there is
// room for the sequence, and runs all sequences that are here in one step per token; they join
// and leave between steps. Called by the worker's gRPC service.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
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

enum class DecodeFinish { kStop, kLength };

struct DecodeTimes {
  double queue_s = 0;
  double handoff_s = 0;
  double decode_s = 0;
  uint64_t handoff_bytes = 0;
};

/// What happens to one sequence. Calls come from the loop's thread and must not block; exactly
/// one of Finished and Failed comes, last.
class DecodeEvents {
 public:
  virtual ~DecodeEvents() = default;
  virtual void Token(int32_t token) = 0;
  virtual void Finished(DecodeFinish reason, const DecodeTimes& times) = 0;
  virtual void Failed(absl::Status status) = 0;
};

struct DecodeJob {
  RequestContextPtr context;
  std::vector<int32_t> prompt_tokens;
  SamplingOptions sampling;
  /// Tokens in all; the first comes with the KV. REQUIRES: ≥ 2, and they fit the context.
  uint32_t max_tokens = 0;
  std::string data_address, handoff_id;
  std::shared_ptr<DecodeEvents> events;
};

/// All public members are thread-safe. A job's states:
///
///   waiting ── one of max_sequences places is free ──> pulling
///   pulling ── KV complete ──> arrived ── between two steps ──> running
///   running ── stop token, max_tokens ──> ended
///   any ── cancelled, deadline, handoff failed ──> ended
class DecodeLoop {
 public:
  struct Options {
    /// Waiting requests at most; one more is refused.
    uint32_t max_queued = 256;
  };
  /// Starts the thread. `client` and `metrics` must outlive the loop.
  DecodeLoop(std::unique_ptr<Engine> engine, kvstore::HandoffClient* client, WorkerMetrics* metrics,
             Options options);
  /// REQUIRES: every job has ended, or Stop was called after the client's Stop.
  ~DecodeLoop();

  /// Queues a job. INVALID_ARGUMENT when it does not fit the context, RESOURCE_EXHAUSTED when
  /// the queue is full; then the job's events are never called.
  absl::Status Submit(DecodeJob job);
  LoopLoad load() const;
  /// Ends every job with UNAVAILABLE, waits for pulls in progress to end, stops the thread.
  void Stop();

 private:
  struct Sequence {
    DecodeJob job;
    Stopwatch since_queued;
    Stopwatch since_pull;
    Stopwatch since_joined;
    DecodeTimes times;
    std::unique_ptr<Engine::IncomingKv> kv;
    absl::StatusOr<kvstore::HandoffClient::Result> pulled;
    std::unique_ptr<Sampler> sampler;
    int32_t last_token = 0;
    uint32_t generated = 0;
  };
  using SequencePtr = std::unique_ptr<Sequence>;

  void Run();
  // The parts of one iteration, in order; all on the loop's thread.
  bool WaitForWork();
  void AdmitWaiting();
  void StartPull(SequencePtr sequence);
  void JoinArrived();
  absl::Status Join(Sequence& sequence, int32_t slot);
  void DropCancelled();
  void CompactSlots();
  void ComputeStep();
  // True: the sequence goes on.
  bool TakeToken(Sequence& sequence, int32_t token);

  void EndRunning(size_t slot, absl::Status status);
  void Fail(Sequence& sequence, absl::Status status);
  void Finish(Sequence& sequence, DecodeFinish reason);
  void CountEnded(const char* word);

  const std::unique_ptr<Engine> engine_;
  kvstore::HandoffClient* const client_;
  WorkerMetrics* const metrics_;
  const Options options_;

  // The loop thread's own. The index is the engine's sequence id; holes are null, and closed
  // before every step, since libllama is fastest with contiguous ids.
  std::vector<SequencePtr> running_;
  Stopwatch since_step_;
  bool stepped_last_ = false;  // since_step_ tells how long the batch has waited for its step

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  // Guarded by mutex_.
  std::deque<SequencePtr> waiting_;
  std::vector<SequencePtr> arrived_;
  uint32_t pulling_ = 0;
  uint64_t pulling_tokens_ = 0;
  uint32_t running_count_ = 0;
  uint64_t running_tokens_ = 0;
  uint32_t unfinished_ = 0;
  mutable RateMeter rate_;
  bool stopping_ = false;

  std::thread thread_;
};

}  // namespace tandem::workers
