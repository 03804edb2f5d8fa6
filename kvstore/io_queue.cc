#include "kvstore/io_queue.h"

#include <utility>

namespace tandem::kvstore {

IoQueue::IoQueue(Options options) : options_(std::move(options)), thread_([this] { Run(); }) {}

IoQueue::~IoQueue() { Stop(absl::ZeroDuration()); }

void IoQueue::PushRead(Read read) {
  {
    std::lock_guard lock(mutex_);
    if (!stopping_) {
      reads_.push_back(std::move(read));
      work_.notify_one();
      return;
    }
  }
  read(true);
}

bool IoQueue::PushWrite(StoredChunkPtr chunk) {
  std::lock_guard lock(mutex_);
  const ChunkKey key = chunk->key();
  if (const auto found = waiting_.find(key); found != waiting_.end()) {
    // What is being written is the same chunk, so it need not be written once more.
    found->second.canceled = false;
    return true;
  }
  const uint64_t bytes = chunk->bytes().size();
  if (stopping_ || pending_bytes_ + bytes > options_.max_pending_bytes) {
    ++dropped_writes_;
    return false;
  }
  pending_bytes_ += bytes;
  waiting_[key].chunk = std::move(chunk);
  writes_.push_back(key);
  ++pushed_;
  work_.notify_one();
  return true;
}

StoredChunkPtr IoQueue::Pending(const ChunkKey& key) const {
  std::lock_guard lock(mutex_);
  const auto found = waiting_.find(key);
  return found == waiting_.end() || found->second.canceled ? nullptr : found->second.chunk;
}

void IoQueue::Cancel(const ChunkKey& key) {
  std::lock_guard lock(mutex_);
  const auto found = waiting_.find(key);
  if (found == waiting_.end()) return;
  if (found->second.writing) {
    found->second.canceled = true;
    return;
  }
  pending_bytes_ -= found->second.chunk->bytes().size();
  waiting_.erase(found);
}

void IoQueue::WriteNext(std::unique_lock<std::mutex>& lock) {
  const ChunkKey key = writes_.front();
  writes_.pop_front();
  if (const auto found = waiting_.find(key); found != waiting_.end()) {
    found->second.writing = true;
    const StoredChunkPtr chunk = found->second.chunk;
    lock.unlock();
    const bool written = options_.write(chunk);
    lock.lock();
    const bool canceled = waiting_.at(key).canceled;
    waiting_.erase(key);
    if (!written) ++dropped_writes_;
    lock.unlock();
    options_.written(key, canceled);
    lock.lock();
    // Only now: who waits for the write may look at what follows from it.
    pending_bytes_ -= chunk->bytes().size();
  }
  ++popped_;
  progress_.notify_all();
}

void IoQueue::Run() {
  std::unique_lock lock(mutex_);
  while (true) {
    work_.wait(lock, [this] { return stopping_ || !reads_.empty() || !writes_.empty(); });
    if (!reads_.empty()) {
      const Read read = std::move(reads_.front());
      reads_.pop_front();
      const bool stopping = stopping_;
      lock.unlock();
      read(stopping);
      lock.lock();
    } else if (stopping_) {
      return;
    } else {
      WriteNext(lock);
    }
  }
}

bool IoQueue::Flush(absl::Duration limit) {
  std::unique_lock lock(mutex_);
  return progress_.wait_for(lock, absl::ToChronoNanoseconds(limit),
                            [this, until = pushed_] { return popped_ >= until || stopping_; });
}

void IoQueue::Stop(absl::Duration flush_limit) {
  if (!thread_.joinable()) return;
  Flush(flush_limit);
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  work_.notify_all();
  progress_.notify_all();
  thread_.join();
}

uint64_t IoQueue::pending_bytes() const {
  std::lock_guard lock(mutex_);
  return pending_bytes_;
}

uint64_t IoQueue::dropped_writes() const {
  std::lock_guard lock(mutex_);
  return dropped_writes_;
}

}  // namespace tandem::kvstore
