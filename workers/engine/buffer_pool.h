// Large uninitialised buffers that are used again: the page faults of fresh memory cost more than
// the copies into it. For the KV on its way in and out of libllama.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

namespace tandem::workers {

class BufferPool;

/// Memory on loan from a pool; goes back on destruction. Movable.
class PooledBuffer {
 public:
  PooledBuffer() = default;
  PooledBuffer(std::shared_ptr<BufferPool> pool, std::unique_ptr<uint8_t[]> memory, size_t size,
               size_t capacity);
  ~PooledBuffer();
  PooledBuffer(PooledBuffer&& other) noexcept { *this = std::move(other); }
  PooledBuffer& operator=(PooledBuffer&& other) noexcept;

  std::span<uint8_t> bytes() { return {memory_.get(), size_}; }
  std::span<const uint8_t> bytes() const { return {memory_.get(), size_}; }
  bool empty() const { return memory_ == nullptr; }

 private:
  std::shared_ptr<BufferPool> pool_;
  std::unique_ptr<uint8_t[]> memory_;
  size_t size_ = 0, capacity_ = 0;
};

/// Thread-safe. Keeps at most kSpareBytes that nobody uses.
class BufferPool : public std::enable_shared_from_this<BufferPool> {
 public:
  static constexpr size_t kSpareBytes = size_t{256} << 20;

  /// `size` bytes of undefined content; empty when there is no memory. REQUIRES: size > 0.
  PooledBuffer Take(size_t size);

 private:
  friend class PooledBuffer;
  struct Spare {
    std::unique_ptr<uint8_t[]> memory;
    size_t capacity = 0;
  };
  void Return(Spare spare);

  std::mutex mutex_;
  std::vector<Spare> spares_;  // guarded by mutex_
  size_t spare_bytes_ = 0;     // guarded by mutex_
};

}  // namespace tandem::workers
