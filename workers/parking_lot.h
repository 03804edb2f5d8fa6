// Where sequences' KV waits that has to make room in the decode engine: encoded without loss, in
// host memory up to a limit, beyond it in the worker's store. Owned by Worker, used by its decode
// loop.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "absl/status/statusor.h"
#include "kvstore/kv_layout.h"
#include "kvstore/store.h"
#include "workers/kv_coder.h"

namespace tandem::workers {

/// One sequence's KV in the lot. Whoever drops the last reference frees its place. States:
///
///   encoding ── every chunk encoded ──> parked ── Fetch ──> (given out; it stays parked)
class ParkedKv;
using ParkedKvPtr = std::shared_ptr<ParkedKv>;

/// Thread-safe.
class ParkingLot {
 public:
  struct Options {
    /// Bytes that are kept in host memory.
    uint64_t memory_bytes = uint64_t{256} << 20;
    /// KvLayout::BytesPerToken; 0 when the layout is opaque.
    uint64_t raw_bytes_per_token = 0;
  };
  /// `store` may be null; it and `coder` must outlive the lot, and the coder must be stopped before
  /// it ends. Drops what an earlier run of the process has left in the store.
  ParkingLot(kvstore::Store* store, KvCoder* coder, Options options);

  /// Whether KV of so many bytes may be parked. What turned out to have no room is in host memory
  /// all the same; until that is over there is room for nothing.
  bool HasRoom(uint64_t raw_bytes) const;
  /// Takes the chunks of one sequence; encodes them in the background.
  ParkedKvPtr Park(std::vector<kvstore::KvChunk> chunks);
  /// Fills `sink`, then calls `done` once, on a thread of the coder's or the store's; both must
  /// live until then. DATA_LOSS or UNAVAILABLE when the store has lost it.
  void Fetch(ParkedKvPtr parked, kvstore::KvSink* sink, std::function<void(absl::Status)> done);

  /// Encoded bytes, in host memory and in the store.
  uint64_t bytes() const { return memory_bytes_ + store_bytes_; }

 private:
  friend class ParkedKv;
  struct Piece;
  struct FetchState;
  void Encode(ParkedKv& parked, size_t index, const kvstore::KvChunk& chunk);
  void Keep(Piece& piece, kvstore::StoredChunkPtr sealed);
  void FetchNext(std::shared_ptr<FetchState> state);
  absl::Status Decode(const FetchState& state, const kvstore::StoredChunk& chunk, bool raw);

  kvstore::Store* const store_;
  KvCoder* const coder_;
  const Options options_;
  /// Raw bytes that are being encoded; encoded bytes by place.
  std::atomic<uint64_t> encoding_bytes_ = 0, memory_bytes_ = 0, store_bytes_ = 0;
  std::atomic<bool> store_full_ = false;
};

}  // namespace tandem::workers
