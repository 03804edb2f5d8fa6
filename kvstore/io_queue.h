// A thread of the store's for one slow tier: what is read there, before what is written behind.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

#include "absl/container/flat_hash_map.h"
#include "absl/time/time.h"
#include "kvstore/chunk.h"

namespace tandem::kvstore {

/// Thread-safe. The functions given run on the queue's thread, one at a time.
class IoQueue {
 public:
  struct Options {
    /// Of chunks that wait to be written.
    uint64_t max_pending_bytes = 0;
    /// Writes a chunk. False when that failed.
    std::function<bool(const StoredChunkPtr&)> write;
    /// The chunk no longer waits. `canceled`: somebody did so while it was being written.
    std::function<void(const ChunkKey&, bool canceled)> written;
  };
  explicit IoQueue(Options options);
  /// Calls Stop(0).
  ~IoQueue();

  /// `stopping`: the queue is at its end, do not wait for the tier. After Stop it runs at once.
  using Read = std::function<void(bool stopping)>;
  void PushRead(Read read);
  /// False when there is no room; that counts as a dropped write. True as well when the same chunk
  /// waits already.
  bool PushWrite(StoredChunkPtr chunk);
  /// The chunk if it waits to be written, or is being written; null otherwise.
  StoredChunkPtr Pending(const ChunkKey& key) const;
  /// A chunk that waits is not written.
  void Cancel(const ChunkKey& key);

  /// Waits until what was pushed before is written, or failed. False when that took longer.
  bool Flush(absl::Duration limit);
  /// Flush, then drops the writes that are left, ends the reads and the thread.
  void Stop(absl::Duration flush_limit);

  uint64_t pending_bytes() const;
  uint64_t dropped_writes() const;

 private:
  struct Waiting {
    StoredChunkPtr chunk;
    bool writing = false, canceled = false;
  };

  void Run();
  // mutex_ is held, and is released while the functions run.
  void WriteNext(std::unique_lock<std::mutex>& lock);

  const Options options_;
  mutable std::mutex mutex_;
  std::condition_variable work_, progress_;
  // Guarded by mutex_.
  std::deque<Read> reads_;
  std::deque<ChunkKey> writes_;  // in order; one that is no longer waiting was canceled
  absl::flat_hash_map<ChunkKey, Waiting> waiting_;
  uint64_t pushed_ = 0, popped_ = 0;  // of writes_
  uint64_t pending_bytes_ = 0, dropped_writes_ = 0;
  bool stopping_ = false;

  std::thread thread_;
};

}  // namespace tandem::kvstore
