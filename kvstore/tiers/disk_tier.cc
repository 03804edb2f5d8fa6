#include "kvstore/tiers/disk_tier.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "kvstore/tiers/rocks_disk_tier.h"

namespace tandem::kvstore {
namespace {

// Index records that one write takes along.
constexpr size_t kMaxChangesPerWrite = 4096;
// Beyond the limit, blob files take so much before nothing is put until a collection of garbage has
// helped: a share of the limit, but for a small database what a few of its files take.
constexpr double kMaxGarbageShare = 0.3;
constexpr uint64_t kMinGarbageAllowance = uint64_t{6} << 20;
// And so long a Put waits for it: readers may be waiting behind it.
constexpr std::chrono::milliseconds kMaxSpaceWait{250};

}  // namespace

RocksDiskTier::~RocksDiskTier() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  database_->CancelGarbageCollection();
  if (thread_.joinable()) thread_.join();
  std::lock_guard write_lock(write_mutex_);
  if (const absl::Status status = WriteAllChanges(); !status.ok()) {
    spdlog::warn("disk tier closed without its last changes path={} reason=\"{}\"", options_.path,
                 status.ToString());
  }
}

absl::Status RocksDiskTier::AtPath(const absl::Status& status) const {
  return absl::UnavailableError(
      absl::StrCat("chunks on disk in ", options_.path, ": ", status.message()));
}

void RocksDiskTier::Tell(const Dropped& dropped) const {
  if (!options_.on_dropped) return;
  for (const ChunkKey& key : dropped) options_.on_dropped(key);
}

// Reading

absl::StatusOr<StoredChunkPtr> RocksDiskTier::Get(const ChunkKey& key) {
  uint64_t generation = 0;
  {
    std::lock_guard lock(mutex_);
    const DiskRecord* record = index_.Find(key);
    if (!record) return absl::NotFoundError("not on disk");
    generation = record->generation;
    if (index_.Touch(key, Use())) changed_.insert(key);
  }
  absl::StatusOr<std::vector<uint8_t>> bytes = database_->Read(key);
  if (absl::IsUnavailable(bytes.status())) {
    std::lock_guard lock(mutex_);
    ++stats_.failures;
    return AtPath(bytes.status());
  }
  if (!bytes.ok()) return DropDamaged(key, generation, bytes.status());
  absl::StatusOr<StoredChunkPtr> chunk = StoredChunk::Open(*std::move(bytes), key);
  if (!chunk.ok()) return DropDamaged(key, generation, chunk.status());
  return chunk;
}

absl::Status RocksDiskTier::DropDamaged(const ChunkKey& key, uint64_t generation,
                                        const absl::Status& status) {
  uint64_t damaged = 0;
  {
    std::lock_guard lock(mutex_);
    const DiskRecord* record = index_.Find(key);
    // It went, or made place for another, while it was read.
    if (!record || record->generation != generation) return absl::NotFoundError("not on disk");
    index_.Erase(key);
    damaged = ++stats_.damaged;
    MarkChanged(key);
  }
  // A damaged file has hundreds; the counter has them all.
  if (std::has_single_bit(damaged)) {
    spdlog::warn("disk tier drops what is damaged path={} chunk={} reason=\"{}\" damaged={}",
                 options_.path, key.id.Hex(), status.ToString(), damaged);
  }
  Tell({key});
  return absl::DataLossError(status.message());
}

std::vector<bool> RocksDiskTier::Contains(std::span<const ChunkKey> keys) {
  std::vector<bool> here(keys.size());
  std::lock_guard lock(mutex_);
  for (size_t i = 0; i < keys.size(); ++i) here[i] = index_.Find(keys[i]) != nullptr;
  return here;
}

void RocksDiskTier::Touch(const ChunkKey& key) {
  std::lock_guard lock(mutex_);
  if (index_.Touch(key, Use())) changed_.insert(key);
}

void RocksDiskTier::ForEach(const std::function<bool(const TierEntry&)>& visit) {
  std::vector<TierEntry> all;
  {
    std::lock_guard lock(mutex_);
    all.reserve(index_.size());
    for (const auto& [key, record] : index_.records()) {
      all.push_back({key, record.first_position, record.n_tokens, record.bytes, record.pinned});
    }
  }
  for (const TierEntry& entry : all) {
    if (!visit(entry)) return;
  }
}

TierStats RocksDiskTier::stats() const {
  std::lock_guard lock(mutex_);
  TierStats stats = stats_;
  stats.bytes = index_.bytes();
  stats.limit_bytes = options_.limit_bytes;
  stats.chunks = index_.size();
  return stats;
}

// Changing what is there: in the index at once, in the database with the next write.

void RocksDiskTier::MarkChanged(const ChunkKey& key) {
  changed_.insert(key);
  write_soon_ = collect_ = true;
  wake_.notify_all();
}

void RocksDiskTier::Erase(const ChunkKey& key) {
  std::lock_guard lock(mutex_);
  if (index_.Erase(key)) MarkChanged(key);
}

bool RocksDiskTier::SetPinned(const ChunkKey& key, bool pinned) {
  std::lock_guard lock(mutex_);
  if (!index_.Find(key)) return false;
  if (index_.SetPinned(key, pinned)) MarkChanged(key);
  return true;
}

// Writing

absl::Status RocksDiskTier::Put(StoredChunkPtr chunk) {
  {
    std::lock_guard lock(mutex_);
    if (index_.Find(chunk->key())) {
      if (index_.Touch(chunk->key(), Use())) changed_.insert(chunk->key());
      return absl::OkStatus();
    }
  }
  Dropped dropped;
  absl::Status status;
  {
    std::lock_guard write_lock(write_mutex_);
    status = MayWrite(*chunk, dropped);
    if (status.ok()) status = WriteWithEviction(std::move(chunk), dropped);
  }
  Tell(dropped);
  return status;
}

absl::Status RocksDiskTier::MayWrite(const StoredChunk& chunk, Dropped& dropped) {
  const uint64_t bytes = chunk.bytes().size();
  bool healthy = true;
  {
    std::lock_guard lock(mutex_);
    if (DiskIndex::SizeOf(bytes) >
        options_.limit_bytes - std::min(options_.limit_bytes, index_.pinned_bytes())) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "a chunk of ", bytes, " bytes, the limit of ", options_.path, " is ",
          options_.limit_bytes, " bytes, of which ", index_.pinned_bytes(), " are pinned"));
    }
    healthy = stats_.healthy;
    if (!healthy && options_.now() < retry_at_) {
      return absl::UnavailableError(
          absl::StrCat("chunks on disk in ", options_.path,
                       " are left alone for a while: ", last_error_.message()));
    }
  }
  // RocksDB survives a disk that fills up under it, but it is better for all if it need not: what
  // it does in the background wants room too.
  const uint64_t reserve = bytes + 4 * database_->write_buffer_bytes();
  if (const auto free = database_->FreeBytes(); free && *free < reserve) {
    return Failed(absl::UnavailableError(
        absl::StrCat("the disk has ", *free, " bytes left, and ", reserve, " are needed")));
  }
  if (!healthy) {
    if (const absl::Status status = Recover(dropped); !status.ok()) return Failed(status);
  }
  written_since_check_ += bytes;
  if (written_since_check_ < database_->write_buffer_bytes()) return absl::OkStatus();
  RETURN_IF_ERROR(WaitForSpace());
  written_since_check_ = 0;
  return absl::OkStatus();
}

absl::Status RocksDiskTier::WaitForSpace() {
  const auto share =
      static_cast<uint64_t>(kMaxGarbageShare * static_cast<double>(options_.limit_bytes));
  const uint64_t allowed = options_.limit_bytes + std::max(share, kMinGarbageAllowance);
  std::unique_lock lock(mutex_);
  collect_ = true;
  wake_.notify_all();
  const auto end = std::chrono::steady_clock::now() + kMaxSpaceWait;
  while (true) {
    const uint64_t steps = tidying_steps_;
    lock.unlock();
    if (database_->BlobBytes() <= allowed) return absl::OkStatus();
    lock.lock();
    // One long wait is enough for each step that does not come.
    if (steps == waited_for_step_) break;
    if (!tidied_.wait_until(lock, end, [&] { return tidying_steps_ != steps; })) {
      waited_for_step_ = steps;
      break;
    }
  }
  return absl::ResourceExhaustedError(
      absl::StrCat("what was deleted in ", options_.path, " has not given its space back yet"));
}

absl::Status RocksDiskTier::WriteWithEviction(StoredChunkPtr chunk, Dropped& dropped) {
  const ChunkKey key = chunk->key();
  DiskRecord record{.first_position = chunk->first_position(),
                    .n_tokens = chunk->n_tokens(),
                    .bytes = chunk->bytes().size(),
                    .last_use = Use()};
  std::vector<std::pair<ChunkKey, DiskRecord>> evicted;
  DiskBatch batch{.chunk = std::move(chunk)};
  uint64_t evicted_bytes = 0;
  {
    std::lock_guard lock(mutex_);
    // Another thread may have put it, or pinned others, since.
    if (index_.Find(key)) return absl::OkStatus();
    const auto victims = index_.Victims(DiskIndex::SizeOf(record.bytes), options_.limit_bytes);
    if (!victims) return absl::ResourceExhaustedError("all on disk is pinned");
    // They go from the index before the write: nobody can pin them while it is under way.
    for (const ChunkKey& victim : *victims) {
      evicted.emplace_back(victim, *index_.Erase(victim));
      evicted_bytes += DiskIndex::SizeOf(evicted.back().second.bytes);
      batch.records.emplace_back(victim, std::nullopt);
    }
  }
  batch.records.emplace_back(key, record.Encode());
  const absl::Status written = WriteChanges(std::move(batch));
  {
    std::lock_guard lock(mutex_);
    if (written.ok()) {
      index_.Insert(key, record);
      stats_.evictions += evicted.size();
      stats_.evicted_bytes += evicted_bytes;
    } else {
      for (const auto& [victim, old] : evicted) index_.Insert(victim, old);
    }
  }
  if (!written.ok()) return Failed(written);
  for (const auto& [victim, old] : evicted) dropped.push_back(victim);
  Succeeded();
  return absl::OkStatus();
}

// Writes the batch, and with it what changed in the index before it.
absl::Status RocksDiskTier::WriteChanges(DiskBatch batch) {
  std::vector<ChunkKey> taken;
  {
    std::lock_guard lock(mutex_);
    DiskBatch all;
    while (!changed_.empty() && taken.size() < kMaxChangesPerWrite) {
      taken.push_back(changed_.extract(changed_.begin()).value());
      const DiskRecord* record = index_.Find(taken.back());
      all.records.emplace_back(taken.back(),
                               record ? std::optional(record->Encode()) : std::nullopt);
    }
    // The batch is later than these, and where both name a key it is what counts.
    std::move(batch.records.begin(), batch.records.end(), std::back_inserter(all.records));
    batch.records = std::move(all.records);
  }
  const absl::Status written = database_->Write(batch);
  if (!written.ok()) {
    std::lock_guard lock(mutex_);
    changed_.insert(taken.begin(), taken.end());
  }
  return written;
}

absl::Status RocksDiskTier::WriteAllChanges() {
  const auto pending = [this] {
    std::lock_guard lock(mutex_);
    return !changed_.empty();
  };
  while (pending()) RETURN_IF_ERROR(WriteChanges({}));
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<DiskTier>> OpenDiskTier(DiskTierOptions options) {
  ASSIGN_OR_RETURN(std::unique_ptr<DiskDatabase> database,
                   DiskDatabase::Open(options.path, options.limit_bytes));
  auto tier = std::make_unique<RocksDiskTier>(std::move(options), std::move(database));
  RETURN_IF_ERROR(tier->Start());
  return tier;
}

}  // namespace tandem::kvstore
