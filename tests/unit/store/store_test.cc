// The store over its tiers: rising and falling, writing behind, pinning, removing, the journal.
#include "tests/unit/store/store_harness.h"

namespace tandem::kvstore {
namespace {

using absl::StatusCode;

TEST_F(StoreTest, WithMemoryAlone) {
  Open(10, false);
  Put(0, 20);
  uint64_t held = 0;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const bool there = Where(seed) == Origin::kMemory;
    held += there;
    bool done_before_it_returns = false;
    store_->Fetch(MakeKey(seed), [&](FetchResult result) {
      done_before_it_returns = true;
      EXPECT_EQ(result.ok(), there);
      if (!there) {
        EXPECT_EQ(result.status().code(), StatusCode::kNotFound);
      }
    });
    EXPECT_TRUE(done_before_it_returns);
  }
  EXPECT_EQ(held, 10u);
  EXPECT_FALSE(store_->has_shared_tier());
  EXPECT_EQ(Fetch(0, true).status().code(), StatusCode::kNotFound);
  store_->FindShared({MakeKey(0), MakeKey(1)}, [](std::vector<bool> there) {
    EXPECT_EQ(there, std::vector<bool>({false, false}));
  });
  store_->CountMiss();
  const StoreStats stats = store_->stats();
  EXPECT_TRUE(stats.tiers[0].has_value());
  EXPECT_FALSE(stats.tiers[1].has_value());
  EXPECT_FALSE(stats.tiers[2].has_value());
  EXPECT_EQ(stats.hits[0], 10u);
  EXPECT_EQ(stats.misses, 10u + 1 + 1);
  store_->Flush();
  ExpectJournalSaysWhatFindSays(20);
}

TEST_F(StoreTest, FindTellsEveryLevelWithItsSizeAndPlace) {
  Open(10, true);
  store_->Put(MakeChunk(1, {.bytes = 3000, .first_position = 256, .n_tokens = 200}));
  store_->Put(
      MakeChunk(1, {.bytes = 1500, .first_position = 256, .n_tokens = 200, .level = Level::kQ2}));
  const Store::Holding holding = Find(1);
  EXPECT_EQ(holding.levels, 0b101);
  EXPECT_EQ(holding.n_tokens, 200u);
  EXPECT_EQ(holding.bytes, (std::array<uint64_t, 5>{3000, 0, 1500, 0, 0}));
  EXPECT_EQ(holding.origins[0], Origin::kMemory);
  EXPECT_EQ(Find(2).levels, 0);
  std::map<ChunkKey, TierEntry> listed;
  store_->ForEach([&](const TierEntry& entry, Origin origin) {
    EXPECT_EQ(origin, Origin::kMemory);
    listed[entry.key] = entry;
    return true;
  });
  ASSERT_EQ(listed.size(), 2u);
  EXPECT_EQ(listed[MakeKey(1, Level::kQ2)].bytes, 1500u);
  EXPECT_EQ(listed[MakeKey(1)].first_position, 256u);
  uint64_t visits = 0;
  store_->ForEach([&](const TierEntry&, Origin) { return ++visits, false; });
  EXPECT_EQ(visits, 1u);
}

TEST_F(StoreTest, ChunksFallToDiskAndRiseAgain) {
  Open(10, true);
  Put(0, 100);
  store_->Flush();
  uint64_t in_memory = 0;
  for (uint64_t seed = 0; seed < 100; ++seed) {
    ASSERT_TRUE(Where(seed)) << seed;
    in_memory += Where(seed) == Origin::kMemory;
  }
  EXPECT_EQ(in_memory, 10u);
  for (uint64_t seed = 0; seed < 100; ++seed) {
    const Origin where = *Where(seed);
    ExpectFetch(seed, where);
    EXPECT_EQ(Where(seed), Origin::kMemory);
    ExpectFetch(seed, Origin::kMemory);
  }
  const StoreStats stats = store_->stats();
  EXPECT_GT(stats.hits[1], 80u);
  EXPECT_EQ(stats.hits[0] + stats.hits[1], 200u);
  EXPECT_EQ(stats.misses, 0u);
  EXPECT_EQ(stats.dropped_writes[1], 0u);
  EXPECT_EQ(stats.pending_bytes[1], 0u);
  ExpectJournalSaysWhatFindSays(100);
}

TEST_F(StoreTest, ARestartFindsWhatWasPut) {
  Open(10, true);
  Put(0, 100);
  EXPECT_TRUE(store_->SetPinned(MakeId(3), true));
  Open(10, true);
  for (uint64_t seed = 0; seed < 100; ++seed) ASSERT_EQ(Where(seed), Origin::kDisk) << seed;
  EXPECT_EQ(Find(1).n_tokens, 256u);
  EXPECT_EQ(Find(1).bytes[0], 1000u);
  EXPECT_EQ(store_->stats().pins, 1u);
  ExpectJournalSaysWhatFindSays(100);
  ExpectFetch(50, Origin::kDisk);
  Open(10, true, 20 * (1000 + kDiskEntryOverhead));
  EXPECT_EQ(Where(3), Origin::kDisk);
  EXPECT_EQ(store_->journal()->size(), 20u);
  ExpectJournalSaysWhatFindSays(100);
}

TEST_F(StoreTest, WhatTheDiskEvictsIsGoneUnlessMemoryHasIt) {
  Open(10, true, 30 * (1000 + kDiskEntryOverhead));
  Put(0, 100);
  store_->Flush();
  uint64_t held = 0;
  for (uint64_t seed = 0; seed < 100; ++seed) held += Where(seed).has_value();
  EXPECT_GE(held, 30u);
  EXPECT_LE(held, 40u);
  ExpectJournalSaysWhatFindSays(100);
}

TEST_F(StoreTest, AChunkThatMemoryCannotHoldGoesToDisk) {
  Open(2, true);
  store_->Put(MakeChunk(1, {.bytes = 100'000}));
  store_->Flush();
  EXPECT_EQ(Where(1), Origin::kDisk);
  const FetchResult result = Fetch(1);
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result->origin, Origin::kDisk);
  EXPECT_EQ(Where(1), Origin::kDisk);
}

TEST_F(StoreTest, MemoryDoesNotWriteAgainWhatTheDiskHas) {
  OpenWithFakes(10);
  Put(0, 50);
  store_->Flush();
  for (int round = 0; round < 3; ++round) {
    for (uint64_t seed = 0; seed < 50; ++seed) ASSERT_TRUE(Fetch(seed).ok());
    Put(0, 50);
  }
  store_->Flush();
  EXPECT_EQ(disk_->Puts(), 50u);
}

TEST_F(StoreTest, WhatTheDiskMissedIsOfferedOnceMore) {
  OpenWithFakes(10);
  disk_->Fail(true);
  Put(0, 10);
  store_->Flush();
  EXPECT_EQ(store_->stats().dropped_writes[1], 10u);
  for (uint64_t seed = 0; seed < 10; ++seed) EXPECT_EQ(Where(seed), Origin::kMemory);
  disk_->Fail(false);
  Put(10, 20);
  store_->Flush();
  for (uint64_t seed = 0; seed < 20; ++seed) EXPECT_TRUE(Where(seed)) << seed;
  // And when it fails again it is gone, and the journal says so.
  disk_->Fail(true);
  Put(20, 40);
  store_->Flush();
  EXPECT_EQ(store_->journal()->size(), 30u);
  ExpectJournalSaysWhatFindSays(40);
}

TEST_F(StoreTest, WriteBehindIsBounded) {
  constexpr uint64_t kMaxPending = 5'500;
  OpenWithFakes(100, true, kMaxPending);
  disk_->HoldUp(true);
  shared_->HoldUp(true);
  Put(0, 50);
  for (const size_t tier : {1, 2}) {
    EXPECT_EQ(store_->stats().pending_bytes[tier], 5000u);
    EXPECT_EQ(store_->stats().dropped_writes[tier], 45u);
  }
  EXPECT_EQ(Where(40), Origin::kMemory);
  disk_->HoldUp(false);
  shared_->HoldUp(false);
  store_->Flush();
  EXPECT_EQ(store_->stats().pending_bytes[1], 0u);
  EXPECT_EQ(disk_->Puts(), 5u);
  EXPECT_EQ(shared_->Puts(), 5u);
}

TEST_F(StoreTest, WhatWaitsToBeWrittenIsHeldEvenIfMemoryEvictsIt) {
  OpenWithFakes(5);
  disk_->HoldUp(true);
  Put(0, 50);
  for (uint64_t seed = 0; seed < 50; ++seed) EXPECT_TRUE(Where(seed)) << seed;
  EXPECT_EQ(store_->journal()->size(), 50u);
  std::vector<std::future<FetchResult>> results;
  for (uint64_t seed = 0; seed < 50; ++seed) results.push_back(StartFetch(MakeKey(seed)));
  disk_->HoldUp(false);
  for (auto& result : results) EXPECT_TRUE(result.get().ok());
}

TEST_F(StoreTest, RemoveDropsAllLevelsAndWhatWaits) {
  OpenWithFakes(20, true);
  disk_->HoldUp(true);
  Put(0, 3);
  store_->Put(MakeChunk(1, {.level = Level::kQ1}));
  ASSERT_TRUE(disk_->AwaitPut());
  // 0 is being written, the others wait.
  for (uint64_t seed = 0; seed < 2; ++seed) EXPECT_TRUE(store_->Remove(MakeId(seed)));
  EXPECT_FALSE(store_->Remove(MakeId(1)));
  EXPECT_FALSE(store_->Remove(MakeId(9)));
  EXPECT_FALSE(Where(0));
  EXPECT_EQ(Find(1).levels, 0);
  disk_->HoldUp(false);
  store_->Flush();
  EXPECT_FALSE(disk_->Has(0));
  EXPECT_FALSE(disk_->Has(1));
  EXPECT_TRUE(disk_->Has(2));
  EXPECT_EQ(Fetch(0).status().code(), StatusCode::kNotFound);
  ExpectJournalSaysWhatFindSays(3);
  Put(0, 1);
  store_->Flush();
  EXPECT_TRUE(disk_->Has(0));
}

TEST_F(StoreTest, DiscardDropsOneLevelAlone) {
  OpenWithFakes(20);
  disk_->HoldUp(true);
  Put(1, 2);
  store_->Put(MakeChunk(1, {.level = Level::kQ1}));
  ASSERT_TRUE(disk_->AwaitPut());
  EXPECT_TRUE(store_->SetPinned(MakeId(1), true));
  store_->Discard(MakeKey(1));
  EXPECT_EQ(Find(1).levels, 0b10);
  disk_->HoldUp(false);
  store_->Flush();
  EXPECT_FALSE(disk_->Has(1));
  EXPECT_EQ(Find(1).levels, 0b10);
  EXPECT_EQ(store_->stats().pins, 1u);
  store_->Discard(MakeKey(1, Level::kQ1));
  EXPECT_EQ(Find(1).levels, 0);
  EXPECT_EQ(store_->stats().pins, 0u);
  ExpectJournalSaysWhatFindSays(3);
}

TEST_F(StoreTest, WhatIsPutAgainWhileItsRemovalIsUnderWayStays) {
  OpenWithFakes(20);
  disk_->HoldUp(true);
  Put(0, 2);
  ASSERT_TRUE(disk_->AwaitPut());
  for (uint64_t seed = 0; seed < 2; ++seed) EXPECT_TRUE(store_->Remove(MakeId(seed)));
  Put(0, 2);
  disk_->HoldUp(false);
  store_->Flush();
  for (uint64_t seed = 0; seed < 2; ++seed) {
    EXPECT_TRUE(disk_->Has(seed));
    EXPECT_EQ(Where(seed), Origin::kMemory);
  }
}

TEST_F(StoreTest, PinningHoldsAllLevelsInMemoryAndOnDisk) {
  Open(10, true, 20 * (1000 + kDiskEntryOverhead));
  Put(1, 2);
  store_->Flush();
  EXPECT_TRUE(store_->SetPinned(MakeId(1), true));
  EXPECT_FALSE(store_->SetPinned(MakeId(2), true));
  // A level that comes later.
  store_->Put(MakeChunk(1, {.level = Level::kQ3}));
  EXPECT_EQ(store_->stats().pins, 1u);
  Put(100, 200);
  store_->Flush();
  EXPECT_EQ(Find(1).levels, 0b1001);
  EXPECT_EQ(Find(1).origins[0], Origin::kMemory);
  Open(10, true, 20 * (1000 + kDiskEntryOverhead));
  EXPECT_EQ(store_->stats().pins, 1u);
  EXPECT_EQ(Find(1).levels, 0b1001);
  ExpectFetch(1, Origin::kDisk);
  Put(200, 300);
  store_->Flush();
  // It rose, and is pinned there too.
  EXPECT_EQ(Find(1).origins[0], Origin::kMemory);
  EXPECT_TRUE(store_->SetPinned(MakeId(1), false));
  EXPECT_EQ(store_->stats().pins, 0u);
  Put(300, 400);
  store_->Flush();
  EXPECT_EQ(Find(1).levels, 0);
  EXPECT_FALSE(store_->SetPinned(MakeId(1), true));
  EXPECT_EQ(store_->stats().pins, 0u);
}

TEST_F(StoreTest, RemovingTakesThePinAlong) {
  Open(10, true);
  Put(1, 2);
  EXPECT_TRUE(store_->SetPinned(MakeId(1), true));
  EXPECT_TRUE(store_->Remove(MakeId(1)));
  EXPECT_EQ(store_->stats().pins, 0u);
  EXPECT_EQ(store_->stats().tiers[0]->chunks, 0u);
  Put(1, 2);
  store_->Flush();
  Open(10, true);
  EXPECT_EQ(Where(1), Origin::kDisk);
  EXPECT_EQ(store_->stats().pins, 0u);
}

TEST_F(StoreTest, WhatAPeerWasPromisedIsNotEvicted) {
  Open(6, false);
  Put(0, 4);
  const std::vector<ChunkId> ids = {MakeId(0), MakeId(1), MakeId(2), MakeId(99)};
  // Two peers: the lease ends with the second. One id is not held; half of memory is all there is.
  EXPECT_THAT(store_->Lease(ids), testing::ElementsAre(ids[0], ids[1], ids[2]));
  EXPECT_THAT(store_->Lease({ids.data(), 2}), testing::ElementsAre(ids[0], ids[1]));
  const ChunkId more = MakeId(3);
  EXPECT_THAT(store_->Lease({&more, 1}), testing::IsEmpty());
  EXPECT_EQ(store_->stats().leases, 3u);
  Put(10, 40);
  for (uint64_t seed = 0; seed < 3; ++seed) EXPECT_EQ(Where(seed), Origin::kMemory) << seed;
  EXPECT_EQ(Where(3), std::nullopt);
  // An operator's pin outlives the lease, and taking it away does not end one.
  EXPECT_TRUE(store_->SetPinned(ids[2], true));
  store_->Unlease({ids.data(), 3});
  EXPECT_EQ(store_->stats().leases, 2u);
  EXPECT_TRUE(store_->SetPinned(ids[0], true));
  EXPECT_TRUE(store_->SetPinned(ids[0], false));
  Put(40, 80);
  for (uint64_t seed = 0; seed < 3; ++seed) EXPECT_EQ(Where(seed), Origin::kMemory) << seed;
  store_->Unlease({ids.data(), 2});
  EXPECT_EQ(store_->stats().leases, 0u);
  Put(80, 120);
  EXPECT_EQ(Where(0), std::nullopt);
  EXPECT_EQ(Where(1), std::nullopt);
  EXPECT_EQ(Where(2), Origin::kMemory);
  // Removed while leased, it is gone all the same.
  store_->Lease({&ids[2], 1});
  EXPECT_TRUE(store_->Remove(ids[2]));
  EXPECT_EQ(store_->stats().leases, 0u);
  store_->Unlease({&ids[2], 1});
}

TEST_F(StoreTest, DamageInMemoryIsMadeGoodFromDisk) {
  Open(10, true);
  const StoredChunkPtr chunk = MakeChunk(1);
  store_->Put(chunk);
  store_->Flush();
  Damage(*chunk);
  ExpectFetch(1, Origin::kDisk);
  ExpectFetch(1, Origin::kMemory);
  EXPECT_EQ(store_->stats().tiers[0]->damaged, 1u);
}

TEST_F(StoreTest, DamageEverywhereIsNotFoundAndForgotten) {
  OpenWithFakes(10);
  const StoredChunkPtr chunk = MakeChunk(1);
  store_->Put(chunk);
  store_->Flush();
  // The fake disk holds the same one.
  Damage(*chunk);
  EXPECT_EQ(Fetch(1).status().code(), StatusCode::kNotFound);
  EXPECT_FALSE(Where(1));
  EXPECT_EQ(FromJournal().size(), 0u);
  EXPECT_EQ(store_->stats().misses, 1u);
  store_->Put(MakeChunk(1));
  ExpectFetch(1, Origin::kMemory);
}

TEST_F(StoreTest, TheSharedTierGetsWhatIsPutAndNothingThatCameFromIt) {
  OpenWithFakes(10, true);
  EXPECT_TRUE(store_->has_shared_tier());
  Put(0, 5);
  store_->Flush();
  EXPECT_EQ(shared_->Puts(), 5u);
  {
    const std::lock_guard lock(shared_->mutex);
    shared_->chunks[MakeKey(77)] = MakeChunk(77);
  }
  std::promise<std::vector<bool>> there;
  store_->FindShared({MakeKey(77), MakeKey(78)},
                     [&](std::vector<bool> result) { there.set_value(result); });
  EXPECT_EQ(there.get_future().get(), std::vector<bool>({true, false}));
  EXPECT_FALSE(Where(77));
  ExpectFetch(77, Origin::kRedis, true);
  EXPECT_EQ(Where(77), Origin::kMemory);
  EXPECT_EQ(Fetch(78, true).status().code(), StatusCode::kNotFound);
  Put(100, 130);
  store_->Flush();
  EXPECT_EQ(shared_->Puts(), 35u);
  // Memory let it fall, and the disk took it.
  EXPECT_EQ(Where(77), Origin::kDisk);
  EXPECT_EQ(store_->stats().hits[2], 1u);
  ExpectJournalSaysWhatFindSays(130);
}

TEST_F(StoreTest, UsesInMemoryAreToldToTheDisk) {
  OpenWithFakes(10);
  Put(0, 1);
  for (int use = 0; use < 3; ++use) ExpectFetch(0, Origin::kMemory);
  const std::lock_guard lock(disk_->mutex);
  EXPECT_EQ(disk_->touches, 3u);
}

TEST_F(StoreTest, ClosingEndsFetchesThatWait) {
  OpenWithFakes(1);
  disk_->HoldUp(true);
  Put(0, 10);
  ASSERT_TRUE(disk_->AwaitPut());
  std::vector<std::future<FetchResult>> results;
  for (uint64_t seed = 0; seed < 9; ++seed) results.push_back(StartFetch(MakeKey(seed)));
  std::thread closing([this] { store_.reset(); });
  disk_->HoldUp(false);
  closing.join();
  for (auto& future : results) {
    const FetchResult result = future.get();
    if (!result.ok()) {
      EXPECT_EQ(result.status().code(), StatusCode::kUnavailable);
    }
  }
  // What waited was written before it closed.
  for (uint64_t seed = 0; seed < 10; ++seed) EXPECT_TRUE(disk_->Has(seed));
}

TEST_F(StoreTest, ADiskThatCannotBeOpenedIsSaid) {
  const auto store = Store::Open({.disk = DiskTierOptions{.path = "/proc/nowhere/kv"}});
  EXPECT_EQ(store.status().code(), StatusCode::kUnavailable);
  EXPECT_EQ(OriginName(Origin::kPeer), "peer");
}

TEST_F(StoreTest, ManyThreadsAtOnce) {
  constexpr uint64_t kSeeds = 300;
  constexpr uint64_t kDiskLimit = 150 * (1000 + kDiskEntryOverhead);
  Open(40, true, kDiskLimit);
  std::atomic<uint64_t> asked = 0, answered = 0;
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(t);
      for (int step = 0; step < 2000; ++step) {
        const uint64_t seed = random() % kSeeds;
        const uint64_t choice = random() % 100;
        if (choice < 60) {
          ++asked;
          store_->Fetch(MakeKey(seed), [&, seed](FetchResult result) {
            if (!result.ok()) {
              EXPECT_EQ(result.status().code(), StatusCode::kNotFound) << result.status();
              store_->Put(MakeChunk(seed));
            } else {
              EXPECT_EQ(result->chunk->key(), MakeKey(seed));
            }
            ++answered;
          });
        } else if (choice < 80) {
          store_->Put(MakeChunk(seed));
        } else if (choice < 85) {
          store_->Remove(MakeId(seed));
        } else if (choice < 95) {
          // Few enough that what is pinned never fills a tier.
          store_->SetPinned(MakeId(seed % 10), choice % 2 == 0);
        } else {
          Find(seed);
          store_->ForEach([](const TierEntry&, Origin) { return true; });
        }
        EXPECT_LE(store_->stats().tiers[0]->bytes, 40 * kEach);
        EXPECT_LE(store_->stats().tiers[1]->bytes, kDiskLimit);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(Eventually([&] { return answered == asked; }));
  store_->Flush();
  ExpectJournalSaysWhatFindSays(kSeeds);
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    store_->Flush();  // what the last one has displaced may displace this one
    const std::optional<Origin> where = Where(seed);
    const FetchResult result = Fetch(seed);
    EXPECT_EQ(result.ok(), where.has_value()) << seed << " " << result.status();
  }
  EXPECT_EQ(store_->stats().tiers[0]->damaged, 0u);
  EXPECT_EQ(store_->stats().tiers[1]->damaged, 0u);
}

}  // namespace
}  // namespace tandem::kvstore
