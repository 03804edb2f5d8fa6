// The disk tier's rarer side: opening, failure and recovery, garbage collection.
#include <spdlog/spdlog.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "kvstore/tiers/rocks_disk_tier.h"

namespace tandem::kvstore {
namespace {

// Of the limit: garbage that starts a collection, and what one step of it moves, which takes twice
// the space until it is done.
constexpr double kGarbageShare = 0.2, kStepShare = 1.0 / 16;
constexpr uint64_t kMinGarbageBytes = uint64_t{4} << 20, kMaxStepBytes = uint64_t{256} << 20;

}  // namespace

// Opening

absl::Status RocksDiskTier::Start() {
  Dropped dropped;
  {
    std::lock_guard write_lock(write_mutex_);
    absl::Status loaded = LoadIndex();
    if (absl::IsDataLoss(loaded)) {
      spdlog::warn("disk tier starts anew, its index was damaged path={} reason=\"{}\"",
                   options_.path, loaded.ToString());
      RETURN_IF_ERROR(database_->StartAnew());
      loaded = LoadIndex();
    }
    if (!loaded.ok()) {
      return AtPath(absl::DataLossError(
          absl::StrCat(absl::string_view(loaded.message()),
                       "; delete the folder: all in it can be computed again")));
    }
    // A disk that takes no writes now may do so later; what is there can be read.
    if (const absl::Status status = Trim(dropped); !status.ok()) Failed(status).IgnoreError();
  }
  thread_ = std::thread([this] { Maintain(); });
  Tell(dropped);
  return absl::OkStatus();
}

// Failure and recovery

absl::Status RocksDiskTier::Failed(const absl::Status& status) {
  last_error_ = status;
  bool was_healthy = false;
  {
    std::lock_guard lock(mutex_);
    ++stats_.failures;
    was_healthy = std::exchange(stats_.healthy, false);
    damage_found_ = absl::IsDataLoss(status);
    const absl::Time now = options_.now();
    // What fails in between does not put off the next attempt.
    if (was_healthy || now >= retry_at_) retry_at_ = now + options_.retry_after;
  }
  if (was_healthy) {
    spdlog::warn("disk tier takes no writes path={} reason=\"{}\" retry_after={}", options_.path,
                 status.ToString(), absl::FormatDuration(options_.retry_after));
  }
  return AtPath(status);
}

void RocksDiskTier::Succeeded() {
  {
    std::lock_guard lock(mutex_);
    damage_found_ = false;
    if (std::exchange(stats_.healthy, true)) return;
  }
  last_error_ = absl::OkStatus();
  spdlog::info("disk tier takes writes again path={}", options_.path);
}

absl::Status RocksDiskTier::Recover(Dropped& dropped) {
  if (!absl::IsDataLoss(last_error_)) {
    bool reopened = false;
    RETURN_IF_ERROR(database_->Resume(reopened));
    return reopened ? MatchIndexToDatabase(dropped) : absl::OkStatus();
  }
  // A compaction met damage. If values are damaged, it passes once they are deleted; all are read
  // to find them. Otherwise it was one of RocksDB's own tables, and there is no way to do without.
  RETURN_IF_ERROR(database_->Reopen());
  absl::Status matched = MatchIndexToDatabase(dropped);
  if (matched.ok() && DropUnreadable(dropped) > 0) return WriteAllChanges();
  if (matched.ok() || absl::IsDataLoss(matched)) {
    spdlog::warn("disk tier starts anew, its database was damaged path={} reason=\"{}\"",
                 options_.path, last_error_.ToString());
    RETURN_IF_ERROR(database_->StartAnew());
    matched = MatchIndexToDatabase(dropped);
  }
  return matched;
}

absl::Status RocksDiskTier::LoadIndex() {
  std::lock_guard lock(mutex_);
  index_ = {};
  size_t of_another_kind = 0;
  RETURN_IF_ERROR(database_->ReadIndex([&](std::string_view name, std::string_view bytes) {
    const absl::StatusOr<ChunkKey> key = ChunkKey::FromBytes(name);
    const absl::StatusOr<DiskRecord> record = DiskRecord::Decode(bytes);
    if (key.ok() && record.ok()) {
      index_.Insert(*key, *record);
    } else {
      ++of_another_kind;
      if (key.ok()) changed_.insert(*key);
    }
  }));
  if (of_another_kind > 0) {
    spdlog::warn("disk tier has index records of another kind path={} records={}", options_.path,
                 of_another_kind);
  }
  return absl::OkStatus();
}

// What the database lost goes from the index; what only the database has will go from there: writes
// that failed may have succeeded after all.
absl::Status RocksDiskTier::MatchIndexToDatabase(Dropped& dropped) {
  absl::flat_hash_set<ChunkKey> there;
  RETURN_IF_ERROR(database_->ReadIndex([&](std::string_view name, std::string_view) {
    if (const absl::StatusOr<ChunkKey> key = ChunkKey::FromBytes(name); key.ok())
      there.insert(*key);
  }));
  std::lock_guard lock(mutex_);
  for (const ChunkKey& key : there) {
    if (!index_.Find(key)) changed_.insert(key);
  }
  Dropped lost;
  for (const auto& [key, record] : index_.records()) {
    if (!there.contains(key)) lost.push_back(key);
  }
  for (const ChunkKey& key : lost) index_.Erase(key);
  dropped.insert(dropped.end(), lost.begin(), lost.end());
  return absl::OkStatus();
}

size_t RocksDiskTier::DropUnreadable(Dropped& dropped) {
  Dropped all;
  {
    std::lock_guard lock(mutex_);
    for (const auto& [key, record] : index_.records()) all.push_back(key);
  }
  size_t found = 0;
  for (const ChunkKey& key : all) {
    absl::StatusOr<std::vector<uint8_t>> bytes = database_->Read(key);
    if (absl::IsUnavailable(bytes.status())) continue;
    if (bytes.ok() && StoredChunk::Open(*std::move(bytes), key).ok()) continue;
    std::lock_guard lock(mutex_);
    if (!index_.Erase(key)) continue;
    ++found;
    ++stats_.damaged;
    changed_.insert(key);
    dropped.push_back(key);
  }
  return found;
}

absl::Status RocksDiskTier::Trim(Dropped& dropped) {
  {
    std::lock_guard lock(mutex_);
    // Pinned entries may be more than a limit that became smaller: then all else goes.
    const uint64_t limit = std::max(options_.limit_bytes, index_.pinned_bytes());
    const auto victims = index_.Victims(0, limit);
    for (const ChunkKey& key : victims.value_or(Dropped{})) {
      stats_.evicted_bytes += DiskIndex::SizeOf(index_.Erase(key)->bytes);
      ++stats_.evictions;
      changed_.insert(key);
      dropped.push_back(key);
    }
    collect_ = true;
  }
  return WriteAllChanges();
}

// The thread: writes erasures and pins, collects garbage.

void RocksDiskTier::Maintain() {
  std::unique_lock lock(mutex_);
  while (true) {
    wake_.wait(lock, [this] { return stop_ || write_soon_ || collect_; });
    if (stop_) return;
    const bool write = std::exchange(write_soon_, false);
    // Until a Put has dealt with damage, it would only be found again.
    const bool collect = std::exchange(collect_, false) && !damage_found_;
    lock.unlock();
    if (write) {
      std::lock_guard write_lock(write_mutex_);
      if (const absl::Status status = WriteAllChanges(); !status.ok()) {
        Failed(status).IgnoreError();
      }
    }
    if (collect) CollectGarbage();
    lock.lock();
  }
}

uint64_t RocksDiskTier::GarbageBytes() const {
  const uint64_t there = database_->BlobBytes();
  std::lock_guard lock(mutex_);
  return there - std::min(there, index_.bytes());
}

void RocksDiskTier::CollectGarbage() {
  const auto limit = static_cast<double>(options_.limit_bytes);
  const auto threshold = std::max(static_cast<uint64_t>(kGarbageShare * limit), kMinGarbageBytes);
  if (GarbageBytes() <= threshold) return;
  uint64_t step = std::min(static_cast<uint64_t>(kStepShare * limit), kMaxStepBytes);
  if (const auto free = database_->FreeBytes(); free) {
    // It needs some before it gives any back.
    if (*free < 2 * database_->write_buffer_bytes()) return;
    step = std::min(step, *free / 2);
  }
  const auto tidied = [this](const absl::Status& status) {
    {
      std::lock_guard lock(mutex_);
      ++tidying_steps_;
    }
    tidied_.notify_all();
    return status;
  };
  const uint64_t opening = database_->openings();
  absl::Status status = tidied(database_->AccountForDeletes());
  // A little further than to where it began, so that it does not begin again with the next write.
  const uint64_t target = threshold / 4 * 3;
  while (status.ok() && database_->openings() == opening && GarbageBytes() > target &&
         database_->KnownGarbageBytes() > threshold / 2) {
    status = tidied(database_->CollectGarbage(step));
  }
  if (status.ok() || absl::IsCancelled(status)) return;
  std::lock_guard write_lock(write_mutex_);
  // Somebody may have dealt with it while this waited for the lock.
  if (database_->openings() == opening) Failed(status).IgnoreError();
}

}  // namespace tandem::kvstore
