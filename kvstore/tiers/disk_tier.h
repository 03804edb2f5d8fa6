// Chunks on a local disk, in RocksDB with blob files, within a limit of bytes. Survives kill -9.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/time/time.h"
#include "kvstore/tiers/tier.h"

namespace tandem::kvstore {

/// What an entry counts besides its chunk's bytes: its record, its keys, their tables.
inline constexpr uint64_t kDiskEntryOverhead = 256;

struct DiskTierOptions {
  /// A folder of its own; made when it is missing.
  std::string path;
  /// Of entries, each with its chunk's bytes and kDiskEntryOverhead. The folder takes up to about
  /// one and a half times as much, or 16 MiB more where that is more: what is evicted gives its
  /// space back a while later, and what is new stands in a log too. A chunk that would go far
  /// beyond is refused with RESOURCE_EXHAUSTED until that has happened.
  uint64_t limit_bytes = uint64_t{16} << 30;
  /// After a failed write nothing is written for so long; reads go on.
  absl::Duration retry_after = absl::Seconds(10);
  /// Now, for tests.
  std::function<absl::Time()> now;
  /// Called, without locks held, with the key of each entry that was evicted or found damaged. On
  /// the thread of the call that did it, or one of the tier's own.
  std::function<void(const ChunkKey&)> on_dropped;
};

/// Contains, Erase, SetPinned, ForEach and Touch work on an index in memory and wait for no disk;
/// what they change is written soon after, so a kill in between may bring back what was erased or
/// forget a pin. Least recently used entries are evicted first; uses within the same 10 seconds are
/// equals, of which the deepest position goes first.
///
/// Put survives the death of the process in any way; the last few seconds of it may be lost when
/// the machine dies.
class DiskTier : public Tier {
 public:
  /// Counts as a use: for what is used elsewhere, so that the disk keeps it.
  virtual void Touch(const ChunkKey& key) = 0;
};

/// Opens or makes the database; an existing one keeps its chunks (and is trimmed to the limit).
/// Every read checks the envelope's checksum besides RocksDB's own. A full or failing disk makes
/// Put fail with UNAVAILABLE and `healthy` false for a while, and is no reason to stop.
/// UNAVAILABLE when it cannot be opened: the message names the path and what to do.
absl::StatusOr<std::unique_ptr<DiskTier>> OpenDiskTier(DiskTierOptions options);

}  // namespace tandem::kvstore
