// One place where chunks are kept: memory, a disk, a Redis. The store asks them in that order and
// moves chunks between them.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "kvstore/chunk.h"

namespace tandem::kvstore {

/// What a tier tells of itself.
struct TierStats {
  uint64_t bytes = 0, limit_bytes = 0;
  uint64_t chunks = 0;
  /// Since start.
  uint64_t evictions = 0, evicted_bytes = 0;
  /// Entries that were found damaged and dropped.
  uint64_t damaged = 0;
  /// Operations that failed: a disk without room, a Redis that does not answer.
  uint64_t failures = 0;
  /// False while the tier is left alone because it failed.
  bool healthy = true;
};

/// Of an entry, without its bytes.
struct TierEntry {
  ChunkKey key;
  uint32_t first_position = 0, n_tokens = 0;
  uint64_t bytes = 0;
  bool pinned = false;
};

/// Thread-safe. Calls block for as long as the medium takes (memory: microseconds; a Redis: at
/// most its time limit).
class Tier {
 public:
  virtual ~Tier() = default;
  /// "memory", "disk", "redis": the label of metrics.
  virtual std::string_view name() const = 0;

  /// NOT_FOUND; DATA_LOSS when what was there is damaged (it is dropped and counted); UNAVAILABLE
  /// when the medium fails.
  virtual absl::StatusOr<StoredChunkPtr> Get(const ChunkKey& key) = 0;
  /// Which of the keys are here. All false when the medium fails.
  virtual std::vector<bool> Contains(std::span<const ChunkKey> keys) = 0;
  /// Keeps the chunk, evicting others where needed. RESOURCE_EXHAUSTED when it is larger than all
  /// that may be evicted for it; UNAVAILABLE when the medium fails.
  virtual absl::Status Put(StoredChunkPtr chunk) = 0;
  /// Does nothing when it is not here.
  virtual void Erase(const ChunkKey& key) = 0;
  /// A pinned entry is not evicted. False when it is not here, or the tier cannot pin.
  virtual bool SetPinned(const ChunkKey& key, bool pinned) = 0;
  /// Calls `visit` for every entry, in no order; stops when it returns false. Not for tiers that
  /// are shared between machines: they visit nothing.
  virtual void ForEach(const std::function<bool(const TierEntry&)>& visit) = 0;
  virtual TierStats stats() const = 0;
};

}  // namespace tandem::kvstore
