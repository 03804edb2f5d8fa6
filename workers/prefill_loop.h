// The prefill loop: one thread that owns a prefill engine, batches waiting prompts first come
// first served (between tenants: fairly), publishes each chunk of KV as soon as it is computed, and
// samples first tokens. Called by the worker's gRPC service.
#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "base/clock.h"
#include "base/request_context.h"
#include "kvstore/transfer/transfer.h"
#include "scheduler/core/prefill_policy.h"
#include "scheduler/core/tenant_order.h"
#include "workers/engine/engine.h"
#include "workers/engine/sampler.h"
#include "workers/prefix_cache.h"
#include "workers/rate_meter.h"
#include "workers/retained.h"
#include "workers/turn_gate.h"
#include "workers/worker_load.h"
#include "workers/worker_metrics.h"
#include "workers/worker_speed.h"

namespace tandem::workers {

/// Where the KV of a prompt's tokens came from. See PromptCache in inference.proto.
struct PromptOrigins {
  uint32_t engine_tokens = 0;
  /// By kvstore::Origin.
  std::array<uint32_t, 4> loaded_tokens{};
  kvstore::Level level = kvstore::Level::kLossless;
  double saved_s = 0;

  uint32_t reused() const {
    return std::accumulate(loaded_tokens.begin(), loaded_tokens.end(), engine_tokens);
  }
};

struct FirstTokenResult {
  int32_t token = 0;
  /// Generation ends before this token.
  bool stop = false;
  /// First step, or first chunk loaded, to this token.
  double prefill_s = 0;
  PromptOrigins origins;
};

/// What happens to one prompt. Calls come from the loop's or the data plane's thread, in the
/// order of declaration, and must not block; Ended comes exactly once, last.
class PrefillEvents {
 public:
  virtual ~PrefillEvents() = default;
  /// The first step begins; the KV can be pulled from now on.
  virtual void Started(double queue_s) = 0;
  virtual void FirstToken(const FirstTokenResult& first) = 0;
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
  CacheWishes cache;
  /// As the router has numbered it, for LoopLoad.
  uint64_t id = 0;
  /// Of the tenant, against others'.
  double tenant_weight = 1;
  /// The caller can send it elsewhere while it waits here.
  bool can_move = false;
  std::shared_ptr<PrefillEvents> events;
};

/// All public members are thread-safe. A job's states:
///
///   waiting ── admitted: a free sequence, KV room, buffer room ──> computing
///   computing: chunks that are cached somewhere are taken over as they come, the others computed
///   computing ── last token's step ──> publishing (max_tokens > 1) or ended
///   publishing ── pulled, lease expired, puller lost ──> ended
///   waiting ── the worker gives its prompts back (GiveBackWaiting) ──> ended
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
    /// The coarsest level at which KV is handed over.
    kvstore::Level kv_floor = kvstore::Level::kLossless;
    /// Prompts computed at once; the engine's further sequences retain prompts that are done.
    uint32_t max_sequences = 8;
    /// How many tokens of shorter prompts may be computed before a longer one that came first; 0:
    /// strictly first come, first served.
    uint32_t overtake_tokens = 0;
  };
  /// Starts the thread. `cache` may be null; it, `server`, `gate`, `speed` and the metrics must
  /// outlive the loop.
  PrefillLoop(std::unique_ptr<Engine> engine, kvstore::HandoffServer* server, PrefixCache* cache,
              TurnGate* gate, WorkerSpeed* speed, WorkerMetrics* metrics, KvMetrics* kv_metrics,
              Options options);
  /// REQUIRES: every job has ended (see Drain in worker.h), or Stop was called.
  ~PrefillLoop();

  /// Queues a job. INVALID_ARGUMENT when the prompt cannot be computed here, RESOURCE_EXHAUSTED
  /// when the queue is full; then the job's events are never called.
  absl::Status Submit(PrefillJob job);
  LoopLoad load() const;
  const Engine& engine() const { return *engine_; }
  /// Ends the jobs that wait and can be moved with UNAVAILABLE, for the router to send elsewhere.
  void GiveBackWaiting(std::string_view why);
  /// Closed: Submit refuses with UNAVAILABLE, saying why. Open again with an empty text.
  void SetClosed(std::string why);
  /// Ends every job that waits or computes with UNAVAILABLE and stops the thread.
  void Stop();

 private:
  struct Active {
    PrefillJob job;
    scheduler::TenantOrder::Place place;
    Stopwatch since_queued;
    Stopwatch since_started;
    double queue_s = 0;
    int32_t sequence = 0;
    uint32_t computed = 0;     // tokens whose step is done
    uint32_t published = 0;    // tokens handed to the publication
    uint32_t in_step = 0;      // tokens in the step being run
    uint32_t may_compute = 0;  // tokens up to which nothing is waited for
    scheduler::PromptProgress progress;
    uint64_t reserved_bytes = 0;
    std::shared_ptr<kvstore::Publication> publication;
    // Of its whole chunks; those from the cache need not be kept again.
    std::vector<kvstore::ChunkId> ids;
    std::vector<bool> from_cache;
    std::shared_ptr<kvstore::ContextLoad> load;
    double waited_s = 0;  // for chunks on their way, with nothing else to do
    PromptOrigins origins;
  };
  using ActiveList = std::list<std::unique_ptr<Active>>;

  void Run();
  // The parts of one iteration, in order; all on the loop's thread.
  bool WaitForWork();
  // What load() tells of the loop.
  void PublishLoad();
  void AdmitWaiting();
  void Start(std::unique_ptr<Active> active);
  void DropCancelled();
  void ComputeStep();
  // What the next step computes, in `items` and `owners`; its tokens.
  uint32_t PlanStep(std::vector<Engine::StepItem>& items, std::vector<Active*>& owners);
  // Waits for the engine for a while: see TurnGate. True: it is this loop's turn.
  bool AwaitTurn();
  // When every prompt waits for chunks on their way.
  void AwaitProgress();
  void FinishPrompt(Active& active, size_t item);
  absl::Status PublishComputed(Active& active, bool last);
  // Takes the job out of `computing_`; its KV in the engine is freed, or retained.
  std::unique_ptr<Active> Remove(Active& active, bool retain);

  // Reuse (prefill_reuse.cc).
  // Looks for the prompt's prefix: in the engine, then in the cache.
  void FindPrefix(Active& active);
  // Takes over the chunks that have come, and finds out how far may be computed.
  absl::Status Advance(Active& active);
  absl::Status TakeChunk(Active& active, size_t index);
  // Of tokens from position `first` on, alone; 0: not measured.
  double ComputeSeconds(size_t first, size_t n_tokens) const;
  // What computing a chunk takes, with the engine's other work considered.
  kvstore::TextCost ChunkCost() const;
  // Drops retained prompts until a sequence is free and all that is being computed fits, `newest`
  // with `n_tokens` more.
  void MakeRoom(const Active* newest, uint64_t n_tokens);
  bool Retain(Active& active);
  void CountOrigins(const Active& active);
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
  PrefixCache* const cache_;
  TurnGate* const gate_;
  WorkerSpeed* const speed_;
  WorkerMetrics* const metrics_;
  KvMetrics* const kv_metrics_;
  const Options options_;
  const Stopwatch clock_;  // for order_

  // The loop thread's own.
  ActiveList computing_;  // by rising tag
  std::vector<int32_t> free_sequences_;
  RetainedPrompts retained_;
  uint64_t kv_reserved_tokens_ = 0;

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  // Guarded by mutex_.
  std::deque<std::unique_ptr<Active>> waiting_;  // by rising tag
  scheduler::TenantOrder order_;
  uint64_t buffer_reserved_bytes_ = 0;
  uint32_t unfinished_ = 0;
  LoopLoad published_load_;
  mutable RateMeter rate_;
  bool progress_ = false;  // a chunk has come, or the like
  std::string closed_;     // why; empty while it is open
  bool stopping_ = false;

  std::thread thread_;
};

}  // namespace tandem::workers
