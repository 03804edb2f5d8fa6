#include "kvstore/store.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <utility>

#include "absl/time/clock.h"
#include "base/status_macros.h"
#include "kvstore/holdings.h"
#include "kvstore/io_queue.h"
#include "kvstore/tiers/memory_tier.h"

namespace tandem::kvstore {
namespace {

constexpr size_t Index(Origin origin) { return static_cast<size_t>(origin); }

TierEntry EntryOf(const StoredChunk& chunk) {
  return {.key = chunk.key(),
          .first_position = chunk.first_position(),
          .n_tokens = chunk.n_tokens(),
          .bytes = chunk.bytes().size()};
}

// Every tier changes by itself, on any thread. What is held is therefore not counted along but
// asked for: after each change of a tier, Update looks where the chunk is, one key at a time under
// mutex_, so the last look sees the last change.
class TieredStore final : public Store {
 public:
  explicit TieredStore(const StoreOptions& options);
  ~TieredStore() override;

  // Once each, before all else; null is allowed.
  void Attach(std::unique_ptr<DiskTier> disk);
  void AttachShared(std::unique_ptr<Tier> shared);
  // What a disk tier has dropped, also while it is not attached yet.
  void Update(const ChunkKey& key, const TierEntry* entry = nullptr);

  std::vector<Holding> Find(std::span<const ChunkId> ids) const override;
  void Fetch(const ChunkKey& key, FetchCallback done) override;
  void FindShared(std::vector<ChunkKey> keys, std::function<void(std::vector<bool>)> done) override;
  void FetchShared(const ChunkKey& key, FetchCallback done) override;
  void Put(StoredChunkPtr chunk) override;
  bool Remove(const ChunkId& id) override;
  void Discard(const ChunkKey& key) override;
  bool SetPinned(const ChunkId& id, bool pinned) override;
  std::vector<ChunkId> Lease(std::span<const ChunkId> ids) override;
  void Unlease(std::span<const ChunkId> ids) override;
  bool has_shared_tier() const override { return shared_ != nullptr; }
  void CountMiss() override { ++misses_; }
  void ForEach(
      const std::function<bool(const TierEntry& entry, Origin origin)>& visit) const override;
  StoreStats stats() const override;
  const std::shared_ptr<ChunkJournal>& journal() const override { return journal_; }
  void Flush() override;

 private:
  // mutex_ is held.
  void UpdateLocked(const ChunkKey& key, const TierEntry* entry);
  bool OnDisk(const ChunkKey& key);

  void Fall(const StoredChunkPtr& chunk);
  void DiskWritten(const ChunkKey& key, bool canceled);
  absl::StatusOr<Fetched> FetchFromDisk(const ChunkKey& key);
  absl::StatusOr<Fetched> FetchFromShared(const ChunkKey& key);
  Fetched Hit(StoredChunkPtr chunk, Origin origin);
  absl::Status Miss(const absl::Status& status);

  const uint64_t max_pending_bytes_, max_leased_bytes_;
  const std::shared_ptr<ChunkJournal> journal_ = std::make_shared<ChunkJournal>();
  std::array<std::atomic<uint64_t>, 3> hits_{};
  std::atomic<uint64_t> misses_ = 0;

  // Taken before any tier's or queue's own; these call back with none held.
  mutable std::mutex mutex_;
  Holdings holdings_;  // guarded by mutex_

  // Set once; by Attach under mutex_, since a disk tier calls back as soon as it exists.
  std::unique_ptr<Tier> memory_, shared_;
  std::unique_ptr<IoQueue> shared_queue_, disk_queue_;
  std::unique_ptr<DiskTier> disk_;  // last, since its end may call back
};

TieredStore::TieredStore(const StoreOptions& options)
    : max_pending_bytes_(options.max_pending_bytes), max_leased_bytes_(options.memory_bytes / 2) {
  memory_ = NewMemoryTier({.limit_bytes = options.memory_bytes,
                           .on_evicted = [this](StoredChunkPtr chunk) { Fall(chunk); }});
}

TieredStore::~TieredStore() {
  const absl::Time end = absl::Now() + kFlushLimit;
  uint64_t unwritten = 0;
  for (const auto& queue : {disk_queue_.get(), shared_queue_.get()}) {
    if (!queue) continue;
    queue->Stop(std::max(end - absl::Now(), absl::ZeroDuration()));
    unwritten += queue->pending_bytes();
  }
  if (unwritten > 0) spdlog::warn("store closed with unwritten chunks bytes={}", unwritten);
}

void TieredStore::Attach(std::unique_ptr<DiskTier> disk) {
  if (!disk) return;
  std::lock_guard lock(mutex_);
  disk_ = std::move(disk);
  disk_queue_ = std::make_unique<IoQueue>(IoQueue::Options{
      .max_pending_bytes = max_pending_bytes_,
      .write = [this](const StoredChunkPtr& chunk) { return disk_->Put(chunk).ok(); },
      .written = [this](const ChunkKey& key, bool canceled) { DiskWritten(key, canceled); }});
  disk_->ForEach([this](const TierEntry& entry) {
    UpdateLocked(entry.key, &entry);
    if (entry.pinned) holdings_.SetPinned(entry.key.id, true);
    return true;
  });
}

void TieredStore::AttachShared(std::unique_ptr<Tier> shared) {
  if (!shared) return;
  shared_ = std::move(shared);
  shared_queue_ = std::make_unique<IoQueue>(IoQueue::Options{
      .max_pending_bytes = max_pending_bytes_,
      .write = [this](const StoredChunkPtr& chunk) { return shared_->Put(chunk).ok(); },
      .written = [](const ChunkKey&, bool) {}});
}

// What is where

void TieredStore::Update(const ChunkKey& key, const TierEntry* entry) {
  std::lock_guard lock(mutex_);
  UpdateLocked(key, entry);
}

void TieredStore::UpdateLocked(const ChunkKey& key, const TierEntry* entry) {
  const bool in_memory = memory_->Contains({&key, 1})[0];
  if (holdings_.Set(key, entry, in_memory, OnDisk(key))) {
    journal_->Record(key.id, holdings_.Levels(key.id));
  }
  if (!holdings_.pinned(key.id)) return;
  // A level that came after its id was pinned.
  memory_->SetPinned(key, true);
  if (disk_) disk_->SetPinned(key, true);
}

bool TieredStore::OnDisk(const ChunkKey& key) {
  if (!disk_) return false;
  // In this order: what is written between the two questions is found by the second.
  return disk_queue_->Pending(key) || disk_->Contains({&key, 1})[0];
}

std::vector<Store::Holding> TieredStore::Find(std::span<const ChunkId> ids) const {
  std::vector<Holding> found;
  found.reserve(ids.size());
  std::lock_guard lock(mutex_);
  for (const ChunkId& id : ids) found.push_back(holdings_.Find(id));
  return found;
}

void TieredStore::ForEach(
    const std::function<bool(const TierEntry& entry, Origin origin)>& visit) const {
  std::vector<Holdings::Listed> all;
  {
    std::lock_guard lock(mutex_);
    all = holdings_.List();
  }
  for (const Holdings::Listed& listed : all) {
    if (!visit(listed.entry, listed.origin)) return;
  }
}

bool TieredStore::SetPinned(const ChunkId& id, bool pinned) {
  std::lock_guard lock(mutex_);
  if (!holdings_.SetPinned(id, pinned)) return false;
  for (const Level level : codec::kAllLevels) {
    memory_->SetPinned({id, level}, pinned || holdings_.leased(id));
    if (disk_) disk_->SetPinned({id, level}, pinned);
  }
  return true;
}

std::vector<ChunkId> TieredStore::Lease(std::span<const ChunkId> ids) {
  std::vector<ChunkId> leased;
  std::lock_guard lock(mutex_);
  for (const ChunkId& id : ids) {
    if (!holdings_.AddLease(id, max_leased_bytes_)) continue;
    leased.push_back(id);
    for (const Level level : codec::kAllLevels) {
      const ChunkKey key{id, level};
      if (memory_->SetPinned(key, true) || !disk_ || !holdings_.Holds(key)) continue;
      disk_->Touch(key);
    }
  }
  return leased;
}

void TieredStore::Unlease(std::span<const ChunkId> ids) {
  std::lock_guard lock(mutex_);
  for (const ChunkId& id : ids) {
    holdings_.DropLease(id);
    if (holdings_.leased(id) || holdings_.pinned(id)) continue;
    for (const Level level : codec::kAllLevels) memory_->SetPinned({id, level}, false);
  }
}

bool TieredStore::Remove(const ChunkId& id) {
  std::lock_guard lock(mutex_);
  for (const Level level : codec::kAllLevels) {
    const ChunkKey key{id, level};
    if (shared_queue_) shared_queue_->Cancel(key);
    if (disk_) disk_queue_->Cancel(key);
    memory_->Erase(key);
    if (disk_) disk_->Erase(key);
  }
  if (!holdings_.Erase(id)) return false;
  journal_->Record(id, 0);
  return true;
}

void TieredStore::Discard(const ChunkKey& key) {
  std::lock_guard lock(mutex_);
  if (disk_) disk_queue_->Cancel(key);
  memory_->Erase(key);
  if (disk_) disk_->Erase(key);
  UpdateLocked(key, nullptr);
}

// Falling

void TieredStore::Put(StoredChunkPtr chunk) {
  const TierEntry entry = EntryOf(*chunk);
  bool on_disk = false;
  {
    std::lock_guard lock(mutex_);
    if (holdings_.InMemory(entry.key)) return;
    on_disk = holdings_.Holds(entry.key);
  }
  // To the queues first: if memory evicts it at once, it is already on its way.
  if (!on_disk && disk_) disk_queue_->PushWrite(chunk);
  if (!on_disk && shared_) shared_queue_->PushWrite(chunk);
  // Without room in memory the disk may still take it.
  memory_->Put(std::move(chunk)).IgnoreError();
  Update(entry.key, &entry);
}

// Memory has evicted it. A disk that missed it for lack of room or health gets another chance.
void TieredStore::Fall(const StoredChunkPtr& chunk) {
  const ChunkKey key = chunk->key();
  std::lock_guard lock(mutex_);
  // What somebody removed since must not come back.
  if (disk_ && holdings_.InMemory(key) && !OnDisk(key)) disk_queue_->PushWrite(chunk);
  UpdateLocked(key, nullptr);
}

void TieredStore::DiskWritten(const ChunkKey& key, bool canceled) {
  if (canceled) disk_->Erase(key);
  Update(key);
}

// Rising

Store::Fetched TieredStore::Hit(StoredChunkPtr chunk, Origin origin) {
  ++hits_[Index(origin)];
  return {std::move(chunk), origin};
}

absl::Status TieredStore::Miss(const absl::Status& status) {
  ++misses_;
  return absl::IsDataLoss(status) ? absl::NotFoundError("was damaged, and is dropped") : status;
}

void TieredStore::Fetch(const ChunkKey& key, FetchCallback done) {
  absl::StatusOr<StoredChunkPtr> chunk = memory_->Get(key);
  if (chunk.ok()) {
    // The disk cannot see that it is used; after a restart it should still have what is most used.
    if (disk_) disk_->Touch(key);
    return done(Hit(*std::move(chunk), Origin::kMemory));
  }
  if (absl::IsDataLoss(chunk.status())) Update(key);
  if (!OnDisk(key)) return done(Miss(absl::NotFoundError("not in memory, not on disk")));
  disk_queue_->PushRead([this, key, done = std::move(done)](bool stopping) {
    if (stopping) return done(absl::UnavailableError("the store is closing"));
    done(FetchFromDisk(key));
  });
}

absl::StatusOr<Store::Fetched> TieredStore::FetchFromDisk(const ChunkKey& key) {
  // Somebody who asked before may have brought it.
  absl::StatusOr<StoredChunkPtr> chunk = memory_->Get(key);
  if (chunk.ok()) return Hit(*std::move(chunk), Origin::kMemory);
  if (StoredChunkPtr pending = disk_queue_->Pending(key)) {
    chunk = std::move(pending);
  } else {
    chunk = disk_->Get(key);
  }
  if (!chunk.ok()) {
    Update(key);
    return Miss(chunk.status());
  }
  memory_->Put(*chunk).IgnoreError();
  std::lock_guard lock(mutex_);
  if (holdings_.Holds(key)) {
    UpdateLocked(key, nullptr);
  } else {
    // Removed while it was read.
    memory_->Erase(key);
  }
  return Hit(*std::move(chunk), Origin::kDisk);
}

void TieredStore::FindShared(std::vector<ChunkKey> keys,
                             std::function<void(std::vector<bool>)> done) {
  if (!shared_) return done(std::vector<bool>(keys.size()));
  shared_queue_->PushRead([this, keys = std::move(keys), done = std::move(done)](bool stopping) {
    done(stopping ? std::vector<bool>(keys.size()) : shared_->Contains(keys));
  });
}

void TieredStore::FetchShared(const ChunkKey& key, FetchCallback done) {
  if (!shared_) return done(Miss(absl::NotFoundError("there is no shared tier")));
  shared_queue_->PushRead([this, key, done = std::move(done)](bool stopping) {
    if (stopping) return done(absl::UnavailableError("the store is closing"));
    done(FetchFromShared(key));
  });
}

absl::StatusOr<Store::Fetched> TieredStore::FetchFromShared(const ChunkKey& key) {
  absl::StatusOr<StoredChunkPtr> chunk = memory_->Get(key);
  if (chunk.ok()) return Hit(*std::move(chunk), Origin::kMemory);
  chunk = shared_->Get(key);
  if (!chunk.ok()) return Miss(chunk.status());
  const TierEntry entry = EntryOf(**chunk);
  memory_->Put(*chunk).IgnoreError();
  Update(key, &entry);
  return Hit(*std::move(chunk), Origin::kRedis);
}

// The rest

StoreStats TieredStore::stats() const {
  StoreStats stats;
  stats.tiers[Index(Origin::kMemory)] = memory_->stats();
  if (disk_) stats.tiers[Index(Origin::kDisk)] = disk_->stats();
  if (shared_) stats.tiers[Index(Origin::kRedis)] = shared_->stats();
  for (size_t i = 0; i < hits_.size(); ++i) stats.hits[i] = hits_[i];
  stats.misses = misses_;
  const auto add = [&stats](Origin origin, const IoQueue* queue) {
    if (!queue) return;
    stats.pending_bytes[Index(origin)] = queue->pending_bytes();
    stats.dropped_writes[Index(origin)] = queue->dropped_writes();
  };
  add(Origin::kDisk, disk_queue_.get());
  add(Origin::kRedis, shared_queue_.get());
  std::lock_guard lock(mutex_);
  stats.pins = holdings_.pins();
  stats.leases = holdings_.leases();
  return stats;
}

void TieredStore::Flush() {
  for (const auto& queue : {disk_queue_.get(), shared_queue_.get()}) {
    // No tier takes that long; a limit is needed because the clock has one.
    if (queue) queue->Flush(absl::Hours(24));
  }
}

}  // namespace

std::string_view OriginName(Origin origin) {
  switch (origin) {
    case Origin::kMemory:
      return "memory";
    case Origin::kDisk:
      return "disk";
    case Origin::kRedis:
      return "redis";
    case Origin::kPeer:
      return "peer";
  }
  return "unknown";
}

absl::StatusOr<std::unique_ptr<Store>> Store::Open(StoreOptions options) {
  auto store = std::make_unique<TieredStore>(options);
  if (options.disk) {
    DiskTierOptions disk_options = *std::move(options.disk);
    disk_options.on_dropped = [store = store.get(),
                               also = std::move(disk_options.on_dropped)](const ChunkKey& key) {
      store->Update(key);
      if (also) also(key);
    };
    ASSIGN_OR_RETURN(std::unique_ptr<DiskTier> disk, OpenDiskTier(std::move(disk_options)));
    store->Attach(std::move(disk));
  }
  if (options.redis) {
    ASSIGN_OR_RETURN(std::unique_ptr<Tier> redis, NewRedisTier(*std::move(options.redis)));
    store->AttachShared(std::move(redis));
  }
  return store;
}

std::unique_ptr<Store> Store::OpenWith(StoreOptions options, std::unique_ptr<DiskTier> disk,
                                       std::unique_ptr<Tier> shared) {
  auto store = std::make_unique<TieredStore>(options);
  store->Attach(std::move(disk));
  store->AttachShared(std::move(shared));
  return store;
}

}  // namespace tandem::kvstore
