// What a simulated worker does: who waits there, who is let in, and its prefill and decode steps,
// by the policies of scheduler/core.
#include <algorithm>
#include <cmath>

#include "scheduler/planner/simulation.h"

namespace tandem::planner {

scheduler::DecodeSequence Simulation::Sequence(Index r) const {
  return {.arrival_s = workload_[r].arrival_s,
          .context_tokens = PromptTokens(r),
          .generated = requests_[r].generated,
          .max_tokens = std::max(most_output_, requests_[r].generated + 1)};
}

scheduler::DecodeRoom Simulation::Room(const Worker& worker) const {
  return {.kv_capacity_tokens = worker.spec.speed.kv_capacity_tokens,
          .max_sequences = worker.spec.speed.max_sequences,
          .tpot_objective_s = options_.tpot_slo_s};
}

bool Simulation::CanAdmit(const Worker& worker, Index r) const {
  return scheduler::CanAdmit(Room(worker), worker.batch, Sequence(r), worker.lengths,
                             worker.spec.speed.latency.decode);
}

void Simulation::JoinBatch(Worker& worker, Index r) {
  const uint64_t life = scheduler::LifeTokens(Sequence(r), worker.lengths);
  requests_[r].life_tokens = static_cast<uint32_t>(life);
  ++worker.batch.n_sequences;
  worker.batch.context_tokens += PromptTokens(r);
  worker.batch.life_tokens += life;
}

void Simulation::LeaveBatch(Worker& worker, Index r) {
  --worker.batch.n_sequences;
  worker.batch.life_tokens -= requests_[r].life_tokens;
  // What it has grown by was added step by step.
  worker.batch.context_tokens -= PromptTokens(r);
}

void Simulation::StartPrompts(Index w) {
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

void Simulation::Ask(Index r) {
  Worker& worker = workers_[requests_[r].decode];
  requests_[r].life_tokens =
      static_cast<uint32_t>(scheduler::LifeTokens(Sequence(r), worker.lengths));
  worker.asking_life += requests_[r].life_tokens;
  worker.asking.push_back(r);
}

void Simulation::EndPrompt(Index r) {
  Request& request = requests_[r];
  Worker& worker = workers_[request.prefill];
  request.prompt = PromptState::kDone;
  request.prompt_end_s = now_s_;
  ++result_.workers[request.prefill].prompts;
  dispatcher_.PromptComputed(request.assignment, now_s_);
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

void Simulation::JoinAtHome(Index r) {
  workers_[requests_[r].prefill].prompt_kv_tokens -= requests_[r].progress.total_tokens;
  Join(r);
}

void Simulation::Admit(Index w) {
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

void Simulation::Join(Index r) {
  requests_[r].sequence = SequenceState::kJoining;
  workers_[requests_[r].decode].joining.push_back(r);
  BeginStep(requests_[r].decode);
}

void Simulation::BeginStep(Index w) {
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

double Simulation::SavedByOldest(const Worker& worker) const {
  return scheduler::SavedSeconds(static_cast<double>(worker.decode_steps), now_s_,
                                 options_.tpot_slo_s);
}

double Simulation::LeastSaved(Worker& worker) {
  if (std::isnan(worker.least_saved_s)) {
    worker.least_saved_s = kNever;
    for (const Running& one : worker.running) {
      worker.least_saved_s = std::min(worker.least_saved_s, one.saved_s);
    }
  }
  return worker.least_saved_s + SavedByOldest(worker);
}

void Simulation::Leaves(Worker& worker, const Running& one) {
  if (one.saved_s <= worker.least_saved_s) worker.least_saved_s = kUnknown;
}

bool Simulation::PrefillMayEnter(const Worker& worker, const scheduler::TurnState& turn) const {
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

void Simulation::BeginPrefillStep(Index w, double budget_s) {
  Worker& worker = workers_[w];
  const scheduler::LatencyModel& latency = worker.spec.speed.latency;
  progress_.clear();
  for (const Index r : worker.prompts) progress_.push_back(&requests_[r].progress);
  const uint32_t most =
      scheduler::StepTokens(progress_.size(), false, worker.spec.speed.StepTokens(), latency);
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

void Simulation::BeginDecodeStep(Index w) {
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

bool Simulation::Park(Worker& worker) {
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

uint32_t Simulation::GeneratedBy(const Worker& worker, const Running& one) const {
  return workload_[one.request].output_tokens -
         static_cast<uint32_t>(one.last_step - worker.decode_steps);
}

void Simulation::Began(Index w, Worker::Step step, double seconds, uint32_t size) {
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

void Simulation::EndStep(Index w) {
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

void Simulation::EndPrefillStep(Worker& worker) {
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

void Simulation::EndDecodeStep(Worker& worker) {
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

}  // namespace tandem::planner
