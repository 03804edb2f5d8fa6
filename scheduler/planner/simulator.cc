#include "scheduler/planner/simulator.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <queue>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "scheduler/core/decode_policy.h"
#include "scheduler/core/prefill_policy.h"
#include "scheduler/core/turn_policy.h"
#include "scheduler/planner/random.h"

namespace tandem::planner {
namespace {

using scheduler::DecodeSequence;
using scheduler::PromptProgress;
using Index = uint32_t;

constexpr double kNever = std::numeric_limits<double>::infinity();
constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();
/// The least piece between decode steps that dispatch counts with (as Dispatcher::Options).
constexpr uint32_t kMinPieceTokens = 32;

/// Of a request's prompt: assigned → prompt waits → is computed → done. A request that lost its
/// worker begins anew, with the tokens made as part of its prompt.
enum class PromptState : uint8_t { kNone, kWaiting, kComputing, kDone };
/// Of its sequence on the decode worker: waits for room → pulls (kPulling, kLastPiece) → joins the
/// next step → runs, or is parked → ended.
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

class Simulation {
 public:
  Simulation(std::span<const SimulatedWorker> workers, const LinkTable& links,
             std::span<const WorkloadRequest> workload, const SimulatorOptions& options)
      : options_(options),
        workload_(workload),
        links_(links),
        flows_(links),
        random_(options.seed),
        dispatcher_({.ttft_objective_s = options.ttft_slo_s,
                     .tpot_objective_s = options.tpot_slo_s,
                     .chunk_tokens = kChunkTokens,
                     .min_piece_tokens = kMinPieceTokens}),
        wire_bytes_per_token_(options.kv_bytes_per_token * options.wire_share),
        requests_(workload.size()) {
    result_.ttft_s.assign(workload.size(), kNever);
    result_.tpot_s.assign(workload.size(), kNever);
    result_.workers.resize(workers.size());
    for (const SimulatedWorker& spec : workers) {
      workers_.push_back({.spec = spec});
      dispatcher_.Add();
    }
    for (Index a = 0; a < workers.size(); ++a) {
      for (Index b = 0; b < workers.size(); ++b) {
        if (a != b) dispatcher_.SetLink(a, b, links.Between(workers[a].node, workers[b].node));
      }
    }
    for (const WorkloadRequest& request : workload) {
      expected_output_ +=
          static_cast<double>(request.output_tokens) / static_cast<double>(workload.size());
      most_output_ = std::max(most_output_, request.output_tokens);
    }
  }

  SimulationResult Run() {
    for (Index w = 0; w < workers_.size(); ++w) {
      Report(w);
      // Spread, as real ones are.
      const double share = static_cast<double>(w + 1) / static_cast<double>(workers_.size());
      Push(options_.report_interval_s * share, Event::Kind::kReport, w, 0);
    }
    for (Index i = 0; i < options_.failures.size(); ++i) {
      Push(options_.failures[i].at_s, Event::Kind::kFail, i, 0);
    }
    size_t arrived = 0;
    open_ = requests_.size();
    // Nothing will change any more when only reports are left.
    while (open_ > 0 && (arrived < requests_.size() || n_effective_ > 0)) {
      if (arrived < requests_.size() &&
          (events_.empty() || workload_[arrived].arrival_s <= events_.top().at_s)) {
        now_s_ = workload_[arrived].arrival_s;
        held_.push_back(static_cast<Index>(arrived++));
        LetGo();
        continue;
      }
      const Event event = events_.top();
      events_.pop();
      n_effective_ -= event.kind != Event::Kind::kReport;
      now_s_ = event.at_s;
      Handle(event);
      if (std::exchange(may_have_room_, false)) LetGo();
    }
    Finish();
    return std::move(result_);
  }

 private:
  void Push(double at_s, Event::Kind kind, uint32_t subject, uint32_t version) {
    n_effective_ += kind != Event::Kind::kReport;
    events_.push({.at_s = at_s,
                  .number = next_number_++,
                  .kind = kind,
                  .subject = subject,
                  .version = version});
  }

  void Handle(const Event& event) {
    switch (event.kind) {
      case Event::Kind::kStep:
        if (workers_[event.subject].life == event.version) EndStep(event.subject);
        return;
      case Event::Kind::kFlow:
        EndFlow(event.subject, event.version);
        return;
      case Event::Kind::kKvHere:
        if (requests_[event.subject].attempt == event.version) KvHere(event.subject);
        return;
      case Event::Kind::kReport:
        Report(event.subject);
        Push(now_s_ + options_.report_interval_s, Event::Kind::kReport, event.subject, 0);
        return;
      case Event::Kind::kFail:
        Fail(event.subject);
        return;
      case Event::Kind::kBack:
        workers_[event.subject].dead = false;
        Report(event.subject);
        return;
    }
  }

  // ---------------------------------------------------------------- dispatch

  uint32_t PromptTokens(Index r) const {
    return workload_[r].prompt_tokens + requests_[r].generated;
  }
  uint32_t TokensLeft(Index r) const { return workload_[r].output_tokens - requests_[r].generated; }

  void Report(Index w) {
    Worker& worker = workers_[w];
    if (worker.dead) return;
    const WorkerSpeed& speed = worker.spec.speed;
    const auto context =
        static_cast<uint32_t>(worker.running_context / std::max<size_t>(1, worker.running.size()));
    dispatcher_.Report(
        w,
        {.takes_prefill = worker.spec.phase != Phase::kDecode || options_.prefill_on_decode,
         .takes_decode = worker.spec.phase != Phase::kPrefill,
         .decode_first = worker.spec.phase == Phase::kDecode,
         .tokens_to_compute = worker.tokens_to_compute,
         .decode_running = static_cast<uint32_t>(worker.running.size() + worker.joining.size()),
         .decode_waiting = static_cast<uint32_t>(worker.asking.size() + worker.parked.size()) +
                           worker.batch.n_sequences -
                           static_cast<uint32_t>(worker.running.size() + worker.joining.size()),
         .max_sequences = scheduler::StepLimit(Room(worker), speed.latency.decode, context),
         .kv_used_tokens = worker.running_context,
         .kv_expected_tokens = worker.batch.life_tokens + worker.asking_life,
         .kv_capacity_tokens = speed.kv_capacity_tokens,
         .latency = speed.latency},
        now_s_);
    may_have_room_ = true;
  }

  scheduler::Work WorkOf(Index r) const {
    scheduler::Work work;
    work.prompt_tokens = PromptTokens(r);
    work.expected_output_tokens =
        static_cast<uint32_t>(std::max(1.0, std::round(expected_output_)));
    work.needs_decode = TokensLeft(r) > 1;
    work.kv_bytes_per_token = wire_bytes_per_token_;
    work.waited_s = now_s_ - workload_[r].arrival_s;
    return work;
  }

  /// Gives requests to the workers in order of arrival, as long as those have room.
  void LetGo() {
    while (!held_.empty() && Dispatch(held_.front(), n_running_ > 0)) held_.pop_front();
  }

  /// Gives the request to workers. False when there are none, or when it `needs_room` and they have
  /// none for it.
  bool Dispatch(Index r, bool needs_room) {
    const scheduler::Work work = WorkOf(r);
    const auto decision = dispatcher_.Choose(work, now_s_, random_);
    if (!decision.ok()) return false;
    if (needs_room &&
        !scheduler::HasRoom(decision->choice, options_.dispatch_ahead_steps, options_.tpot_slo_s)) {
      return false;
    }
    Assign(r, work, decision->choice);
    return true;
  }

  void Assign(Index r, const scheduler::Work& work, const scheduler::Candidate& choice) {
    ++n_running_;
    Request& request = requests_[r];
    request.prefill = choice.prefill;
    request.decode = work.needs_decode ? choice.decode : request.prefill;
    Worker& worker = workers_[request.prefill];
    const uint64_t whole = uint64_t{work.prompt_tokens} + TokensLeft(r);
    if (whole > worker.spec.speed.kv_capacity_tokens ||
        whole > workers_[request.decode].spec.speed.kv_capacity_tokens) {
      End(r);
      return;
    }
    request.assignment = dispatcher_.Assign(work, choice, now_s_);
    ++result_.pairs[{request.prefill, request.decode}];
    request.begun_s = -1;
    request.prompt = PromptState::kWaiting;
    request.sequence = SequenceState::kNone;
    const uint32_t cached = std::min(workload_[r].cached_tokens, work.prompt_tokens - 1);
    request.progress = {.total_tokens = work.prompt_tokens,
                        .computed_tokens = cached,
                        .may_compute_tokens = work.prompt_tokens};
    worker.tokens_to_compute += work.prompt_tokens - cached;
    worker.waiting.push_back(r);
    StartPrompts(request.prefill);
  }

  /// It will not, or need not, get another token.
  void End(Index r) {
    requests_[r].prompt = PromptState::kDone;
    requests_[r].sequence = SequenceState::kEnded;
    --open_;
    --n_running_;
    may_have_room_ = true;
    result_.end_s = std::max(result_.end_s, now_s_);
  }

  // ---------------------------------------------------------------- prefill

  DecodeSequence Sequence(Index r) const {
    return {.arrival_s = workload_[r].arrival_s,
            .context_tokens = PromptTokens(r),
            .generated = requests_[r].generated,
            .max_tokens = std::max(most_output_, requests_[r].generated + 1)};
  }

  scheduler::DecodeRoom Room(const Worker& worker) const {
    return {.kv_capacity_tokens = worker.spec.speed.kv_capacity_tokens,
            .max_sequences = worker.spec.speed.max_sequences,
            .tpot_objective_s = options_.tpot_slo_s};
  }

  bool CanAdmit(const Worker& worker, Index r) const {
    return scheduler::CanAdmit(Room(worker), worker.batch, Sequence(r), worker.lengths,
                               worker.spec.speed.latency.decode);
  }

  void JoinBatch(Worker& worker, Index r) {
    const uint64_t life = scheduler::LifeTokens(Sequence(r), worker.lengths);
    requests_[r].life_tokens = static_cast<uint32_t>(life);
    ++worker.batch.n_sequences;
    worker.batch.context_tokens += PromptTokens(r);
    worker.batch.life_tokens += life;
  }

  void LeaveBatch(Worker& worker, Index r) {
    --worker.batch.n_sequences;
    worker.batch.life_tokens -= requests_[r].life_tokens;
    // What it has grown by was added step by step.
    worker.batch.context_tokens -= PromptTokens(r);
  }

  /// Whether the sequence stays where its prompt is computed.
  bool Stays(const Request& request) const { return request.prefill == request.decode; }

  void StartPrompts(Index w) {
    Worker& worker = workers_[w];
    while (!worker.waiting.empty() && worker.prompts.size() < worker.spec.speed.prefill_sequences) {
      const Index r = worker.waiting.front();
      Request& request = requests_[r];
      const bool room = worker.KvTokens() == 0 ||
                        worker.KvTokens() + PromptTokens(r) <= worker.spec.speed.kv_capacity_tokens;
      if (!room) break;
      worker.waiting.pop_front();
      worker.prompts.push_back(r);
      worker.prompt_kv_tokens += PromptTokens(r);
      request.prompt = PromptState::kComputing;
      if (TokensLeft(r) > 1) {
        dispatcher_.DecodeBegins(request.assignment, now_s_);
        request.sequence = SequenceState::kWaiting;
        Ask(r);
        Admit(request.decode);
      }
    }
    BeginStep(w);
  }

  void Ask(Index r) {
    Worker& worker = workers_[requests_[r].decode];
    requests_[r].life_tokens =
        static_cast<uint32_t>(scheduler::LifeTokens(Sequence(r), worker.lengths));
    worker.asking_life += requests_[r].life_tokens;
    worker.asking.push_back(r);
  }

  void EndPrompt(Index r) {
    Request& request = requests_[r];
    Worker& worker = workers_[request.prefill];
    request.prompt = PromptState::kDone;
    request.prompt_end_s = now_s_;
    ++result_.workers[request.prefill].prompts;
    dispatcher_.ReleasePrefill(request.assignment);
    may_have_room_ = true;
    const bool first = request.first_s < 0;
    if (first) {
      request.first_s = now_s_;
      result_.ttft_s[r] = now_s_ - workload_[r].arrival_s + options_.request_overhead_s;
      sum_queue_s_ += request.begun_s - workload_[r].arrival_s;
      sum_prefill_s_ += now_s_ - request.begun_s;
    }
    ++request.generated;
    if (request.sequence != SequenceState::kNone) {
      Worker& decode = workers_[request.decode];
      // The token just made is computed in its first step.
      if (request.sequence != SequenceState::kWaiting) ++decode.batch.context_tokens;
    }
    if (request.generated == workload_[r].output_tokens) {
      worker.prompt_kv_tokens -= PromptTokens(r) - 1;
      Complete(r);
    } else if (request.sequence == SequenceState::kPulled) {
      if (Stays(request)) {
        JoinAtHome(r);
      } else {
        PullLastPiece(r);
      }
    }
  }

  void JoinAtHome(Index r) {
    workers_[requests_[r].prefill].prompt_kv_tokens -= requests_[r].progress.total_tokens;
    Join(r);
  }

  /// All of its tokens are made.
  void Complete(Index r) {
    Request& request = requests_[r];
    const uint32_t tokens = workload_[r].output_tokens;
    result_.tpot_s[r] = tokens > 1 ? (now_s_ - request.first_s) / (tokens - 1) : 0;
    dispatcher_.ReleaseDecode(request.assignment);
    workers_[request.decode].lengths.Observe(tokens);
    End(r);
  }

  // ---------------------------------------------------------------- handoff

  /// Lets sequences in for which there is room now: those put aside first.
  void Admit(Index w) {
    Worker& worker = workers_[w];
    while (!worker.parked.empty()) {
      std::vector<DecodeSequence> parked;
      for (const Index r : worker.parked) parked.push_back(Sequence(r));
      const auto at = static_cast<std::ptrdiff_t>(*scheduler::ChooseToReturn(parked));
      const Index r = worker.parked[static_cast<size_t>(at)];
      if (!CanAdmit(worker, r)) return;
      worker.parked.erase(worker.parked.begin() + at);
      JoinBatch(worker, r);
      Join(r);
    }
    while (!worker.asking.empty() && CanAdmit(worker, worker.asking.front())) {
      const Index r = worker.asking.front();
      worker.asking.pop_front();
      worker.asking_life -= requests_[r].life_tokens;
      JoinBatch(worker, r);
      if (Stays(requests_[r])) {
        requests_[r].sequence = SequenceState::kPulled;
        if (requests_[r].prompt == PromptState::kDone) JoinAtHome(r);
        continue;
      }
      worker.pulling_context += requests_[r].progress.total_tokens;
      requests_[r].sequence = SequenceState::kPulling;
      requests_[r].pull_begun_s = now_s_;
      const uint32_t prompt = requests_[r].progress.total_tokens;
      BeginFlow(r, prompt - std::min(prompt, kChunkTokens));
    }
  }

  void BeginFlow(Index r, uint32_t tokens) {
    Request& request = requests_[r];
    const double bytes_per_s =
        links_.Between(workers_[request.prefill].spec.node, workers_[request.decode].spec.node)
            .bytes_per_s;
    const double seconds = bytes_per_s > 0 ? tokens * wire_bytes_per_token_ / bytes_per_s : 0;
    result_.workers[request.prefill].send_s += seconds;
    result_.workers[request.decode].receive_s += seconds;
    due_.clear();
    request.flow =
        flows_.Begin(workers_[request.prefill].spec.node, workers_[request.decode].spec.node,
                     tokens * wire_bytes_per_token_, r, now_s_, due_);
    request.flowing = true;
    PushDue();
  }

  void PushDue() {
    for (const LinkFlows::Due& due : due_) {
      Push(due.end_s, Event::Kind::kFlow, due.flow, due.version);
    }
  }

  void EndFlow(LinkFlows::FlowId flow, uint32_t version) {
    due_.clear();
    const auto tag = flows_.End(flow, version, now_s_, due_);
    PushDue();
    if (!tag) return;
    Request& request = requests_[*tag];
    request.flowing = false;
    if (request.sequence == SequenceState::kPulling) {
      request.sequence = SequenceState::kPulled;
      if (request.prompt == PromptState::kDone) PullLastPiece(*tag);
      return;
    }
    const uint32_t piece = std::min(request.progress.total_tokens, kChunkTokens);
    const double codec_s = piece * options_.kv_bytes_per_token / options_.codec_bytes_per_s;
    const double rtt_s =
        links_.Between(workers_[request.prefill].spec.node, workers_[request.decode].spec.node)
            .rtt_s;
    Push(now_s_ + rtt_s + codec_s, Event::Kind::kKvHere, *tag, request.attempt);
  }

  void PullLastPiece(Index r) {
    requests_[r].sequence = SequenceState::kLastPiece;
    BeginFlow(r, std::min(requests_[r].progress.total_tokens, kChunkTokens));
  }

  void KvHere(Index r) {
    Request& request = requests_[r];
    workers_[request.prefill].prompt_kv_tokens -= request.progress.total_tokens;
    workers_[request.decode].pulling_context -= request.progress.total_tokens;
    sum_handoff_s_ += now_s_ - request.prompt_end_s;
    if (request.pull_begun_s < options_.keep_steps_until_s) {
      result_.handoffs.push_back({.from = request.prefill,
                                  .to = request.decode,
                                  .begin_s = request.pull_begun_s,
                                  .end_s = now_s_});
    }
    Join(r);
    StartPrompts(request.prefill);
  }

  /// It takes part from the next step on.
  void Join(Index r) {
    requests_[r].sequence = SequenceState::kJoining;
    workers_[requests_[r].decode].joining.push_back(r);
    BeginStep(requests_[r].decode);
  }

  // ---------------------------------------------------------------- steps

  void BeginStep(Index w) {
    Worker& worker = workers_[w];
    if (worker.step != Worker::Step::kNone || worker.dead) return;
    for (const Index r : worker.joining) {
      requests_[r].sequence = SequenceState::kRunning;
      worker.running_context += PromptTokens(r);
      worker.running.push_back({.last_step = worker.decode_steps + TokensLeft(r),
                                .request = r,
                                .saved_s = -SavedByOldest(worker)});
      worker.least_saved_s = std::min(worker.least_saved_s, worker.running.back().saved_s);
      std::push_heap(worker.running.begin(), worker.running.end(), std::greater<>());
    }
    worker.joining.clear();
    const bool prompts = !worker.prompts.empty();
    const scheduler::TurnState turn = {.decoding = static_cast<uint32_t>(worker.running.size()),
                                       .saved_s = prompts ? LeastSaved(worker) : 0,
                                       .prefilled_last = worker.prefilled_last};
    if (prompts && PrefillMayEnter(worker, turn)) {
      BeginPrefillStep(w, scheduler::PrefillSeconds(turn));
    } else if (turn.decoding > 0) {
      BeginDecodeStep(w);
    }
  }

  /// What a sequence would have saved that ran from time 0 on.
  double SavedByOldest(const Worker& worker) const {
    return scheduler::SavedSeconds(static_cast<double>(worker.decode_steps), now_s_,
                                   options_.tpot_slo_s);
  }

  double LeastSaved(Worker& worker) {
    if (std::isnan(worker.least_saved_s)) {
      worker.least_saved_s = kNever;
      for (const Running& one : worker.running) {
        worker.least_saved_s = std::min(worker.least_saved_s, one.saved_s);
      }
    }
    return worker.least_saved_s + SavedByOldest(worker);
  }

  void Leaves(Worker& worker, const Running& one) {
    if (one.saved_s <= worker.least_saved_s) worker.least_saved_s = kUnknown;
  }

  bool PrefillMayEnter(const Worker& worker, const scheduler::TurnState& turn) const {
    if (turn.decoding == 0) return true;
    const scheduler::PrefillCost& cost = worker.spec.speed.latency.prefill;
    scheduler::LatestBegin latest;
    for (const Index r : worker.prompts) {
      const PromptProgress& prompt = requests_[r].progress;
      latest.Add(cost, prompt.total_tokens - prompt.computed_tokens, prompt.computed_tokens,
                 workload_[r].arrival_s + options_.ttft_slo_s - options_.request_overhead_s);
    }
    const PromptProgress& first = requests_[worker.prompts[0]].progress;
    const uint32_t piece =
        std::min(first.total_tokens - first.computed_tokens, scheduler::UsefulPieceTokens(cost));
    return scheduler::PrefillMayEnter(turn, cost.Seconds(piece, first.computed_tokens),
                                      now_s_ >= latest.seconds(), options_.tpot_slo_s);
  }

  void BeginPrefillStep(Index w, double budget_s) {
    Worker& worker = workers_[w];
    const scheduler::LatencyModel& latency = worker.spec.speed.latency;
    progress_.clear();
    for (const Index r : worker.prompts) progress_.push_back(&requests_[r].progress);
    const uint32_t most = latency.saturation_tokens;
    const uint32_t tokens =
        scheduler::PieceTokens(latency.prefill, progress_[0]->computed_tokens, budget_s,
                               std::min(scheduler::UsefulPieceTokens(latency.prefill), most), most);
    worker.pieces = scheduler::PlanPrefillStep(progress_, tokens, options_.overtake_tokens);
    uint64_t n_tokens = 0;
    double positions = 0;
    for (const scheduler::PrefillPiece& piece : worker.pieces) {
      Request& request = requests_[worker.prompts[piece.prompt]];
      if (request.begun_s < 0) request.begun_s = now_s_;
      n_tokens += piece.n_tokens;
      positions += scheduler::PrefillCost::PositionSum(piece.n_tokens,
                                                       progress_[piece.prompt]->computed_tokens);
    }
    worker.prefilled_last = true;
    Began(w, Worker::Step::kPrefill, latency.prefill.StepSeconds(n_tokens, positions),
          static_cast<uint32_t>(n_tokens));
  }

  void BeginDecodeStep(Index w) {
    Worker& worker = workers_[w];
    while (scheduler::Overflows(Room(worker), worker.KvTokens(),
                                static_cast<uint32_t>(worker.running.size())) &&
           Park(worker)) {
      ++result_.workers[w].parked;
    }
    worker.prefilled_last = false;
    const auto n = static_cast<uint32_t>(worker.running.size());
    const double step_s = worker.spec.speed.latency.decode.StepSeconds(n, worker.running_context);
    result_.workers[w].sequence_s += n * step_s;
    result_.workers[w].kv_token_s += static_cast<double>(worker.running_context) * step_s;
    Began(w, Worker::Step::kDecode, step_s, n);
  }

  /// False when only one runs.
  bool Park(Worker& worker) {
    std::vector<DecodeSequence> running;
    for (const Running& one : worker.running) {
      requests_[one.request].generated = GeneratedBy(worker, one);
      running.push_back(Sequence(one.request));
    }
    const auto at = scheduler::ChooseToPark(running);
    if (!at) return false;
    const Index r = worker.running[*at].request;
    Leaves(worker, worker.running[*at]);
    worker.running.erase(worker.running.begin() + static_cast<std::ptrdiff_t>(*at));
    std::make_heap(worker.running.begin(), worker.running.end(), std::greater<>());
    worker.running_context -= PromptTokens(r);
    LeaveBatch(worker, r);
    requests_[r].sequence = SequenceState::kParked;
    worker.parked.push_back(r);
    return true;
  }

  uint32_t GeneratedBy(const Worker& worker, const Running& one) const {
    return workload_[one.request].output_tokens -
           static_cast<uint32_t>(one.last_step - worker.decode_steps);
  }

  void Began(Index w, Worker::Step step, double seconds, uint32_t size) {
    Worker& worker = workers_[w];
    worker.step = step;
    const bool prefill = step == Worker::Step::kPrefill;
    WorkerUse& use = result_.workers[w];
    (prefill ? use.prefill_busy_s : use.decode_busy_s) += seconds;
    use.tokens += size;
    if (now_s_ < options_.keep_steps_until_s) {
      result_.steps.push_back({.worker = w,
                               .prefill = prefill,
                               .begin_s = now_s_,
                               .end_s = now_s_ + seconds,
                               .size = size});
    }
    Push(now_s_ + seconds, Event::Kind::kStep, w, worker.life);
  }

  void EndStep(Index w) {
    Worker& worker = workers_[w];
    const Worker::Step step = std::exchange(worker.step, Worker::Step::kNone);
    if (step == Worker::Step::kPrefill) {
      EndPrefillStep(worker);
    } else {
      EndDecodeStep(worker);
    }
    Admit(w);
    StartPrompts(w);
  }

  void EndPrefillStep(Worker& worker) {
    done_.clear();
    for (const scheduler::PrefillPiece& piece : worker.pieces) {
      const Index r = worker.prompts[piece.prompt];
      PromptProgress& progress = requests_[r].progress;
      progress.computed_tokens += piece.n_tokens;
      worker.tokens_to_compute -= piece.n_tokens;
      if (progress.computed_tokens == progress.total_tokens) done_.push_back(r);
    }
    std::erase_if(worker.prompts, [&](Index r) {
      return requests_[r].progress.computed_tokens == requests_[r].progress.total_tokens;
    });
    // Joining may begin a step, which waits until all have their first token.
    worker.step = Worker::Step::kPrefill;
    for (const Index r : done_) EndPrompt(r);
    worker.step = Worker::Step::kNone;
  }

  void EndDecodeStep(Worker& worker) {
    ++worker.decode_steps;
    const auto n = static_cast<uint64_t>(worker.running.size());
    worker.running_context += n;
    worker.batch.context_tokens += n;
    while (!worker.running.empty() && worker.running.front().last_step == worker.decode_steps) {
      std::pop_heap(worker.running.begin(), worker.running.end(), std::greater<>());
      const Index r = worker.running.back().request;
      Leaves(worker, worker.running.back());
      worker.running.pop_back();
      requests_[r].generated = workload_[r].output_tokens;
      worker.running_context -= PromptTokens(r);
      LeaveBatch(worker, r);
      Complete(r);
    }
  }

  // ---------------------------------------------------------------- failures

  void Fail(Index which) {
    const WorkerFailure& failure = options_.failures[which];
    const Index w = failure.worker;
    Worker& worker = workers_[w];
    if (worker.dead) return;
    for (const Running& one : worker.running) {
      requests_[one.request].generated = GeneratedBy(worker, one);
    }
    std::vector<Index> lost;
    for (Index r = 0; r < requests_.size() && workload_[r].arrival_s <= now_s_; ++r) {
      const Request& request = requests_[r];
      if (request.prompt == PromptState::kNone || request.sequence == SequenceState::kEnded) {
        continue;
      }
      const bool has_kv_there = request.sequence != SequenceState::kJoining &&
                                request.sequence != SequenceState::kRunning &&
                                request.sequence != SequenceState::kParked;
      if (request.decode == w || (request.prefill == w && has_kv_there)) lost.push_back(r);
    }
    dispatcher_.Suspend(w);
    for (const Index r : lost) Forget(r);
    const uint32_t life = worker.life;
    const scheduler::OutputLengthEstimate lengths = worker.lengths;
    worker = {.spec = worker.spec, .dead = true, .life = life + 1, .lengths = lengths};
    if (failure.back_s < kNever) Push(failure.back_s, Event::Kind::kBack, w, 0);
    // They have had their turn.
    for (const Index r : lost) {
      if (!Dispatch(r, /*needs_room=*/false)) held_.push_back(r);
    }
    for (Index other = 0; other < workers_.size(); ++other) {
      if (workers_[other].dead) continue;
      Admit(other);
      StartPrompts(other);
    }
  }

  /// Takes the request off both of its workers; what it had generated it keeps.
  void Forget(Index r) {
    Request& request = requests_[r];
    Worker &prefill = workers_[request.prefill], &decode = workers_[request.decode];
    ++request.attempt;
    if (request.flowing) {
      due_.clear();
      flows_.Cancel(request.flow, now_s_, due_);
      PushDue();
      request.flowing = false;
    }
    std::erase(prefill.waiting, r);
    ForgetPrompt(prefill, r);
    if (std::erase(decode.asking, r) > 0) decode.asking_life -= request.life_tokens;
    std::erase(decode.parked, r);
    std::erase(decode.joining, r);
    const auto at = std::find_if(decode.running.begin(), decode.running.end(),
                                 [r](const Running& one) { return one.request == r; });
    if (at != decode.running.end()) {
      Leaves(decode, *at);
      decode.running.erase(at);
      std::make_heap(decode.running.begin(), decode.running.end(), std::greater<>());
      decode.running_context -= PromptTokens(r);
    }
    using enum SequenceState;
    const SequenceState state = request.sequence;
    if (state != kNone && state != kWaiting && state != kParked) LeaveBatch(decode, r);
    const bool pulled = state == kPulling || state == kPulled || state == kLastPiece;
    if (pulled && !Stays(request)) decode.pulling_context -= request.progress.total_tokens;
    const bool kv_at_prefill =
        request.prompt != PromptState::kWaiting && (state == kNone || state == kWaiting || pulled);
    if (kv_at_prefill) prefill.prompt_kv_tokens -= request.progress.total_tokens;
    dispatcher_.ReleasePrefill(request.assignment);
    dispatcher_.ReleaseDecode(request.assignment);
    --n_running_;
    request.prompt = PromptState::kNone;
    request.sequence = kNone;
  }

  void ForgetPrompt(Worker& worker, Index r) {
    Request& request = requests_[r];
    if (request.prompt == PromptState::kWaiting || request.prompt == PromptState::kComputing) {
      worker.tokens_to_compute -= request.progress.total_tokens - request.progress.computed_tokens;
    }
    const auto at = std::find(worker.prompts.begin(), worker.prompts.end(), r);
    if (at == worker.prompts.end()) return;
    // A step that is under way goes on without it.
    const auto place = static_cast<uint32_t>(at - worker.prompts.begin());
    std::erase_if(worker.pieces, [&](const auto& piece) { return piece.prompt == place; });
    for (auto& piece : worker.pieces) piece.prompt -= piece.prompt > place;
    worker.prompts.erase(at);
  }

  void Finish() {
    const auto n = static_cast<double>(requests_.size());
    result_.queue_s = sum_queue_s_ / n;
    result_.prefill_s = sum_prefill_s_ / n;
    result_.handoff_s = sum_handoff_s_ / n;
    result_.attainment =
        Attained(result_.ttft_s, result_.tpot_s, options_.ttft_slo_s, options_.tpot_slo_s);
  }

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

}  // namespace

absl::StatusOr<SimulationResult> Simulate(std::span<const SimulatedWorker> workers,
                                          const LinkTable& links,
                                          std::span<const WorkloadRequest> workload,
                                          const SimulatorOptions& options) {
  bool prefills = false, decodes = false;
  for (const SimulatedWorker& worker : workers) {
    prefills |= worker.phase != Phase::kDecode;
    decodes |= worker.phase != Phase::kPrefill;
    if (worker.node >= links.nodes()) {
      return absl::InvalidArgumentError(absl::StrCat("a worker is on node ", worker.node,
                                                     ", and links are known of ", links.nodes()));
    }
  }
  if (!prefills || !decodes) {
    return absl::InvalidArgumentError(
        absl::StrCat("no worker ", prefills ? "decodes" : "prefills"));
  }
  if (workload.empty()) return absl::InvalidArgumentError("there is no request");
  for (const WorkerFailure& failure : options.failures) {
    if (failure.worker >= workers.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("worker ", failure.worker, " cannot fail: there are ", workers.size()));
    }
  }
  return Simulation(workers, links, workload, options).Run();
}

}  // namespace tandem::planner
