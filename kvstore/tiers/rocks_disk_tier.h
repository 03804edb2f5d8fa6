// The disk tier itself: an index in memory over a database, and a thread that tidies up. Its parts
// are in disk_tier.cc (reading and writing) and disk_recovery.cc (opening, failure, garbage).
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "kvstore/tiers/disk_database.h"
#include "kvstore/tiers/disk_index.h"
#include "kvstore/tiers/disk_tier.h"

namespace tandem::kvstore {

class RocksDiskTier final : public DiskTier {
 public:
  RocksDiskTier(DiskTierOptions options, std::unique_ptr<DiskDatabase> database)
      : options_(std::move(options)), database_(std::move(database)) {
    if (!options_.now) options_.now = [] { return absl::Now(); };
  }
  ~RocksDiskTier() override;

  // Reads the index, trims to the limit, starts the thread. Once, before all else.
  absl::Status Start();

  std::string_view name() const override { return "disk"; }
  absl::StatusOr<StoredChunkPtr> Get(const ChunkKey& key) override;
  std::vector<bool> Contains(std::span<const ChunkKey> keys) override;
  absl::Status Put(StoredChunkPtr chunk) override;
  void Erase(const ChunkKey& key) override;
  bool SetPinned(const ChunkKey& key, bool pinned) override;
  void Touch(const ChunkKey& key) override;
  void ForEach(const std::function<bool(const TierEntry&)>& visit) override;
  TierStats stats() const override;

 private:
  using Dropped = std::vector<ChunkKey>;

  int64_t Use() const { return absl::ToUnixSeconds(options_.now()) / kUseGranularitySeconds; }
  absl::Status AtPath(const absl::Status& status) const;
  void Tell(const Dropped& dropped) const;

  // These: write_mutex_ is held, mutex_ is not.
  absl::Status LoadIndex();
  absl::Status MatchIndexToDatabase(Dropped& dropped);
  absl::Status Trim(Dropped& dropped);
  absl::Status MayWrite(const StoredChunk& chunk, Dropped& dropped);
  absl::Status WaitForSpace();
  absl::Status Recover(Dropped& dropped);
  size_t DropUnreadable(Dropped& dropped);
  absl::Status WriteWithEviction(StoredChunkPtr chunk, Dropped& dropped);
  absl::Status WriteChanges(DiskBatch batch);
  absl::Status WriteAllChanges();
  absl::Status Failed(const absl::Status& status);
  void Succeeded();

  absl::Status DropDamaged(const ChunkKey& key, uint64_t generation, const absl::Status& status);
  void MarkChanged(const ChunkKey& key);

  // The thread's.
  void Maintain();
  void CollectGarbage();
  uint64_t GarbageBytes() const;

  DiskTierOptions options_;
  const std::unique_ptr<DiskDatabase> database_;

  // One writer at a time, so that the index and the database change in the same order. Taken before
  // mutex_, never with it held.
  std::mutex write_mutex_;
  absl::Status last_error_;           // guarded by write_mutex_
  uint64_t written_since_check_ = 0;  // guarded by write_mutex_

  // Guards what follows; never held over a disk access, once it is open.
  mutable std::mutex mutex_;
  std::condition_variable wake_, tidied_;
  DiskIndex index_;
  // Keys whose entry in the database is not what the index says: written with the next write.
  absl::flat_hash_set<ChunkKey> changed_;
  TierStats stats_;  // but for what the index knows
  absl::Time retry_at_ = absl::InfinitePast();
  bool damage_found_ = false;  // last_error_ is such
  uint64_t tidying_steps_ = 0;
  std::optional<uint64_t> waited_for_step_;  // in vain
  bool write_soon_ = false, collect_ = false, stop_ = false;

  std::thread thread_;
};

}  // namespace tandem::kvstore
