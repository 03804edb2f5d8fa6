// What the disk tier knows of its entries without reading the disk, and in which order they go.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "kvstore/chunk.h"

namespace tandem::kvstore {

/// Of one entry, as it stands in the database's index.
struct DiskRecord {
  uint32_t first_position = 0, n_tokens = 0;
  /// Of the chunk, its envelope included.
  uint64_t bytes = 0;
  /// When it was last used, in units of kUseGranularitySeconds.
  int64_t last_use = 0;
  bool pinned = false;
  /// Tells an entry from one of the same key that was there before; not kept in the database.
  uint64_t generation = 0;

  /// 26 bytes: version, pinned, then the numbers, little endian.
  std::string Encode() const;
  /// DATA_LOSS for other bytes.
  static absl::StatusOr<DiskRecord> Decode(std::string_view bytes);
};

/// Chunks of one prompt are used one after the other: within so long they count as used together,
/// so that the order of their positions decides.
inline constexpr int64_t kUseGranularitySeconds = 10;

/// Not thread-safe: its owner's mutex guards it.
class DiskIndex {
 public:
  /// Null when it is not here. Valid until the next change.
  const DiskRecord* Find(const ChunkKey& key) const;
  /// REQUIRES: the key is not here.
  void Insert(const ChunkKey& key, DiskRecord record);
  /// What was there; nothing when it is not here.
  std::optional<DiskRecord> Erase(const ChunkKey& key);
  /// False when nothing changes by it.
  bool Touch(const ChunkKey& key, int64_t now);
  bool SetPinned(const ChunkKey& key, bool pinned);

  /// What a chunk of `chunk_bytes` counts.
  static uint64_t SizeOf(uint64_t chunk_bytes);
  /// The entries to evict, in order, so that `bytes_to_add` more are at most `limit_bytes` in all.
  /// Nothing when all that may be evicted are not enough.
  std::optional<std::vector<ChunkKey>> Victims(uint64_t bytes_to_add, uint64_t limit_bytes) const;

  /// Of all entries, each with its overhead.
  uint64_t bytes() const { return bytes_; }
  uint64_t pinned_bytes() const { return pinned_bytes_; }
  size_t size() const { return records_.size(); }
  const absl::flat_hash_map<ChunkKey, DiskRecord>& records() const { return records_; }

 private:
  struct Place {
    int64_t last_use;
    uint32_t from_end;    // the deeper, the smaller
    uint64_t generation;  // what came first goes first: that leaves whole files empty
    ChunkKey key;
    auto operator<=>(const Place&) const = default;
  };
  static Place PlaceOf(const ChunkKey& key, const DiskRecord& record) {
    return {record.last_use, UINT32_MAX - record.first_position, record.generation, key};
  }

  absl::flat_hash_map<ChunkKey, DiskRecord> records_;
  std::set<Place> order_;  // of what is not pinned
  uint64_t bytes_ = 0, pinned_bytes_ = 0, last_generation_ = 0;
};

}  // namespace tandem::kvstore
