#include "workers/engine/buffer_pool.h"

#include <new>
#include <utility>

namespace tandem::workers {

PooledBuffer::PooledBuffer(std::shared_ptr<BufferPool> pool, std::unique_ptr<uint8_t[]> memory,
                           size_t size, size_t capacity)
    : pool_(std::move(pool)), memory_(std::move(memory)), size_(size), capacity_(capacity) {}

PooledBuffer::~PooledBuffer() {
  if (memory_ != nullptr) pool_->Return({std::move(memory_), capacity_});
}

PooledBuffer& PooledBuffer::operator=(PooledBuffer&& other) noexcept {
  std::swap(pool_, other.pool_);
  std::swap(memory_, other.memory_);
  std::swap(size_, other.size_);
  std::swap(capacity_, other.capacity_);
  return *this;
}

PooledBuffer BufferPool::Take(size_t size) {
  {
    std::lock_guard lock(mutex_);
    size_t best = spares_.size();
    for (size_t i = 0; i < spares_.size(); ++i) {
      const bool fits = spares_[i].capacity >= size;
      const bool first = best == spares_.size();
      if (fits && (first || spares_[i].capacity < spares_[best].capacity)) best = i;
    }
    if (best < spares_.size()) {
      Spare spare = std::move(spares_[best]);
      spares_.erase(spares_.begin() + best);
      spare_bytes_ -= spare.capacity;
      return PooledBuffer(shared_from_this(), std::move(spare.memory), size, spare.capacity);
    }
  }
  std::unique_ptr<uint8_t[]> memory(new (std::nothrow) uint8_t[size]);
  if (memory == nullptr) return {};
  return PooledBuffer(shared_from_this(), std::move(memory), size, size);
}

void BufferPool::Return(Spare spare) {
  std::vector<Spare> dropped;  // freed after the lock is released
  std::lock_guard lock(mutex_);
  spare_bytes_ += spare.capacity;
  spares_.push_back(std::move(spare));
  while (spare_bytes_ > kSpareBytes) {  // the longest unused first
    spare_bytes_ -= spares_.front().capacity;
    dropped.push_back(std::move(spares_.front()));
    spares_.erase(spares_.begin());
  }
}

}  // namespace tandem::workers
