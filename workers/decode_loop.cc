#include "workers/decode_loop.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status.h"

namespace tandem::workers {
namespace {

// How long a loop that runs nothing sleeps before it looks at cancellations and deadlines again.
constexpr std::chrono::milliseconds kBlockedWait{20};

}  // namespace

DecodeLoop::DecodeLoop(std::unique_ptr<Engine> engine, const Parts& parts, Options options)
    : engine_(std::move(engine)), parts_(parts), options_(options) {
  alarm_->loop = this;
  thread_ = std::thread([this] { Run(); });
  // For debuggers and profilers, and for tests that stop it.
  (void)pthread_setname_np(thread_.native_handle(), "tandem-decode");
}

DecodeLoop::~DecodeLoop() {
  Stop();
  std::lock_guard lock(alarm_->mutex);
  alarm_->loop = nullptr;
}

void DecodeLoop::Wake() {
  news_ = true;
  wake_.notify_one();
}

absl::Status DecodeLoop::Submit(DecodeJob job) {
  const uint64_t last_position = job.prompt_tokens.size() + job.max_tokens;
  if (job.prompt_tokens.empty() || job.max_tokens < 2 ||
      last_position > uint64_t{engine_->options().context_tokens} + 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "max_tokens: ", job.max_tokens, " tokens after a prompt of ", job.prompt_tokens.size(),
        " do not fit this worker's context of ", engine_->options().context_tokens));
  }
  auto sequence = std::make_unique<Sequence>();
  sequence->arrival_s = clock_.seconds();
  sequence->job = std::move(job);
  sequence->job.context->OnCancel([alarm = alarm_] {
    std::lock_guard alarm_lock(alarm->mutex);
    if (alarm->loop == nullptr) return;
    std::lock_guard lock(alarm->loop->mutex_);
    alarm->loop->Wake();
  });
  std::lock_guard lock(mutex_);
  if (stopping_) return absl::UnavailableError("the worker is shutting down");
  sequence->stays = !sequence->job.can_move || moved_away_.contains(sequence->job.handoff_id);
  if (waiting_.size() >= options_.max_queued) {
    parts_.metrics->Rejected("queue_full");
    return absl::ResourceExhaustedError(absl::StrCat("the decode queue is full: ", waiting_.size(),
                                                     " requests wait, max_queued is ",
                                                     options_.max_queued));
  }
  jobs_.push_back({.id = sequence->job.id});
  waiting_.push_back(std::move(sequence));
  Wake();
  return absl::OkStatus();
}

LoopLoad DecodeLoop::load() const {
  std::lock_guard lock(mutex_);
  LoopLoad load = published_load_;
  // Those that have arrived make the next step.
  const auto arrived = static_cast<uint32_t>(arrived_.size());
  load.running += arrived;
  load.waiting = static_cast<uint32_t>(waiting_.size()) + coming_ - arrived;
  load.kv_used_tokens += coming_tokens_;
  load.kv_expected_tokens += coming_expected_;
  load.kv_capacity_tokens = Room().kv_capacity_tokens;
  // Routers send no more than the TPOT objective lets in.
  const auto context = static_cast<uint32_t>(load.kv_used_tokens / std::max(1u, load.running));
  load.max_sequences = scheduler::StepLimit(Room(), parts_.speed->model().decode, context);
  load.parked_bytes = parts_.lot->bytes();
  load.tokens_per_s = rate_.PerSecond(std::chrono::steady_clock::now());
  load.jobs = jobs_;
  load.unfinished = static_cast<uint32_t>(jobs_.size());
  return load;
}

void DecodeLoop::Leave(std::string why) {
  std::lock_guard lock(mutex_);
  leaving_ = std::move(why);
  Wake();
}

void DecodeLoop::Stay() {
  std::lock_guard lock(mutex_);
  leaving_.clear();
}

void DecodeLoop::Stop() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    Wake();
  }
  if (thread_.joinable()) thread_.join();
}

void DecodeLoop::Run() {
  while (WaitForWork()) {
    DropDead();
    GiveBackWaiting();
    BringBack();
    AdmitWaiting();
    JoinArrived();
    MoveAway();
    ParkForRoom();
    CompactSlots();
    if (!running_.empty()) ComputeStep();
    for (const std::string& handoff_id : joined_) parts_.gate->Joined(handoff_id);
    joined_.clear();
  }
  parts_.gate->SetDecoding(0, 0);
  const absl::Status down = absl::UnavailableError("the worker is shutting down");
  for (size_t slot = 0; slot < running_.size(); ++slot) {
    if (running_[slot] != nullptr) EndRunning(slot, down);
  }
  for (SequencePtr& sequence : parked_) Fail(*sequence, down);
  parked_.clear();
  std::vector<SequencePtr> rest;
  {
    std::unique_lock lock(mutex_);
    wake_.wait(lock, [this] { return arrived_.size() == coming_; });
    for (auto& sequence : waiting_) rest.push_back(std::move(sequence));
    for (auto& sequence : arrived_) rest.push_back(std::move(sequence));
    waiting_.clear();
    arrived_.clear();
  }
  for (auto& sequence : rest) Fail(*sequence, down);
}

uint32_t DecodeLoop::PublishLoad() {
  uint32_t running = 0;
  uint64_t used = 0, expected = 0;
  for (const SequencePtr& sequence : running_) {
    if (sequence == nullptr) continue;
    ++running;
    used += sequence->kv_tokens();
    expected += ExpectedTokens(*sequence);
  }
  std::lock_guard lock(mutex_);
  published_load_.running = running;
  published_load_.kv_used_tokens = used;
  published_load_.kv_expected_tokens = expected;
  published_load_.parked = static_cast<uint32_t>(parked_.size());
  return running;
}

bool DecodeLoop::WaitForWork() {
  const uint32_t running = PublishLoad();
  if (running == 0) parts_.gate->SetDecoding(0, 0);
  std::unique_lock lock(mutex_);
  if (running == 0) {
    stepped_last_ = false;
    const auto woken = [this] { return news_ || stopping_; };
    if (waiting_.empty() && parked_.empty()) {
      wake_.wait(lock, woken);
    } else {
      wake_.wait_for(lock, kBlockedWait, woken);  // they may have deadlines
    }
  }
  news_ = false;
  return !stopping_;
}

void DecodeLoop::DropDead() {
  for (size_t slot = 0; slot < running_.size(); ++slot) {
    if (running_[slot] == nullptr) continue;
    absl::Status dead = running_[slot]->job.context->Check();
    if (!dead.ok()) EndRunning(slot, std::move(dead));
  }
  std::vector<SequencePtr> dead;
  const auto take_dead = [&dead](SequencePtr& sequence) {
    if (sequence->job.context->Check().ok()) return false;
    dead.push_back(std::move(sequence));
    return true;
  };
  std::erase_if(parked_, take_dead);
  {
    std::lock_guard lock(mutex_);
    std::erase_if(waiting_, take_dead);
  }
  for (const SequencePtr& sequence : dead) Fail(*sequence, sequence->job.context->Check());
}

void DecodeLoop::JoinArrived() {
  std::vector<SequencePtr> arrived;
  {
    std::lock_guard lock(mutex_);
    arrived.swap(arrived_);
    // Told of before they have made a step: an engine may hang while it takes them.
    published_load_.running += static_cast<uint32_t>(arrived.size());
    for (const SequencePtr& sequence : arrived) {
      joined_.push_back(sequence->job.handoff_id);
      --coming_;
      coming_tokens_ -= sequence->kv_tokens();
      published_load_.kv_used_tokens += sequence->kv_tokens();
      if (!sequence->has_place) continue;
      --coming_places_;
      coming_expected_ -= sequence->expected_tokens;
      published_load_.kv_expected_tokens += sequence->expected_tokens;
    }
  }
  if (arrived.empty()) return;
  for (SequencePtr& sequence : arrived) Take(std::move(sequence));
  PublishLoad();
}

void DecodeLoop::Take(SequencePtr owned) {
  Sequence& sequence = *owned;
  if (absl::Status status = Welcome(sequence); !status.ok()) return Fail(sequence, status);
  if (sequence.generated == 0 && !TakeToken(sequence, sequence.pulled->end.first_token)) return;
  if (!sequence.has_place) {
    auto chunks = engine_->ChunksOf(*sequence.kv, options_.chunk_tokens);
    return Park(std::move(owned), std::move(chunks));
  }
  auto hole = std::find(running_.begin(), running_.end(), nullptr);
  if (hole == running_.end()) hole = running_.insert(running_.end(), nullptr);
  const auto slot = static_cast<int32_t>(hole - running_.begin());
  if (absl::Status status = engine_->Inject(slot, *sequence.kv); !status.ok()) {
    engine_->Free(slot);
    return Fail(sequence, status);
  }
  sequence.kv.reset();
  sequence.parked.reset();
  Log(spdlog::level::debug, *sequence.job.context, "decode joined",
      "slot={} handoff_s={:.4f} bytes={}", slot, sequence.times.handoff_s,
      sequence.times.handoff_bytes);
  *hole = std::move(owned);
}

absl::Status DecodeLoop::Welcome(Sequence& sequence) {
  if (sequence.sampler != nullptr) return sequence.returned;
  const DecodeJob& job = sequence.job;
  if (!sequence.pulled.ok()) {
    if (!absl::IsCancelled(sequence.pulled.status())) {
      parts_.metrics->HandoffFailed(HandoffDirection::kReceive, sequence.pulled.status().code());
    }
    return Annotate(sequence.pulled.status(), absl::StrCat("handoff from ", job.data_address));
  }
  if (sequence.pulled->end.n_tokens != job.prompt_tokens.size()) {
    return absl::DataLossError(absl::StrCat("handoff from ", job.data_address, " ended after ",
                                            sequence.pulled->end.n_tokens, " of ",
                                            job.prompt_tokens.size(), " tokens"));
  }
  sequence.times.handoff_s = sequence.since_pull.seconds();
  sequence.times.handoff_bytes = sequence.pulled->stats.bytes;
  parts_.metrics->HandoffReceived(sequence.times.handoff_bytes,
                                  absl::ToDoubleSeconds(sequence.pulled->stats.duration));
  sequence.sampler =
      std::make_unique<Sampler>(engine_->shared_model(), job.sampling, job.prompt_tokens);
  sequence.since_joined = Stopwatch();
  return absl::OkStatus();
}

void DecodeLoop::CompactSlots() {
  // Between a Move and the next Step nothing may be injected: arrivals have joined before this.
  for (size_t slot = 0; slot < running_.size(); ++slot) {
    while (!running_.empty() && running_.back() == nullptr) running_.pop_back();
    if (slot >= running_.size() || running_[slot] != nullptr) continue;
    const size_t last = running_.size() - 1;
    absl::Status moved = engine_->Move(static_cast<int32_t>(last), static_cast<int32_t>(slot));
    if (moved.ok()) {
      running_[slot] = std::move(running_[last]);
    } else {
      EndRunning(last, std::move(moved));
      --slot;  // the next one is tried for this place (wraps at 0, as ++ does)
    }
  }
}

void DecodeLoop::ComputeStep() {
  std::vector<Engine::StepItem> items;
  uint64_t context_tokens = 0;
  double saved_s = std::numeric_limits<double>::infinity();
  for (size_t slot = 0; slot < running_.size(); ++slot) {
    const Sequence& sequence = *running_[slot];
    context_tokens += sequence.kv_tokens();
    saved_s = std::min(saved_s, parts_.gate->SavedSeconds(sequence.generated - 1,
                                                          sequence.since_joined.seconds()));
    items.push_back({.sequence = static_cast<int32_t>(slot),
                     .first_position = static_cast<int32_t>(sequence.kv_tokens()),
                     .tokens = std::span(&sequence.last_token, 1),
                     .want_logits = true});
  }
  const auto n = static_cast<uint32_t>(items.size());
  parts_.gate->SetDecoding(n, saved_s);
  // Sampling and taking in KV keep the next token waiting as much as the engine does.
  const double between_s = stepped_last_ ? since_step_.seconds() : 0;
  const TurnGate::Turn turn = parts_.gate->EnterDecode();
  const double idle_s = stepped_last_ ? since_step_.seconds() : 0;
  const Stopwatch step;
  if (absl::Status computed = engine_->Step(items); !computed.ok()) {
    spdlog::error("decode step failed sequences={} error=\"{}\"", n, computed.ToString());
    for (size_t slot = 0; slot < running_.size(); ++slot) EndRunning(slot, computed);
    return;
  }
  parts_.speed->DecodeStep(n, context_tokens, between_s + step.seconds());
  parts_.metrics->DecodeStep(n, idle_s + step.seconds());
  since_step_ = Stopwatch();
  stepped_last_ = true;
  SampleAll();
  parts_.metrics->GeneratedTokens(n);
  std::lock_guard lock(mutex_);
  rate_.Add(n, std::chrono::steady_clock::now());
  ++published_load_.steps;
}

void DecodeLoop::SampleAll() {
  for (size_t slot = 0; slot < running_.size(); ++slot) {
    Sequence& sequence = *running_[slot];
    const auto position =
        static_cast<uint32_t>(sequence.job.prompt_tokens.size()) + sequence.generated;
    const int32_t token = sequence.sampler->Sample(engine_->Logits(slot), position);
    bool goes_on = false;
    if (sequence.sampler->IsStop(token)) {
      Finish(sequence, DecodeFinish::kStop);
    } else {
      sequence.job.events->Token(token);
      goes_on = TakeToken(sequence, token);
    }
    if (!goes_on) {
      engine_->Free(static_cast<int32_t>(slot));
      running_[slot].reset();
    }
  }
  for (const SequencePtr& sequence : running_) {
    if (sequence != nullptr) sequence->job.events->StepEnds();
  }
}

bool DecodeLoop::TakeToken(Sequence& sequence, int32_t token) {
  if (sequence.generated == 0) sequence.sampler->Accept(token);  // Sample accepts the others
  sequence.last_token = token;
  ++sequence.generated;
  if (sequence.generated < sequence.job.max_tokens) return true;
  Finish(sequence, DecodeFinish::kLength);
  return false;
}

void DecodeLoop::EndRunning(size_t slot, absl::Status status) {
  engine_->Free(static_cast<int32_t>(slot));
  Fail(*running_[slot], std::move(status));
  running_[slot].reset();
}

void DecodeLoop::Fail(Sequence& sequence, absl::Status status) {
  CountEnded(sequence, absl::IsCancelled(status) ? "cancelled" : "error");
  sequence.job.events->Failed(std::move(status));
}

void DecodeLoop::Finish(Sequence& sequence, DecodeFinish reason) {
  sequence.times.decode_s = sequence.since_joined.seconds();
  lengths_.Observe(sequence.generated);
  parts_.metrics->DecodeDone(sequence.generated - 1,
                             sequence.times.queue_s + sequence.times.handoff_s,
                             sequence.times.decode_s);
  CountEnded(sequence, reason == DecodeFinish::kStop ? "stop" : "length");
  sequence.job.events->Finished(reason, sequence.times);
}

void DecodeLoop::CountEnded(const Sequence& sequence, const char* word) {
  parts_.metrics->RequestEnded(word);
  std::lock_guard lock(mutex_);
  jobs_.erase(std::ranges::find(jobs_, sequence.job.id, &LoopLoad::Job::id));
}

}  // namespace tandem::workers
