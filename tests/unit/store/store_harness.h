// A store with what its tests ask of it.
#pragma once

#include <future>
#include <map>
#include <memory>
#include <optional>

#include "kvstore/store.h"
#include "kvstore/tiers/memory_tier.h"
#include "tests/unit/store/fake_tiers.h"

namespace tandem::kvstore {

using FetchResult = absl::StatusOr<Store::Fetched>;

inline constexpr uint64_t kEach = 1000 + kMemoryEntryOverhead;

class StoreTest : public ::testing::Test {
 protected:
  // Memory for `n` chunks, and what else the options say.
  void Open(uint64_t n, bool disk, uint64_t disk_bytes = 4 << 20) {
    store_.reset();
    StoreOptions options{.memory_bytes = n * kEach};
    if (disk) options.disk = DiskTierOptions{.path = dir_ / "kv", .limit_bytes = disk_bytes};
    auto store = Store::Open(std::move(options));
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
  }
  void OpenWithFakes(uint64_t n, bool shared = false, uint64_t max_pending_bytes = 1 << 20) {
    store_ = Store::OpenWith({.memory_bytes = n * kEach, .max_pending_bytes = max_pending_bytes},
                             std::make_unique<FakeTier>(disk_),
                             shared ? std::make_unique<FakeTier>(shared_) : nullptr);
  }
  void Put(uint64_t from, uint64_t to) {
    for (uint64_t seed = from; seed < to; ++seed) store_->Put(MakeChunk(seed));
  }
  std::future<FetchResult> StartFetch(const ChunkKey& key, bool shared = false) {
    auto promise = std::make_shared<std::promise<FetchResult>>();
    auto done = [promise](FetchResult result) { promise->set_value(std::move(result)); };
    shared ? store_->FetchShared(key, done) : store_->Fetch(key, done);
    return promise->get_future();
  }
  FetchResult Fetch(uint64_t seed, bool shared = false) {
    return StartFetch(MakeKey(seed), shared).get();
  }
  void ExpectFetch(uint64_t seed, Origin origin, bool shared = false) {
    const FetchResult result = Fetch(seed, shared);
    ASSERT_TRUE(result.ok()) << seed << ": " << result.status();
    EXPECT_EQ(result->origin, origin) << seed;
    EXPECT_TRUE(SameBytes(*result->chunk, *MakeChunk(seed)));
  }
  Store::Holding Find(uint64_t seed) {
    const ChunkId id = MakeId(seed);
    return store_->Find({&id, 1})[0];
  }
  std::optional<Origin> Where(uint64_t seed) {
    const Store::Holding holding = Find(seed);
    return holding.levels & 1 ? std::optional(holding.origins[0]) : std::nullopt;
  }
  // What a reader who follows the journal from the start knows now.
  std::map<uint64_t, uint8_t> FromJournal() {
    std::map<uint64_t, uint8_t> known;
    ChunkJournal::Cursor cursor;
    while (true) {
      const ChunkJournal::Batch batch = store_->journal()->Read(cursor, 100);
      if (batch.snapshot) known.clear();
      if (batch.entries.empty()) return known;
      for (const ChunkJournal::Entry& entry : batch.entries) {
        known[entry.id_hash] = entry.levels;
        if (entry.levels == 0) known.erase(entry.id_hash);
      }
    }
  }
  void ExpectJournalSaysWhatFindSays(uint64_t n_seeds) {
    std::map<uint64_t, uint8_t> found;
    for (uint64_t seed = 0; seed < n_seeds; ++seed) {
      if (const uint8_t levels = Find(seed).levels) found[MakeId(seed).Hash()] = levels;
    }
    EXPECT_EQ(FromJournal(), found);
    EXPECT_EQ(store_->journal()->size(), found.size());
  }

  TempDir dir_;
  std::shared_ptr<FakeTierState> disk_ = std::make_shared<FakeTierState>();
  std::shared_ptr<FakeTierState> shared_ = std::make_shared<FakeTierState>();
  std::unique_ptr<Store> store_;
};

}  // namespace tandem::kvstore
