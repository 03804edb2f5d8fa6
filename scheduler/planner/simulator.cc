#include "scheduler/planner/simulator.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "scheduler/planner/simulation.h"

namespace tandem::planner {
namespace {

/// The least piece between decode steps that dispatch counts with (as Dispatcher::Options).
constexpr uint32_t kMinPieceTokens = 32;

}  // namespace

Simulation::Simulation(std::span<const SimulatedWorker> workers, const LinkTable& links,
                       std::span<const WorkloadRequest> workload, const SimulatorOptions& options)
    : options_(options),
      workload_(workload),
      links_(links),
      flows_(links),
      random_(options.seed),
      dispatcher_({.ttft_objective_s = options.ttft_slo_s,
                   .tpot_objective_s = options.tpot_slo_s,
                   .report_lag_s = 0,
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

SimulationResult Simulation::Run() {
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

void Simulation::Push(double at_s, Event::Kind kind, uint32_t subject, uint32_t version) {
  n_effective_ += kind != Event::Kind::kReport;
  events_.push({.at_s = at_s,
                .number = next_number_++,
                .kind = kind,
                .subject = subject,
                .version = version});
}

void Simulation::Handle(const Event& event) {
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

void Simulation::Report(Index w) {
  Worker& worker = workers_[w];
  if (worker.dead) return;
  const WorkerSpeed& speed = worker.spec.speed;
  const auto context =
      static_cast<uint32_t>(worker.running_context / std::max<size_t>(1, worker.running.size()));
  std::vector<scheduler::WorkerReport::Prompt> prompts;
  const auto add = [&](Index r) {
    const PromptProgress& progress = requests_[r].progress;
    prompts.push_back({.id = requests_[r].assignment,
                       .tokens_to_compute = progress.total_tokens - progress.computed_tokens});
  };
  std::ranges::for_each(worker.waiting, add);
  std::ranges::for_each(worker.prompts, add);
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
       .latency = speed.latency,
       .prompts = std::move(prompts)},
      now_s_);
  may_have_room_ = true;
}

scheduler::Work Simulation::WorkOf(Index r) const {
  scheduler::Work work;
  work.prompt_tokens = PromptTokens(r);
  work.expected_output_tokens = static_cast<uint32_t>(std::max(1.0, std::round(expected_output_)));
  work.needs_decode = TokensLeft(r) > 1;
  work.kv_bytes_per_token = wire_bytes_per_token_;
  work.waited_s = now_s_ - workload_[r].arrival_s;
  return work;
}

void Simulation::LetGo() {
  while (!held_.empty() && Dispatch(held_.front(), n_running_ > 0)) held_.pop_front();
}

bool Simulation::Dispatch(Index r, bool needs_room) {
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

void Simulation::Assign(Index r, const scheduler::Work& work, const scheduler::Candidate& choice) {
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

void Simulation::End(Index r) {
  requests_[r].prompt = PromptState::kDone;
  requests_[r].sequence = SequenceState::kEnded;
  --open_;
  --n_running_;
  may_have_room_ = true;
  result_.end_s = std::max(result_.end_s, now_s_);
}

void Simulation::Complete(Index r) {
  Request& request = requests_[r];
  const uint32_t tokens = workload_[r].output_tokens;
  result_.tpot_s[r] = tokens > 1 ? (now_s_ - request.first_s) / (tokens - 1) : 0;
  dispatcher_.ReleaseDecode(request.assignment);
  workers_[request.decode].lengths.Observe(tokens);
  End(r);
}

void Simulation::BeginFlow(Index r, uint32_t tokens) {
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

void Simulation::PushDue() {
  for (const LinkFlows::Due& due : due_) {
    Push(due.end_s, Event::Kind::kFlow, due.flow, due.version);
  }
}

void Simulation::EndFlow(LinkFlows::FlowId flow, uint32_t version) {
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
      links_.Between(workers_[request.prefill].spec.node, workers_[request.decode].spec.node).rtt_s;
  Push(now_s_ + rtt_s + codec_s, Event::Kind::kKvHere, *tag, request.attempt);
}

void Simulation::PullLastPiece(Index r) {
  requests_[r].sequence = SequenceState::kLastPiece;
  BeginFlow(r, std::min(requests_[r].progress.total_tokens, kChunkTokens));
}

void Simulation::KvHere(Index r) {
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

void Simulation::Fail(Index which) {
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

void Simulation::Forget(Index r) {
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

void Simulation::ForgetPrompt(Worker& worker, Index r) {
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

void Simulation::Finish() {
  const auto n = static_cast<double>(requests_.size());
  result_.queue_s = sum_queue_s_ / n;
  result_.prefill_s = sum_prefill_s_ / n;
  result_.handoff_s = sum_handoff_s_ / n;
  result_.attainment =
      Attained(result_.ttft_s, result_.tpot_s, options_.ttft_slo_s, options_.tpot_slo_s);
}

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
