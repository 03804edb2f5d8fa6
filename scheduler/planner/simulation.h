// A simulation under way, for simulator.cc (requests between router and workers, handoffs,
// failures) and simulated_steps.cc (what a worker does) alone.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <limits>
#include <queue>
#include <span>
#include <vector>

#include "scheduler/core/decode_policy.h"
#include "scheduler/core/prefill_policy.h"
#include "scheduler/core/turn_policy.h"
#include "scheduler/planner/random.h"
#include "scheduler/planner/simulator.h"

namespace tandem::planner {

/// One run of Simulate. Not thread-safe.
class Simulation {
 public:
  Simulation(std::span<const SimulatedWorker> workers, const LinkTable& links,
             std::span<const WorkloadRequest> workload, const SimulatorOptions& options);
  SimulationResult Run();

 private:
  using DecodeSequence = scheduler::DecodeSequence;
  using PromptProgress = scheduler::PromptProgress;
  using Index = uint32_t;
  static constexpr double kNever = std::numeric_limits<double>::infinity();
  static constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();

  /// Of a request's prompt: assigned → prompt waits → is computed → done. A request that lost its
  /// worker begins anew, with the tokens made as part of its prompt.
  enum class PromptState : uint8_t { kNone, kWaiting, kComputing, kDone };
  /// Of its sequence on the decode worker: waits for room → pulls (kPulling, kLastPiece) → joins
  /// the next step → runs, or is parked → ended.
  enum class SequenceState : uint8_t {
    kNone,
    kWaiting,
    kPulling,
    kPulled,
    kLastPiece,
    kJoining,
    kRunning,
    kParked,
    kEnded
  };

  struct Request {
    PromptProgress progress;
    PromptState prompt = PromptState::kNone;
    SequenceState sequence = SequenceState::kNone;
    /// Rises when the request begins anew: events of before are then void.
    uint16_t attempt = 0;
    Index prefill = 0, decode = 0;
    uint32_t generated = 0;
    uint32_t life_tokens = 0;
    bool flowing = false;
    LinkFlows::FlowId flow = 0;
    scheduler::AssignmentId assignment = 0;
    /// Negative: not yet.
    double begun_s = -1, first_s = -1;
    double prompt_end_s = 0, pull_begun_s = 0;
  };

  struct Running {
    /// The step of the worker after which it has all of its tokens.
    uint64_t last_step = 0;
    Index request = 0;
    /// What it has saved beyond what one would have that ran from time 0 on: the same at any time.
    double saved_s = 0;
    bool operator>(const Running& other) const {
      return last_step != other.last_step ? last_step > other.last_step : request > other.request;
    }
  };

  struct Worker {
    enum class Step : uint8_t { kNone, kPrefill, kDecode };

    SimulatedWorker spec;
    bool dead = false;
    Step step = Step::kNone;
    bool prefilled_last = false;
    /// Rises at a failure: ends of steps of before are void.
    uint32_t life = 0;

    std::deque<Index> waiting;
    std::vector<Index> prompts;
    std::vector<scheduler::PrefillPiece> pieces;
    uint64_t tokens_to_compute = 0;
    /// Of prompts begun here, until they are pulled (or run here).
    uint64_t prompt_kv_tokens = 0;

    std::deque<Index> asking;
    uint64_t asking_life = 0;
    std::vector<Index> joining, parked;
    /// A heap, the first to end on top.
    std::vector<Running> running;
    /// Those running, joining and pulling.
    scheduler::DecodeBatch batch;
    /// The least of the running ones' saved_s; NaN: not known.
    double least_saved_s = kNever;
    uint64_t running_context = 0, pulling_context = 0;
    uint64_t decode_steps = 0;
    scheduler::OutputLengthEstimate lengths;

    uint64_t KvTokens() const { return running_context + pulling_context + prompt_kv_tokens; }
  };

  struct Event {
    enum class Kind : uint8_t { kStep, kFlow, kKvHere, kReport, kFail, kBack };
    double at_s = 0;
    /// In the order in which they were made.
    uint64_t number = 0;
    Kind kind = Kind::kStep;
    /// Worker, flow or request; and its life, version or attempt.
    uint32_t subject = 0, version = 0;
    bool operator>(const Event& other) const {
      return at_s != other.at_s ? at_s > other.at_s : number > other.number;
    }
  };

  void Push(double at_s, Event::Kind kind, uint32_t subject, uint32_t version);
  void Handle(const Event& event);
  uint32_t PromptTokens(Index r) const {
    return workload_[r].prompt_tokens + requests_[r].generated;
  }
  uint32_t TokensLeft(Index r) const { return workload_[r].output_tokens - requests_[r].generated; }

  // Between router and workers (simulator.cc).
  void Report(Index w);
  scheduler::Work WorkOf(Index r) const;
  /// Gives requests to the workers in order of arrival, as long as those have room.
  void LetGo();
  /// Gives the request to workers. False when there are none, or when it `needs_room` and they have
  /// none for it.
  bool Dispatch(Index r, bool needs_room);
  void Assign(Index r, const scheduler::Work& work, const scheduler::Candidate& choice);
  /// All of its tokens are made.
  void Complete(Index r);
  /// It will not, or need not, get another token.
  void End(Index r);
  void Finish();

  // Handoffs (simulator.cc).
  void BeginFlow(Index r, uint32_t tokens);
  void PushDue();
  void EndFlow(LinkFlows::FlowId flow, uint32_t version);
  void PullLastPiece(Index r);
  void KvHere(Index r);

  // Failures (simulator.cc).
  void Fail(Index which);
  /// Takes the request off both of its workers; what it had generated it keeps.
  void Forget(Index r);
  void ForgetPrompt(Worker& worker, Index r);

  // What waits on a worker, and what it runs (simulated_steps.cc).
  DecodeSequence Sequence(Index r) const;
  scheduler::DecodeRoom Room(const Worker& worker) const;
  bool CanAdmit(const Worker& worker, Index r) const;
  void JoinBatch(Worker& worker, Index r);
  void LeaveBatch(Worker& worker, Index r);
  /// Whether the sequence stays where its prompt is computed.
  bool Stays(const Request& request) const { return request.prefill == request.decode; }
  void StartPrompts(Index w);
  void Ask(Index r);
  void EndPrompt(Index r);
  void JoinAtHome(Index r);
  /// Lets sequences in for which there is room now: those put aside first.
  void Admit(Index w);
  /// It takes part from the next step on.
  void Join(Index r);

  // Steps (simulated_steps.cc).
  void BeginStep(Index w);
  /// What a sequence would have saved that ran from time 0 on.
  double SavedByOldest(const Worker& worker) const;
  double LeastSaved(Worker& worker);
  void Leaves(Worker& worker, const Running& one);
  bool PrefillMayEnter(const Worker& worker, const scheduler::TurnState& turn) const;
  void BeginPrefillStep(Index w, double budget_s);
  void BeginDecodeStep(Index w);
  /// False when only one runs.
  bool Park(Worker& worker);
  uint32_t GeneratedBy(const Worker& worker, const Running& one) const;
  void Began(Index w, Worker::Step step, double seconds, uint32_t size);
  void EndStep(Index w);
  void EndPrefillStep(Worker& worker);
  void EndDecodeStep(Worker& worker);

  const SimulatorOptions& options_;
  const std::span<const WorkloadRequest> workload_;
  const LinkTable& links_;
  LinkFlows flows_;
  Random random_;
  scheduler::Dispatcher dispatcher_;
  const double wire_bytes_per_token_;
  std::vector<Request> requests_;
  std::vector<Worker> workers_;
  /// Requests in the router, which workers have no room for, in order of arrival; and those that
  /// are with workers.
  std::deque<Index> held_;
  uint32_t n_running_ = 0;
  /// Something has ended, or was reported, since the first of them was looked at.
  bool may_have_room_ = false;
  std::priority_queue<Event, std::vector<Event>, std::greater<>> events_;
  /// Events that are no reports.
  size_t n_effective_ = 0;
  uint64_t next_number_ = 0;
  double now_s_ = 0;
  /// Requests that have not ended.
  size_t open_ = 0;
  double expected_output_ = 0;
  uint32_t most_output_ = 1;
  double sum_queue_s_ = 0, sum_prefill_s_ = 0, sum_handoff_s_ = 0;
  SimulationResult result_;
  // Kept between calls for their memory.
  std::vector<PromptProgress*> progress_;
  std::vector<LinkFlows::Due> due_;
  std::vector<Index> done_;
};

}  // namespace tandem::planner
