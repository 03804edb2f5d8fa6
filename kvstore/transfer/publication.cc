#include "kvstore/transfer/publication.h"

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "base/status.h"

namespace tandem::kvstore {

namespace asio = boost::asio;

ReadyChunk::ReadyChunk(std::vector<uint8_t> head, std::shared_ptr<const KvChunk> chunk,
                       std::shared_ptr<std::atomic<uint64_t>> held_bytes)
    : head_(std::move(head)), chunk_(std::move(chunk)), held_bytes_(std::move(held_bytes)) {
  *held_bytes_ += chunk_->bytes.size();
}

ReadyChunk::~ReadyChunk() { *held_bytes_ -= chunk_->bytes.size(); }

OfferedKv::OfferedKv(asio::io_context& io, absl::Duration lease, RequestContextPtr context,
                     HandoffPlan plan, Hooks hooks)
    : lease_(lease),
      context_(std::move(context)),
      plan_(plan),
      tasks_(std::move(hooks.tasks)),
      held_bytes_(std::move(hooks.held_bytes)),
      forget_(std::move(hooks.forget)),
      on_released_(std::move(hooks.on_released)),
      timer_(io) {}

std::shared_ptr<Publication> OfferedKv::MakeHandle() {
  return std::shared_ptr<Publication>(
      static_cast<Publication*>(this), [self = shared_from_this()](Publication*) {
        std::vector<ChunkPtr> dropped;
        std::lock_guard lock(self->mutex_);
        if (self->state_ == State::kOpen) {
          self->ReleaseLocked(absl::AbortedError("the KV's computation was given up"), &dropped);
        }
      });
}

void OfferedKv::ObeyCancellation() {
  // Weak: the request outlives its KV.
  context_->OnCancel([weak = weak_from_this()] {
    auto self = weak.lock();
    if (self == nullptr) return;
    self->tasks_->Post([self] { self->Release(self->context_->Check()); });
  });
}

void OfferedKv::Append(std::shared_ptr<const KvChunk> chunk) {
  v1::ChunkHeader meta;
  meta.set_first_position(chunk->first_position);
  meta.set_n_tokens(chunk->n_tokens);
  auto head = wire::EncodeFrame(v1::FRAME_TYPE_CHUNK, meta, chunk->bytes);
  std::vector<ChunkPtr> dropped;
  std::lock_guard lock(mutex_);
  if (state_ == State::kReleased) return;
  absl::Status status =
      state_ == State::kOpen ? head.status() : absl::DataLossError("KV chunk after the end");
  if (status.ok()) status = positions_.Add(chunk->first_position, chunk->n_tokens);
  if (!status.ok()) return ReleaseLocked(std::move(status), &dropped);
  chunks_.push_back(
      std::make_shared<const ReadyChunk>(*std::move(head), std::move(chunk), held_bytes_));
  tasks_->Post([self = shared_from_this()] { self->OnChanged(); });
}

void OfferedKv::Finish(HandoffEnd end) {
  std::vector<ChunkPtr> dropped;
  std::lock_guard lock(mutex_);
  if (state_ != State::kOpen) return;
  if (auto status = positions_.End(end.n_tokens); !status.ok()) {
    return ReleaseLocked(std::move(status), &dropped);
  }
  state_ = State::kFinished;
  end_ = end;
  tasks_->Post([self = shared_from_this()] { self->OnChanged(); });
}

void OfferedKv::Abort(absl::Status reason) {
  Release(reason.ok() ? absl::AbortedError("aborted without a reason") : std::move(reason));
}

void OfferedKv::Release(absl::Status outcome) {
  std::vector<ChunkPtr> dropped;
  std::lock_guard lock(mutex_);
  if (state_ != State::kReleased) ReleaseLocked(std::move(outcome), &dropped);
}

// The posting comes first and all of it under the lock: once Stop has passed over this object, or
// no longer finds it, the callback is in the io_context's queue.
void OfferedKv::ReleaseLocked(absl::Status outcome, std::vector<ChunkPtr>* dropped) {
  state_ = State::kReleased;
  outcome_ = std::move(outcome);
  dropped->swap(chunks_);
  tasks_->Post([self = shared_from_this()] { self->OnReleased(); });
  forget_();
  forget_ = nullptr;
}

void OfferedKv::OnChanged() {
  if (!timer_) return;
  if (pulled_) {
    timer_->cancel();
    return;
  }
  {
    std::lock_guard lock(mutex_);
    if (state_ != State::kFinished || lease_runs_) return;
  }
  lease_runs_ = true;
  timer_->expires_after(absl::ToChronoNanoseconds(lease_));
  timer_->async_wait([weak = weak_from_this()](const boost::system::error_code& error) {
    auto self = weak.lock();
    if (error || self == nullptr || self->pulled_) return;
    self->Release(absl::DeadlineExceededError(
        absl::StrCat("nobody pulled the KV within ", absl::FormatDuration(self->lease_))));
  });
}

void OfferedKv::OnReleased() {
  timer_.reset();
  absl::Status outcome;
  {
    std::lock_guard lock(mutex_);
    outcome = outcome_;
  }
  if (pulled_) stats_.duration = absl::Now() - pull_began_;
  // Its captures must not live as long as a handle that somebody keeps.
  auto on_released = std::move(on_released_);
  if (on_released) on_released(std::move(outcome), stats_);
}

bool OfferedKv::BeginPull() {
  if (pulled_) return false;
  pulled_ = true;
  pull_began_ = absl::Now();
  if (timer_) timer_->cancel();
  return true;
}

OfferedKv::Step OfferedKv::Next(size_t n_sent) {
  std::lock_guard lock(mutex_);
  if (state_ == State::kReleased) return outcome_;
  if (n_sent < chunks_.size()) return chunks_[n_sent];
  if (state_ == State::kFinished) return end_;
  return MustWait{};
}

asio::awaitable<bool> OfferedKv::Changed(absl::Duration limit) {
  if (!timer_) co_return true;
  timer_->expires_after(absl::ToChronoNanoseconds(limit));
  auto [cancelled] = co_await timer_->async_wait(asio::as_tuple(asio::use_awaitable));
  co_return bool{cancelled};
}

void OfferedKv::CountSent(uint64_t bytes, size_t encoding) {
  ++stats_.chunks;
  ++stats_.encodings[encoding];
  stats_.bytes += bytes;
}

uint32_t OfferedKv::computed_tokens() {
  std::lock_guard lock(mutex_);
  return positions_.next();
}

}  // namespace tandem::kvstore
