// The decode loop's part that decides who is in the engine: admission by expected life, parking
// when the KV does not suffice, and sequences that leave for another worker.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status.h"
#include "kvstore/transfer/handoff_id.h"
#include "workers/decode_loop.h"

namespace tandem::workers {

scheduler::DecodeRoom DecodeLoop::Room() const {
  const EngineOptions& engine = engine_->options();
  return {.kv_capacity_tokens = options_.kv_tokens != 0
                                    ? std::min(options_.kv_tokens, engine.kv_tokens)
                                    : engine.kv_tokens,
          .max_sequences = engine.max_sequences,
          .tpot_objective_s = absl::ToDoubleSeconds(options_.tpot_objective)};
}

uint64_t DecodeLoop::ExpectedTokens(const Sequence& sequence) const {
  return scheduler::LifeTokens(sequence.ForPolicy(), lengths_);
}

bool DecodeLoop::Fits(const Sequence& sequence) const {
  scheduler::DecodeBatch batch;
  for (const SequencePtr& running : running_) {
    if (running != nullptr) batch.Add(running->ForPolicy(), lengths_);
  }
  {
    std::lock_guard lock(mutex_);
    batch.n_sequences += coming_places_;
    batch.context_tokens += coming_tokens_;
    batch.life_tokens += coming_expected_;
  }
  return scheduler::CanAdmit(Room(), batch, sequence.ForPolicy(), lengths_,
                             parts_.speed->model().decode);
}

void DecodeLoop::GiveBackWaiting() {
  std::vector<SequencePtr> given_back;
  std::string why;
  {
    std::lock_guard lock(mutex_);
    if (leaving_.empty()) return;
    why = leaving_;
    std::erase_if(waiting_, [&](SequencePtr& sequence) {
      if (sequence->stays) return false;
      given_back.push_back(std::move(sequence));
      return true;
    });
  }
  for (const SequencePtr& sequence : given_back) {
    sequence->times.queue_s = sequence->since_queued.seconds();
    sequence->job.events->Moving("", why, sequence->times);
    CountEnded(*sequence, "moved");
    sequence->job.events->Released(absl::OkStatus());
  }
}

void DecodeLoop::BringBack() {
  while (!parked_.empty()) {
    std::vector<scheduler::DecodeSequence> parked;
    for (const SequencePtr& sequence : parked_) parked.push_back(sequence->ForPolicy());
    const size_t next = *scheduler::ChooseToReturn(parked);
    if (!Fits(*parked_[next])) return;
    SequencePtr returning = std::move(parked_[next]);
    parked_.erase(parked_.begin() + static_cast<ptrdiff_t>(next));
    StartReturn(std::move(returning));
  }
}

void DecodeLoop::StartReturn(SequencePtr owned) {
  Sequence* sequence = owned.release();  // the callback takes it back; it runs exactly once
  sequence->kv = engine_->NewSink(sequence->kv_tokens());
  sequence->has_place = true;
  sequence->expected_tokens = ExpectedTokens(*sequence);
  {
    std::lock_guard lock(mutex_);
    ++coming_;
    ++coming_places_;
    coming_tokens_ += sequence->kv_tokens();
    coming_expected_ += sequence->expected_tokens;
  }
  parts_.lot->Fetch(sequence->parked, sequence->kv.get(), [this, sequence](absl::Status status) {
    sequence->returned = std::move(status);
    Arrive(sequence);
  });
}

void DecodeLoop::AdmitWaiting() {
  while (true) {
    SequencePtr next;
    {
      std::lock_guard lock(mutex_);
      if (waiting_.empty()) return;
      next = std::move(waiting_.front());
      waiting_.pop_front();
    }
    // Whoever is parked came before.
    next->has_place = parked_.empty() && Fits(*next);
    const bool overdue =
        next->since_queued.seconds() > absl::ToDoubleSeconds(options_.longest_wait) &&
        parts_.lot->HasRoom(engine_->layout().BytesPerToken() * next->kv_tokens());
    if (!next->has_place && !overdue) {
      std::lock_guard lock(mutex_);
      waiting_.push_front(std::move(next));
      return;
    }
    StartPull(std::move(next));
  }
}

void DecodeLoop::StartPull(SequencePtr owned) {
  Sequence* sequence = owned.release();  // the callback takes it back; it runs exactly once
  sequence->expected_tokens = ExpectedTokens(*sequence);
  sequence->times.queue_s = sequence->since_queued.seconds();
  parts_.metrics->DecodeQueued(sequence->times.queue_s);
  sequence->kv = engine_->NewSink(sequence->kv_tokens());
  sequence->since_pull = Stopwatch();
  parts_.gate->Pulls(sequence->job.handoff_id);
  {
    std::lock_guard lock(mutex_);
    ++coming_;
    coming_tokens_ += sequence->kv_tokens();
    if (sequence->has_place) {
      ++coming_places_;
      coming_expected_ += sequence->expected_tokens;
    }
  }
  parts_.client->Pull(sequence->job.context, sequence->job.data_address, sequence->job.handoff_id,
                      sequence->kv.get(),
                      [this, sequence](absl::StatusOr<kvstore::HandoffClient::Result> result) {
                        sequence->pulled = std::move(result);
                        Arrive(sequence);
                      });
}

void DecodeLoop::Arrive(Sequence* sequence) {
  std::lock_guard lock(mutex_);
  arrived_.emplace_back(sequence);
  Wake();
}

void DecodeLoop::ParkForRoom() {
  while (true) {
    uint64_t used = 0;
    std::vector<scheduler::DecodeSequence> running;
    std::vector<size_t> slots;
    for (size_t slot = 0; slot < running_.size(); ++slot) {
      if (running_[slot] == nullptr) continue;
      used += running_[slot]->kv_tokens();
      running.push_back(running_[slot]->ForPolicy());
      slots.push_back(slot);
    }
    if (!scheduler::Overflows(Room(), used, static_cast<uint32_t>(running.size()))) return;
    const auto choice = scheduler::ChooseToPark(running);
    if (!choice) return;
    // Better too many tokens for a while than a sequence that is lost.
    const uint64_t bytes = engine_->layout().BytesPerToken() * running[*choice].context_tokens;
    if (!parts_.lot->HasRoom(bytes)) return;
    const size_t slot = slots[*choice];
    auto chunks = engine_->ExtractAll(static_cast<int32_t>(slot), options_.chunk_tokens);
    engine_->Free(static_cast<int32_t>(slot));
    Park(std::move(running_[slot]), std::move(chunks));
  }
}

void DecodeLoop::Park(SequencePtr sequence, absl::StatusOr<std::vector<kvstore::KvChunk>> chunks) {
  if (!chunks.ok()) return Fail(*sequence, chunks.status());
  sequence->parked = parts_.lot->Park(*std::move(chunks));
  sequence->kv.reset();
  parts_.metrics->Parked();
  Log(spdlog::level::debug, *sequence->job.context, "decode parked", "tokens={}",
      sequence->kv_tokens());
  parked_.push_back(std::move(sequence));
}

void DecodeLoop::MoveAway() {
  {
    std::lock_guard lock(mutex_);
    if (leaving_.empty()) return;
  }
  for (size_t slot = 0; slot < running_.size(); ++slot) {
    if (running_[slot] == nullptr || running_[slot]->stays) continue;
    // Those that must wait for room in the buffer go on decoding meanwhile.
    const uint64_t bytes = engine_->layout().BytesPerToken() * running_[slot]->kv_tokens();
    const uint64_t held = parts_.server->held_bytes();
    if (held > 0 && held + bytes > options_.handoff_buffer_bytes) return;
    auto chunks = engine_->ExtractAll(static_cast<int32_t>(slot), options_.chunk_tokens);
    if (!chunks.ok()) {
      EndRunning(slot, chunks.status());
      continue;
    }
    engine_->Free(static_cast<int32_t>(slot));
    Publish(std::move(running_[slot]), *std::move(chunks));
  }
}

void DecodeLoop::Publish(SequencePtr owned, std::vector<kvstore::KvChunk> chunks) {
  const std::shared_ptr<Sequence> sequence = std::move(owned);
  const std::string handoff_id = kvstore::NewHandoffId();
  const uint32_t n_tokens = sequence->kv_tokens();
  std::string why;
  {
    std::lock_guard lock(mutex_);
    why = leaving_.empty() ? "the worker has changed its mind" : leaving_;
    moved_away_.insert(handoff_id);
  }
  auto published = parts_.server->Publish(
      handoff_id, sequence->job.context,
      {.n_tokens = n_tokens, .chunk_tokens = options_.chunk_tokens},
      [this, sequence, handoff_id](absl::Status outcome, kvstore::HandoffStats stats) {
        OnReleased(*sequence, handoff_id, std::move(outcome), stats);
      });
  if (!published.ok()) {
    {
      std::lock_guard lock(mutex_);
      moved_away_.erase(handoff_id);
    }
    return Fail(*sequence, published.status());
  }
  for (kvstore::KvChunk& chunk : chunks) (*published)->Append(std::move(chunk));
  sequence->times.decode_s = sequence->since_joined.seconds();
  parts_.metrics->Moved();
  Log(spdlog::level::debug, *sequence->job.context, "decode moves", "tokens={} why=\"{}\"",
      n_tokens, why);
  sequence->job.events->Moving(handoff_id, why, sequence->times);
  (*published)->Finish({.n_tokens = n_tokens, .first_token = sequence->last_token});
}

void DecodeLoop::OnReleased(Sequence& sequence, const std::string& handoff_id, absl::Status outcome,
                            const kvstore::HandoffStats& stats) {
  {
    std::lock_guard lock(mutex_);
    moved_away_.erase(handoff_id);
    Wake();  // there may be room for the next in the handoff buffer
  }
  if (outcome.ok()) {
    parts_.metrics->HandoffSent(stats.bytes, absl::ToDoubleSeconds(stats.duration));
  } else if (!absl::IsCancelled(outcome)) {
    parts_.metrics->HandoffFailed(HandoffDirection::kSend, outcome.code());
  }
  if (absl::IsDeadlineExceeded(outcome) && sequence.job.context->Check().ok()) {
    // The lease's end, not the request's.
    parts_.metrics->HandoffLeaseExpired();
    outcome = absl::UnavailableError(outcome.message());
  }
  const char* word = outcome.ok() ? "moved" : absl::IsCancelled(outcome) ? "cancelled" : "error";
  const std::shared_ptr<DecodeEvents> events = sequence.job.events;
  CountEnded(sequence, word);
  events->Released(std::move(outcome));
}

}  // namespace tandem::workers
