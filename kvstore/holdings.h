// What a store holds, by chunk id: the index behind Store::Find.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "kvstore/store.h"

namespace tandem::kvstore {

/// Not thread-safe: the store's mutex guards it.
class Holdings {
 public:
  /// Says where a chunk is. `entry`: its numbers, or null where they are known already; with
  /// neither it stays unknown. True when the levels of its id changed by that.
  bool Set(const ChunkKey& key, const TierEntry* entry, bool in_memory, bool on_disk);
  /// Forgets an id. False when it is not held.
  bool Erase(const ChunkId& id);

  Store::Holding Find(const ChunkId& id) const;
  /// Bit i: level i is held.
  uint8_t Levels(const ChunkId& id) const;
  bool InMemory(const ChunkKey& key) const;
  bool Holds(const ChunkKey& key) const;

  bool pinned(const ChunkId& id) const;
  /// False when the id is not held.
  bool SetPinned(const ChunkId& id, bool pinned);
  uint64_t pins() const { return pins_; }

  /// One more lease. False, and nothing is counted, when the id is not held or what is leased would
  /// take more than `most_bytes` of memory.
  bool AddLease(const ChunkId& id, uint64_t most_bytes);
  void DropLease(const ChunkId& id);
  bool leased(const ChunkId& id) const;
  uint64_t leases() const { return leases_; }

  struct Listed {
    TierEntry entry;
    Origin origin;
  };
  std::vector<Listed> List() const;

 private:
  struct Place {
    uint64_t bytes = 0;
    bool in_memory = false, on_disk = false;
    bool held() const { return in_memory || on_disk; }
  };
  struct Slot {
    uint32_t first_position = 0, n_tokens = 0;
    bool pinned = false;
    uint32_t leases = 0;
    uint64_t leased_bytes = 0;
    std::array<Place, codec::kAllLevels.size()> levels;
    uint8_t mask() const;
  };
  void EndLease(Slot& slot);
  const Place* FindPlace(const ChunkKey& key) const;

  absl::flat_hash_map<ChunkId, Slot> slots_;
  uint64_t pins_ = 0;
  /// Leased ids, and what they took of memory when the first lease began.
  uint64_t leases_ = 0, leased_bytes_ = 0;
};

}  // namespace tandem::kvstore
