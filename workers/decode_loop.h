// The decode loop: one thread that owns a decode engine. It pulls a sequence's KV when there is
// room for what the sequence will probably need, and runs all sequences that are here in one step
// per token; they join and leave between steps. Called by the worker's gRPC service.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "base/clock.h"
#include "base/request_context.h"
#include "kvstore/transfer/transfer.h"
#include "scheduler/core/decode_policy.h"
#include "workers/engine/engine.h"
#include "workers/engine/sampler.h"
#include "workers/parking_lot.h"
#include "workers/rate_meter.h"
#include "workers/turn_gate.h"
#include "workers/worker_load.h"
#include "workers/worker_metrics.h"
#include "workers/worker_speed.h"

namespace tandem::workers {

enum class DecodeFinish { kStop, kLength };

struct DecodeTimes {
  double queue_s = 0;
  double handoff_s = 0;
  double decode_s = 0;
  uint64_t handoff_bytes = 0;
};

/// What happens to one sequence. Calls come from the loop's or the data plane's thread and must not
/// block; exactly one of Finished, Failed and Released comes, last.
class DecodeEvents {
 public:
  virtual ~DecodeEvents() = default;
  virtual void Token(int32_t token) = 0;
  /// All sequences have their tokens of this step.
  virtual void StepEnds() = 0;
  virtual void Finished(DecodeFinish reason, const DecodeTimes& times) = 0;
  virtual void Failed(absl::Status status) = 0;
  /// The sequence has to leave this worker. Its KV can be pulled here under `handoff_id`, or, when
  /// that is empty, is still where this worker should have pulled it from.
  virtual void Moving(const std::string& handoff_id, const std::string& why,
                      const DecodeTimes& times) = 0;
  /// After Moving: nothing of it is here any more. OK when its KV was pulled, or never was here.
  virtual void Released(absl::Status status) = 0;
};

struct DecodeJob {
  RequestContextPtr context;
  std::vector<int32_t> prompt_tokens;
  SamplingOptions sampling;
  /// Tokens in all; the first comes with the KV. REQUIRES: ≥ 2, and they fit the context.
  uint32_t max_tokens = 0;
  std::string data_address, handoff_id;
  /// As the router has numbered it, for LoopLoad.
  uint64_t id = 0;
  /// The caller can go on elsewhere after Moving.
  bool can_move = false;
  std::shared_ptr<DecodeEvents> events;
};

/// All public members are thread-safe. A job's states:
///
///   waiting ── a free place, and KV room for its expected life ──> pulling
///   waiting ── for too long ──> pulling, without a place
///   pulling ── KV complete ──> arrived
///   arrived ── between two steps ──> running; without a place ──> parked
///   running ── stop token, max_tokens ──> ended
///   running ── the KV of all exceeds the budget, and it is the youngest ──> parked
///   parked ── a place and room ──> returning ── KV back ──> arrived
///   waiting ── the loop is left (Leave) ──> ended, given back with its KV where it was
///   parked ── the loop is left ──> returning
///   running ── the loop is left, room in the handoff buffer ──> moving
///   moving ── KV pulled, lease expired ──> ended
///   any ── cancelled, deadline, handoff failed ──> ended
///
/// A sequence that comes back with the handoff id under which it left stays until it ends.
class DecodeLoop {
 public:
  struct Options {
    /// Waiting requests at most; one more is refused.
    uint32_t max_queued = 256;
    /// Tokens of KV for all running sequences; 0: what the engine has.
    uint64_t kv_tokens = 0;
    /// How long sequences may wait for their next token: more are not admitted than that permits.
    absl::Duration tpot_objective = absl::Milliseconds(100);
    /// A sequence that has waited so long for a place is pulled and parked, so that its KV does not
    /// expire at the prefill worker.
    absl::Duration longest_wait = absl::Seconds(10);
    /// For sequences that leave.
    uint32_t chunk_tokens = 256;
    uint64_t handoff_buffer_bytes = 1 << 30;
  };
  /// What the loop works with; all must outlive it.
  struct Parts {
    kvstore::HandoffClient* client = nullptr;
    kvstore::HandoffServer* server = nullptr;
    ParkingLot* lot = nullptr;
    TurnGate* gate = nullptr;
    WorkerSpeed* speed = nullptr;
    WorkerMetrics* metrics = nullptr;
  };
  /// Starts the thread.
  DecodeLoop(std::unique_ptr<Engine> engine, const Parts& parts, Options options);
  /// REQUIRES: every job has ended, or Stop was called after the client's Stop.
  ~DecodeLoop();

  /// Queues a job. INVALID_ARGUMENT when it does not fit the context, RESOURCE_EXHAUSTED when the
  /// queue is full; then the job's events are never called.
  absl::Status Submit(DecodeJob job);
  LoopLoad load() const;
  const Engine& engine() const { return *engine_; }
  /// Sends every sequence away that can go, those that come later too, but for those that come
  /// back.
  void Leave(std::string why);
  /// Takes sequences again. What has left stays away.
  void Stay();
  /// Ends every job with UNAVAILABLE, waits for pulls in progress to end, stops the thread.
  void Stop();

 private:
  struct Sequence {
    DecodeJob job;
    double arrival_s = 0;  // by the loop's clock; parking keeps it
    Stopwatch since_queued;
    Stopwatch since_pull;
    Stopwatch since_joined;
    DecodeTimes times;
    std::unique_ptr<Engine::IncomingKv> kv;
    absl::StatusOr<kvstore::HandoffClient::Result> pulled;
    absl::Status returned;
    ParkedKvPtr parked;
    std::unique_ptr<Sampler> sampler;  // since its first arrival
    int32_t last_token = 0;
    uint32_t generated = 0;
    /// Taken into account while its KV is on its way: tokens that it will need, and a place.
    uint64_t expected_tokens = 0;
    bool has_place = false;
    bool stays = false;

    uint32_t kv_tokens() const {
      return static_cast<uint32_t>(job.prompt_tokens.size()) + (generated > 0 ? generated - 1 : 0);
    }
    scheduler::DecodeSequence ForPolicy() const {
      return {.arrival_s = arrival_s,
              .context_tokens = kv_tokens(),
              .generated = generated,
              .max_tokens = job.max_tokens};
    }
  };
  using SequencePtr = std::unique_ptr<Sequence>;
  // Requests outlive the loop: their cancellation finds it through this.
  struct Alarm {
    std::mutex mutex;
    DecodeLoop* loop = nullptr;  // guarded by mutex; null once the loop ends
  };

  void Run();
  // The parts of one iteration, in order; all on the loop's thread.
  bool WaitForWork();
  // For load(); returns how many sequences run.
  uint32_t PublishLoad();
  void DropDead();
  void JoinArrived();
  // An arrived one joins the batch, or is parked, or ends.
  void Take(SequencePtr sequence);
  absl::Status Welcome(Sequence& sequence);
  void CompactSlots();
  void ComputeStep();
  void SampleAll();
  // True: the sequence goes on.
  bool TakeToken(Sequence& sequence, int32_t token);

  // Room (decode_room.cc).
  void GiveBackWaiting();
  void BringBack();
  void AdmitWaiting();
  void ParkForRoom();
  void MoveAway();
  // A place, and KV for its expected life; always when nobody else is here.
  bool Fits(const Sequence& sequence) const;
  uint64_t ExpectedTokens(const Sequence& sequence) const;
  scheduler::DecodeRoom Room() const;
  void StartPull(SequencePtr sequence);
  void StartReturn(SequencePtr sequence);
  void Arrive(Sequence* sequence);
  void Park(SequencePtr sequence, absl::StatusOr<std::vector<kvstore::KvChunk>> chunks);
  void Publish(SequencePtr sequence, std::vector<kvstore::KvChunk> chunks);
  void OnReleased(Sequence& sequence, const std::string& handoff_id, absl::Status outcome,
                  const kvstore::HandoffStats& stats);

  void EndRunning(size_t slot, absl::Status status);
  void Fail(Sequence& sequence, absl::Status status);
  void Finish(Sequence& sequence, DecodeFinish reason);
  void CountEnded(const Sequence& sequence, const char* word);
  // There is something to look at. mutex_ is held.
  void Wake();

  const std::unique_ptr<Engine> engine_;
  const Parts parts_;
  const Options options_;
  const std::shared_ptr<Alarm> alarm_ = std::make_shared<Alarm>();

  // The loop thread's own. The index is the engine's sequence id; holes are null, and closed
  // before every step, since libllama is fastest with contiguous ids.
  std::vector<SequencePtr> running_;
  std::vector<SequencePtr> parked_;
  std::vector<std::string> joined_;  // handoffs of those that have arrived since the last step
  scheduler::OutputLengthEstimate lengths_;
  const Stopwatch clock_;
  Stopwatch since_step_;
  bool stepped_last_ = false;  // since_step_ tells how long the batch has waited for its step

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  // Guarded by mutex_.
  std::deque<SequencePtr> waiting_;
  std::vector<SequencePtr> arrived_;
  // On their way, or arrived and not yet taken.
  uint32_t coming_ = 0, coming_places_ = 0;
  uint64_t coming_tokens_ = 0, coming_expected_ = 0;
  LoopLoad published_load_;
  std::vector<LoopLoad::Job> jobs_;   // unfinished ones
  std::string leaving_;               // why; empty while it stays
  std::set<std::string> moved_away_;  // handoff ids whose KV is still here
  bool news_ = false;                 // since the loop looked last
  mutable RateMeter rate_;
  bool stopping_ = false;

  std::thread thread_;
};

}  // namespace tandem::workers
