// The chunks that one process keeps, over all of its tiers. Prefill workers put in what they
// compute and take out what they need; the data plane serves it to others; routers hear of it
// through the journal.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kvstore/chunk.h"
#include "kvstore/chunk_journal.h"
#include "kvstore/tiers/disk_tier.h"
#include "kvstore/tiers/redis_tier.h"
#include "kvstore/tiers/tier.h"

namespace tandem::kvstore {

/// Where a chunk came from, from near to far. The first three are tiers of a Store.
enum class Origin : uint8_t { kMemory = 0, kDisk = 1, kRedis = 2, kPeer = 3 };
/// "memory", "disk", "redis", "peer": labels of metrics, words of the API.
std::string_view OriginName(Origin origin);

struct StoreOptions {
  uint64_t memory_bytes = uint64_t{1} << 30;
  /// Absent: no disk tier, no Redis tier.
  std::optional<DiskTierOptions> disk;
  std::optional<RedisTierOptions> redis;
  /// Bytes that may wait to be written to disk and to Redis, for each of the two; more are not
  /// written there, and counted.
  uint64_t max_pending_bytes = uint64_t{256} << 20;
};

struct StoreStats {
  /// By Origin; a tier that is not there is absent.
  std::array<std::optional<TierStats>, 3> tiers;
  /// By Origin: calls of Fetch and FetchShared that found the chunk there. `misses`: that did not,
  /// and calls of CountMiss.
  std::array<uint64_t, 3> hits{};
  uint64_t misses = 0;
  /// Write-behind, by Origin (memory's are 0). Dropped: no room to wait, or the write failed.
  std::array<uint64_t, 3> pending_bytes{}, dropped_writes{};
  /// Pinned ids; leased ids.
  uint64_t pins = 0, leases = 0;
};

/// All members are thread-safe. Nothing here waits for a disk or a Redis but the callbacks.
///
/// A chunk put in lands in memory at once and is written behind to disk and Redis. What memory
/// evicts stays on disk; what is fetched from disk or Redis rises to memory. Pinning keeps all
/// levels of an id from eviction; readers hold chunks by pointer, so eviction never frees under
/// one.
class Store {
 public:
  /// Opens the tiers; a disk that holds chunks already is listed. Errors of OpenDiskTier and
  /// NewRedisTier.
  static absl::StatusOr<std::unique_ptr<Store>> Open(StoreOptions options);
  /// With these tiers instead of the options' disk and Redis, either may be null: for tests.
  static std::unique_ptr<Store> OpenWith(StoreOptions options, std::unique_ptr<DiskTier> disk,
                                         std::unique_ptr<Tier> shared);
  /// Writes out what is pending, for kFlushLimit at most, and stops the threads. Callbacks that are
  /// waiting run with UNAVAILABLE.
  virtual ~Store() = default;
  static constexpr absl::Duration kFlushLimit = absl::Seconds(5);

  /// What memory and disk hold of an id. What waits to be written to disk counts as there.
  struct Holding {
    /// Bit i: level i is held.
    uint8_t levels = 0;
    uint32_t n_tokens = 0;
    /// By level: envelope and payload; 0 when not held.
    std::array<uint64_t, 5> bytes{};
    /// By level: kMemory or kDisk.
    std::array<Origin, 5> origins{};
  };
  /// One for each id. From an index in memory: microseconds.
  virtual std::vector<Holding> Find(std::span<const ChunkId> ids) const = 0;

  struct Fetched {
    StoredChunkPtr chunk;
    Origin origin = Origin::kMemory;
  };
  using FetchCallback = std::function<void(absl::StatusOr<Fetched>)>;
  /// Gets a chunk from memory (then `done` runs before Fetch returns) or disk (then on a thread of
  /// the store's, which it must not block). Its checksum has been verified; a damaged one is
  /// dropped and counts as NOT_FOUND. Rises to memory.
  virtual void Fetch(const ChunkKey& key, FetchCallback done) = 0;

  /// There is a Redis tier.
  virtual bool has_shared_tier() const = 0;
  /// Which of the keys the Redis tier has; all false without one, when it is away or slow. On a
  /// thread of the store's, within the tier's time limit.
  virtual void FindShared(std::vector<ChunkKey> keys,
                          std::function<void(std::vector<bool>)> done) = 0;
  /// Gets a chunk from Redis, as Fetch does from disk.
  virtual void FetchShared(const ChunkKey& key, FetchCallback done) = 0;

  /// Keeps the chunk; nothing happens when it is held already.
  virtual void Put(StoredChunkPtr chunk) = 0;
  /// Drops all levels of the id from memory and disk (there within moments). True when there was
  /// any.
  virtual bool Remove(const ChunkId& id) = 0;
  /// Drops this level alone: it turned out to be of no use here. A pin of the id goes with the last
  /// level.
  virtual void Discard(const ChunkKey& key) = 0;
  /// True when the id is held here.
  virtual bool SetPinned(const ChunkId& id, bool pinned) = 0;
  /// Counts one more peer that was promised these chunks: until it calls Unlease, memory evicts
  /// none of their levels that it holds now. What the disk alone holds counts as used. Leased
  /// chunks take at most half of memory; beyond that a promise is only probable. Not kept over a
  /// restart. Returns those that are leased.
  virtual std::vector<ChunkId> Lease(std::span<const ChunkId> ids) = 0;
  /// REQUIRES: as many calls of Lease that returned the id before.
  virtual void Unlease(std::span<const ChunkId> ids) = 0;
  /// Somebody computed or fetched otherwise what was asked for by Find: a miss, for the statistics.
  /// Not for a Fetch that failed, which counts by itself.
  virtual void CountMiss() = 0;

  /// Every entry of memory and disk (one that both hold comes once, as kMemory); stops when `visit`
  /// returns false. Holds no lock while `visit` runs.
  virtual void ForEach(
      const std::function<bool(const TierEntry& entry, Origin origin)>& visit) const = 0;
  virtual StoreStats stats() const = 0;
  /// What is held, as it changes: for the routers' directories.
  virtual const std::shared_ptr<ChunkJournal>& journal() const = 0;
  /// Waits until all that was pending when it was called is written. For tests and shutdown.
  virtual void Flush() = 0;
};

}  // namespace tandem::kvstore
