#include "kvstore/tiers/memory_tier.h"

#include <algorithm>
#include <cmath>
#include <mutex>
#include <set>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"

namespace tandem::kvstore {
namespace {

// Beyond this many uses an entry gains nothing more; else what was popular once would outlive the
// clock's rise for as long as it was popular.
constexpr uint32_t kMaxCountedUses = 64;
// Of the limit: what probation may take once memory is full.
constexpr uint64_t kProbationShare = 5;

struct Entry {
  StoredChunkPtr chunk;
  uint64_t bytes = 0;
  double value = 0;  // of one use: cost by byte
  double priority = 0;
  uint32_t uses = 1;
  bool proven = false;  // used again, so not on probation
  bool pinned = false;
};

double ValueOf(const StoredChunk& chunk, uint64_t bytes) {
  const double tokens = std::max<uint32_t>(chunk.n_tokens(), 1);
  return std::exp2(std::round(2 * std::log2(tokens / static_cast<double>(bytes))) / 2);
}

// The entries that may be evicted, the next one first.
class Segment {
 public:
  void Insert(const ChunkKey& key, Entry& entry) {
    entry.priority = clock_ + entry.uses * entry.value;
    order_.insert(PlaceOf(key, entry));
    bytes_ += entry.bytes;
  }
  void Erase(const ChunkKey& key, const Entry& entry) {
    order_.erase(PlaceOf(key, entry));
    bytes_ -= entry.bytes;
  }
  // REQUIRES: !empty(). The caller erases it.
  ChunkKey Victim() {
    clock_ = std::max(clock_, order_.begin()->priority);
    return order_.begin()->key;
  }
  bool empty() const { return order_.empty(); }
  uint64_t bytes() const { return bytes_; }

 private:
  struct Place {
    double priority;
    uint32_t from_end;  // the deeper, the smaller
    ChunkKey key;
    auto operator<=>(const Place&) const = default;
  };
  static Place PlaceOf(const ChunkKey& key, const Entry& entry) {
    return {entry.priority, UINT32_MAX - entry.chunk->first_position(), key};
  }

  std::set<Place> order_;
  uint64_t bytes_ = 0;
  double clock_ = 0;
};

class MemoryTier final : public Tier {
 public:
  explicit MemoryTier(MemoryTierOptions options) : options_(std::move(options)) {}

  std::string_view name() const override { return "memory"; }

  absl::StatusOr<StoredChunkPtr> Get(const ChunkKey& key) override {
    StoredChunkPtr chunk;
    {
      std::lock_guard lock(mutex_);
      const auto found = entries_.find(key);
      if (found == entries_.end()) return absl::NotFoundError("not in memory");
      CountUse(key, found->second);
      chunk = found->second.chunk;
    }
    // Outside the lock: a checksum over megabytes takes longer than all else here.
    absl::Status intact = chunk->Verify();
    if (intact.ok()) return chunk;
    std::lock_guard lock(mutex_);
    const auto found = entries_.find(key);
    if (found != entries_.end() && found->second.chunk == chunk) {
      Forget(found);
      ++damaged_;
    }
    return intact;
  }

  std::vector<bool> Contains(std::span<const ChunkKey> keys) override {
    std::vector<bool> here(keys.size());
    std::lock_guard lock(mutex_);
    for (size_t i = 0; i < keys.size(); ++i) here[i] = entries_.contains(keys[i]);
    return here;
  }

  absl::Status Put(StoredChunkPtr chunk) override {
    const uint64_t bytes = chunk->bytes().size() + kMemoryEntryOverhead;
    std::vector<StoredChunkPtr> evicted;
    {
      std::lock_guard lock(mutex_);
      const ChunkKey key = chunk->key();
      if (const auto found = entries_.find(key); found != entries_.end()) {
        CountUse(key, found->second);
        return absl::OkStatus();
      }
      if (bytes > options_.limit_bytes - std::min(pinned_bytes_, options_.limit_bytes)) {
        return absl::ResourceExhaustedError(
            absl::StrCat("a chunk of ", bytes, " bytes, memory's limit is ", options_.limit_bytes,
                         " bytes, of which ", pinned_bytes_, " are pinned"));
      }
      MakeRoom(bytes, evicted);
      Entry& entry = entries_[key];
      entry.bytes = bytes;
      entry.value = ValueOf(*chunk, bytes);
      entry.chunk = std::move(chunk);
      bytes_ += bytes;
      probation_.Insert(key, entry);
    }
    if (options_.on_evicted) {
      for (StoredChunkPtr& gone : evicted) options_.on_evicted(std::move(gone));
    }
    return absl::OkStatus();
  }

  void Erase(const ChunkKey& key) override {
    std::lock_guard lock(mutex_);
    if (const auto found = entries_.find(key); found != entries_.end()) Forget(found);
  }

  bool SetPinned(const ChunkKey& key, bool pinned) override {
    std::lock_guard lock(mutex_);
    const auto found = entries_.find(key);
    if (found == entries_.end()) return false;
    Entry& entry = found->second;
    if (entry.pinned == pinned) return true;
    entry.pinned = pinned;
    if (pinned) {
      SegmentOf(entry).Erase(key, entry);
      pinned_bytes_ += entry.bytes;
    } else {
      SegmentOf(entry).Insert(key, entry);
      pinned_bytes_ -= entry.bytes;
    }
    return true;
  }

  void ForEach(const std::function<bool(const TierEntry&)>& visit) override {
    std::vector<TierEntry> all;
    {
      std::lock_guard lock(mutex_);
      all.reserve(entries_.size());
      for (const auto& [key, entry] : entries_) {
        all.push_back({key, entry.chunk->first_position(), entry.chunk->n_tokens(),
                       entry.chunk->bytes().size(), entry.pinned});
      }
    }
    for (const TierEntry& entry : all) {
      if (!visit(entry)) return;
    }
  }

  TierStats stats() const override {
    std::lock_guard lock(mutex_);
    return {.bytes = bytes_,
            .limit_bytes = options_.limit_bytes,
            .chunks = entries_.size(),
            .evictions = evictions_,
            .evicted_bytes = evicted_bytes_,
            .damaged = damaged_};
  }

 private:
  using Entries = absl::flat_hash_map<ChunkKey, Entry>;

  // All below: mutex_ is held.
  Segment& SegmentOf(const Entry& entry) { return entry.proven ? proven_ : probation_; }

  void CountUse(const ChunkKey& key, Entry& entry) {
    if (!entry.pinned) SegmentOf(entry).Erase(key, entry);
    entry.uses = std::min(entry.uses + 1, kMaxCountedUses);
    entry.proven = true;
    if (!entry.pinned) SegmentOf(entry).Insert(key, entry);
  }

  void Forget(Entries::iterator found) {
    Entry& entry = found->second;
    if (entry.pinned) {
      pinned_bytes_ -= entry.bytes;
    } else {
      SegmentOf(entry).Erase(found->first, entry);
    }
    bytes_ -= entry.bytes;
    entries_.erase(found);
  }

  // REQUIRES: what is not pinned leaves room enough.
  void MakeRoom(uint64_t bytes, std::vector<StoredChunkPtr>& evicted) {
    while (bytes_ + bytes > options_.limit_bytes) {
      const bool probation_is_full =
          probation_.bytes() + bytes > options_.limit_bytes / kProbationShare;
      const bool from_probation = proven_.empty() || (probation_is_full && !probation_.empty());
      const auto victim = entries_.find((from_probation ? probation_ : proven_).Victim());
      ++evictions_;
      evicted_bytes_ += victim->second.bytes;
      evicted.push_back(victim->second.chunk);
      Forget(victim);
    }
  }

  const MemoryTierOptions options_;
  mutable std::mutex mutex_;
  // Guarded by mutex_.
  Entries entries_;
  Segment probation_, proven_;
  uint64_t bytes_ = 0, pinned_bytes_ = 0;
  uint64_t evictions_ = 0, evicted_bytes_ = 0, damaged_ = 0;
};

}  // namespace

std::unique_ptr<Tier> NewMemoryTier(MemoryTierOptions options) {
  return std::make_unique<MemoryTier>(std::move(options));
}

}  // namespace tandem::kvstore
