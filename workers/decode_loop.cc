#include "workers/decode_loop.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status.h"

namespace tandem::workers {

DecodeLoop::DecodeLoop(std::unique_ptr<Engine> engine, kvstore::HandoffClient* client,
                       WorkerMetrics* metrics, Options options)
    : engine_(std::move(engine)), client_(client), metrics_(metrics), options_(options) {
  thread_ = std::thread([this] { Run(); });
}

DecodeLoop::~DecodeLoop() { Stop(); }

absl::Status DecodeLoop::Submit(DecodeJob job) {
  const uint64_t last_position = job.prompt_tokens.size() + job.max_tokens;
  if (job.prompt_tokens.empty() || job.max_tokens < 2 ||
      last_position > uint64_t{engine_->options().context_tokens} + 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "max_tokens: ", job.max_tokens, " tokens after a prompt of ", job.prompt_tokens.size(),
        " do not fit this worker's context of ", engine_->options().context_tokens));
  }
  auto sequence = std::make_unique<Sequence>();
  sequence->job = std::move(job);
  sequence->job.context->OnCancel([this] {
    std::lock_guard lock(mutex_);
    wake_.notify_one();
  });
  std::lock_guard lock(mutex_);
  if (stopping_) return absl::UnavailableError("the worker is shutting down");
  if (waiting_.size() >= options_.max_queued) {
    metrics_->Rejected("queue_full");
    return absl::ResourceExhaustedError(absl::StrCat("the decode queue is full: ", waiting_.size(),
                                                     " requests wait, max_queued is ",
                                                     options_.max_queued));
  }
  waiting_.push_back(std::move(sequence));
  ++unfinished_;
  wake_.notify_one();
  return absl::OkStatus();
}

LoopLoad DecodeLoop::load() const {
  std::lock_guard lock(mutex_);
  return {.running = running_count_,
          .waiting = static_cast<uint32_t>(waiting_.size() + arrived_.size()) + pulling_,
          .waiting_tokens = 0,
          .kv_used_tokens = running_tokens_ + pulling_tokens_,
          .handoff_held_bytes = 0,
          .tokens_per_s = rate_.PerSecond(std::chrono::steady_clock::now()),
          .unfinished = unfinished_};
}

void DecodeLoop::Stop() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    wake_.notify_one();
  }
  if (thread_.joinable()) thread_.join();
}

void DecodeLoop::Run() {
  while (WaitForWork()) {
    AdmitWaiting();
    JoinArrived();
    DropCancelled();
    CompactSlots();
    if (!running_.empty()) ComputeStep();
  }
  const absl::Status down = absl::UnavailableError("the worker is shutting down");
  for (size_t slot = 0; slot < running_.size(); ++slot) {
    if (running_[slot] != nullptr) EndRunning(slot, down);
  }
  std::vector<SequencePtr> rest;
  {
    std::unique_lock lock(mutex_);
    wake_.wait(lock, [this] { return pulling_ == 0; });
    for (auto& sequence : waiting_) rest.push_back(std::move(sequence));
    for (auto& sequence : arrived_) rest.push_back(std::move(sequence));
    waiting_.clear();
    arrived_.clear();
  }
  for (auto& sequence : rest) Fail(*sequence, down);
}

bool DecodeLoop::WaitForWork() {
  std::unique_lock lock(mutex_);
  running_count_ = 0;
  running_tokens_ = 0;
  for (size_t slot = 0; slot < running_.size(); ++slot) {
    if (running_[slot] == nullptr) continue;
    ++running_count_;
    running_tokens_ += engine_->Length(static_cast<int32_t>(slot));
  }
  if (running_count_ == 0) {
    stepped_last_ = false;
    wake_.wait(lock, [this] {
      const bool can_admit = !waiting_.empty() && pulling_ < engine_->options().max_sequences;
      return stopping_ || !arrived_.empty() || can_admit;
    });
  }
  return !stopping_;
}

void DecodeLoop::AdmitWaiting() {
  while (true) {
    SequencePtr next;
    absl::Status dead;
    {
      std::lock_guard lock(mutex_);
      const bool room =
          running_count_ + arrived_.size() + pulling_ < engine_->options().max_sequences;
      for (auto it = waiting_.begin(); it != waiting_.end(); ++it) {
        dead = (*it)->job.context->Check();
        if (dead.ok() && !room) continue;
        next = std::move(*it);
        waiting_.erase(it);
        break;
      }
      if (next == nullptr) return;
      if (dead.ok()) {
        ++pulling_;
        pulling_tokens_ += next->job.prompt_tokens.size();
      }
    }
    if (dead.ok()) {
      StartPull(std::move(next));
    } else {
      Fail(*next, dead);
    }
  }
}

void DecodeLoop::StartPull(SequencePtr owned) {
  Sequence* sequence = owned.release();  // the callback takes it back; it runs exactly once
  const auto n = static_cast<uint32_t>(sequence->job.prompt_tokens.size());
  sequence->times.queue_s = sequence->since_queued.seconds();
  metrics_->DecodeQueued(sequence->times.queue_s);
  sequence->kv = engine_->NewSink(n);
  sequence->since_pull = Stopwatch();
  client_->Pull(sequence->job.context, sequence->job.data_address, sequence->job.handoff_id,
                sequence->kv.get(),
                [this, sequence, n](absl::StatusOr<kvstore::HandoffClient::Result> result) {
                  sequence->pulled = std::move(result);
                  std::lock_guard lock(mutex_);
                  arrived_.emplace_back(sequence);
                  --pulling_;
                  pulling_tokens_ -= n;
                  wake_.notify_one();
                });
}

void DecodeLoop::JoinArrived() {
  std::vector<SequencePtr> arrived;
  {
    std::lock_guard lock(mutex_);
    arrived.swap(arrived_);
    running_count_ += static_cast<uint32_t>(arrived.size());  // keeps their places
  }
  for (SequencePtr& sequence : arrived) {
    auto hole = std::find(running_.begin(), running_.end(), nullptr);
    if (hole == running_.end()) hole = running_.insert(running_.end(), nullptr);
    const auto slot = static_cast<int32_t>(hole - running_.begin());
    if (absl::Status joined = Join(*sequence, slot); !joined.ok()) {
      engine_->Free(slot);
      Fail(*sequence, joined);
    } else if (TakeToken(*sequence, sequence->pulled->end.first_token)) {
      *hole = std::move(sequence);
    } else {
      engine_->Free(slot);
    }
  }
}

absl::Status DecodeLoop::Join(Sequence& sequence, int32_t slot) {
  const DecodeJob& job = sequence.job;
  if (!sequence.pulled.ok()) {
    if (!absl::IsCancelled(sequence.pulled.status())) {
      metrics_->HandoffFailed(HandoffDirection::kReceive, sequence.pulled.status().code());
    }
    return Annotate(sequence.pulled.status(), absl::StrCat("handoff from ", job.data_address));
  }
  if (sequence.pulled->end.n_tokens != job.prompt_tokens.size()) {
    return absl::DataLossError(absl::StrCat("handoff from ", job.data_address, " ended after ",
                                            sequence.pulled->end.n_tokens, " of ",
                                            job.prompt_tokens.size(), " tokens"));
  }
  RETURN_IF_ERROR(engine_->Inject(slot, *sequence.kv));
  sequence.kv.reset();
  sequence.times.handoff_s = sequence.since_pull.seconds();
  sequence.times.handoff_bytes = sequence.pulled->stats.bytes;
  metrics_->HandoffReceived(sequence.times.handoff_bytes,
                            absl::ToDoubleSeconds(sequence.pulled->stats.duration));
  sequence.sampler =
      std::make_unique<Sampler>(engine_->shared_model(), job.sampling, job.prompt_tokens);
  sequence.since_joined = Stopwatch();
  Log(spdlog::level::debug, *job.context, "decode joined", "slot={} handoff_s={:.4f} bytes={}",
      slot, sequence.times.handoff_s, sequence.times.handoff_bytes);
  return absl::OkStatus();
}

void DecodeLoop::DropCancelled() {
  for (size_t slot = 0; slot < running_.size(); ++slot) {
    if (running_[slot] == nullptr) continue;
    absl::Status dead = running_[slot]->job.context->Check();
    if (!dead.ok()) EndRunning(slot, std::move(dead));
  }
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
  for (size_t slot = 0; slot < running_.size(); ++slot) {
    const Sequence& sequence = *running_[slot];
    const auto position = sequence.job.prompt_tokens.size() + sequence.generated - 1;
    items.push_back({.sequence = static_cast<int32_t>(slot),
                     .first_position = static_cast<int32_t>(position),
                     .tokens = std::span(&sequence.last_token, 1),
                     .want_logits = true});
  }
  const Stopwatch step;
  const double idle_s = stepped_last_ ? since_step_.seconds() : 0;
  if (absl::Status computed = engine_->Step(items); !computed.ok()) {
    spdlog::error("decode step failed sequences={} error=\"{}\"", items.size(),
                  computed.ToString());
    for (size_t slot = 0; slot < running_.size(); ++slot) EndRunning(slot, computed);
    return;
  }
  metrics_->DecodeStep(static_cast<uint32_t>(items.size()), idle_s + step.seconds());
  since_step_ = Stopwatch();
  stepped_last_ = true;
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
  metrics_->GeneratedTokens(static_cast<uint32_t>(items.size()));
  std::lock_guard lock(mutex_);
  rate_.Add(items.size(), std::chrono::steady_clock::now());
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
  CountEnded(absl::IsCancelled(status) ? "cancelled" : "error");
  sequence.job.events->Failed(std::move(status));
}

void DecodeLoop::Finish(Sequence& sequence, DecodeFinish reason) {
  sequence.times.decode_s = sequence.since_joined.seconds();
  metrics_->DecodeDone(sequence.generated - 1, sequence.times.queue_s + sequence.times.handoff_s,
                       sequence.times.decode_s);
  CountEnded(reason == DecodeFinish::kStop ? "stop" : "length");
  sequence.job.events->Finished(reason, sequence.times);
}

void DecodeLoop::CountEnded(const char* word) {
  metrics_->RequestEnded(word);
  std::lock_guard lock(mutex_);
  --unfinished_;
}

}  // namespace tandem::workers
