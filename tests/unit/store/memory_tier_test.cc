// The memory tier: what stays, what goes, in which order, and that the bytes add up.
#include "kvstore/tiers/memory_tier.h"

#include <algorithm>
#include <mutex>
#include <set>

#include "tests/unit/store/store_fixture.h"

namespace tandem::kvstore {
namespace {

using absl::StatusCode;

constexpr uint64_t kEach = 1000 + kMemoryEntryOverhead;

class MemoryTierTest : public ::testing::Test {
 protected:
  void Make(uint64_t limit_bytes) {
    evicted_.clear();
    tier_ = NewMemoryTier({.limit_bytes = limit_bytes, .on_evicted = [this](StoredChunkPtr chunk) {
                             evicted_.push_back(std::move(chunk));
                           }});
  }
  bool Has(uint64_t seed, Level level = Level::kLossless) {
    const ChunkKey key = MakeKey(seed, level);
    return tier_->Contains({&key, 1})[0];
  }
  void Put(uint64_t seed, ChunkShape shape = {}) {
    ASSERT_TRUE(tier_->Put(MakeChunk(seed, shape)).ok()) << seed;
  }
  void Use(uint64_t seed) { ASSERT_TRUE(tier_->Get(MakeKey(seed)).ok()) << seed; }

  std::vector<StoredChunkPtr> evicted_;
  std::unique_ptr<Tier> tier_;
};

TEST_F(MemoryTierTest, GivesBackWhatWasPut) {
  Make(1 << 20);
  const StoredChunkPtr chunk = MakeChunk(1, {.first_position = 512, .n_tokens = 200});
  ASSERT_TRUE(tier_->Put(chunk).ok());
  const absl::StatusOr<StoredChunkPtr> got = tier_->Get(MakeKey(1));
  ASSERT_TRUE(got.ok());
  EXPECT_EQ(*got, chunk);
  EXPECT_EQ(tier_->Get(MakeKey(2)).status().code(), StatusCode::kNotFound);
  EXPECT_EQ(tier_->Get(MakeKey(1, Level::kQ1)).status().code(), StatusCode::kNotFound);
  std::vector<TierEntry> entries;
  tier_->ForEach([&](const TierEntry& entry) {
    entries.push_back(entry);
    return true;
  });
  ASSERT_EQ(entries.size(), 1u);
  EXPECT_EQ(entries[0].key, MakeKey(1));
  EXPECT_EQ(entries[0].first_position, 512u);
  EXPECT_EQ(entries[0].n_tokens, 200u);
  EXPECT_EQ(entries[0].bytes, 1000u);
  EXPECT_FALSE(entries[0].pinned);
  tier_->Erase(MakeKey(1));
  tier_->Erase(MakeKey(1));
  EXPECT_FALSE(Has(1));
  EXPECT_EQ(tier_->stats().bytes, 0u);
  EXPECT_TRUE(evicted_.empty());
  EXPECT_EQ(tier_->name(), "memory");
}

TEST_F(MemoryTierTest, LimitHoldsToTheByte) {
  Make(10 * kEach);
  for (uint64_t seed = 0; seed < 10; ++seed) Put(seed);
  EXPECT_EQ(tier_->stats().bytes, 10 * kEach);
  EXPECT_EQ(tier_->stats().evictions, 0u);
  Put(10);
  EXPECT_EQ(tier_->stats().bytes, 10 * kEach);
  EXPECT_EQ(tier_->stats().evictions, 1u);
  EXPECT_EQ(tier_->stats().evicted_bytes, kEach);
  ASSERT_EQ(evicted_.size(), 1u);
  // One more byte than the limit, however empty it is.
  EXPECT_EQ(tier_->Put(MakeChunk(11, {.bytes = 10 * kEach - kMemoryEntryOverhead + 1})).code(),
            StatusCode::kResourceExhausted);
  EXPECT_EQ(tier_->stats().chunks, 10u);
  Put(12, {.bytes = 10 * kEach - kMemoryEntryOverhead});
  EXPECT_EQ(tier_->stats().chunks, 1u);
  EXPECT_EQ(tier_->stats().bytes, 10 * kEach);
}

TEST_F(MemoryTierTest, AccountsExactlyInAnyOrderOfCalls) {
  constexpr uint64_t kLimit = 40'000;
  Make(kLimit);
  std::mt19937_64 random(7);
  for (int step = 0; step < 20'000; ++step) {
    const uint64_t seed = random() % 200;
    const ChunkShape shape{.bytes = 100 + (seed * 37) % 3000,
                           .first_position = static_cast<uint32_t>(seed % 7) * 256};
    switch (random() % 6) {
      case 0:
      case 1:
        tier_->Put(MakeChunk(seed, shape)).IgnoreError();
        break;
      case 2:
      case 3:
        tier_->Get(MakeKey(seed)).IgnoreError();
        break;
      case 4:
        tier_->Erase(MakeKey(seed));
        break;
      default:
        tier_->SetPinned(MakeKey(seed), random() % 3 == 0);
    }
    uint64_t bytes = 0, chunks = 0;
    if (step % 100 == 0) {
      tier_->ForEach([&](const TierEntry& entry) {
        bytes += entry.bytes + kMemoryEntryOverhead;
        ++chunks;
        return true;
      });
      ASSERT_EQ(tier_->stats().bytes, bytes);
      ASSERT_EQ(tier_->stats().chunks, chunks);
    }
    ASSERT_LE(tier_->stats().bytes, kLimit);
  }
}

TEST_F(MemoryTierTest, HotSetSurvivesAScanOfFiveTimesTheCapacity) {
  Make(100 * kEach);
  for (uint64_t seed = 0; seed < 75; ++seed) {
    Put(seed);
    Use(seed);
  }
  for (uint64_t seed = 1000; seed < 1500; ++seed) Put(seed);
  for (uint64_t seed = 0; seed < 75; ++seed) EXPECT_TRUE(Has(seed)) << seed;
  EXPECT_EQ(tier_->stats().chunks, 100u);
}

TEST_F(MemoryTierTest, WhatIsHotNowReplacesWhatWasHotOnce) {
  Make(100 * kEach);
  for (uint64_t seed = 0; seed < 100; ++seed) {
    Put(seed);
    for (int use = 0; use < 50; ++use) Use(seed);
  }
  std::mt19937_64 random(5);
  for (int request = 0; request < 7000; ++request) {
    const uint64_t seed = 1000 + random() % 70;
    if (Has(seed)) {
      Use(seed);
    } else {
      Put(seed);
    }
  }
  int held = 0;
  for (uint64_t seed = 1000; seed < 1070; ++seed) held += Has(seed);
  EXPECT_GE(held, 65);
}

TEST_F(MemoryTierTest, TheBigAndCheapGoesBeforeTheSmallAndDear) {
  Make(20'000);
  Put(1, {.bytes = 8000, .n_tokens = 32});
  for (uint64_t seed = 2; seed < 10; ++seed) Put(seed, {.bytes = 1000, .n_tokens = 256});
  Put(10, {.bytes = 1000, .n_tokens = 256});
  Put(11, {.bytes = 1000, .n_tokens = 256});
  ASSERT_EQ(evicted_.size(), 1u);
  EXPECT_EQ(evicted_[0]->key(), MakeKey(1));
}

TEST_F(MemoryTierTest, DeepestGoesFirstAmongEquals) {
  Make(10 * kEach);
  for (uint64_t i = 0; i < 10; ++i) {
    Put(i, {.first_position = static_cast<uint32_t>((i * 7) % 10) * 256});
  }
  for (uint64_t seed = 100; seed < 104; ++seed) Put(seed);
  std::vector<uint32_t> positions;
  for (const StoredChunkPtr& chunk : evicted_) positions.push_back(chunk->first_position());
  EXPECT_THAT(positions, ::testing::ElementsAre(9 * 256, 8 * 256, 7 * 256, 6 * 256));
}

TEST_F(MemoryTierTest, ALittleDifferenceInSizeMakesNoDifferenceInOrder) {
  Make(10 * (kEach + 120));
  for (uint32_t i = 0; i < 10; ++i) {
    Put(i, {.bytes = 1120 - 3 * i, .first_position = i * 256});
  }
  Put(100, {.bytes = 1120});
  ASSERT_EQ(evicted_.size(), 1u);
  EXPECT_EQ(evicted_[0]->first_position(), 9u * 256);
}

TEST_F(MemoryTierTest, PinnedStayAndCountAgainstWhatMayBePut) {
  Make(10 * kEach);
  for (uint64_t seed = 0; seed < 8; ++seed) {
    Put(seed);
    EXPECT_TRUE(tier_->SetPinned(MakeKey(seed), true));
    EXPECT_TRUE(tier_->SetPinned(MakeKey(seed), true));
  }
  EXPECT_FALSE(tier_->SetPinned(MakeKey(99), true));
  for (uint64_t seed = 100; seed < 200; ++seed) Put(seed);
  for (uint64_t seed = 0; seed < 8; ++seed) EXPECT_TRUE(Has(seed));
  EXPECT_EQ(tier_->Put(MakeChunk(300, {.bytes = 2 * kEach})).code(),
            StatusCode::kResourceExhausted);
  EXPECT_EQ(tier_->stats().bytes, 10 * kEach);
  for (uint64_t seed = 0; seed < 8; ++seed) tier_->SetPinned(MakeKey(seed), false);
  for (uint64_t seed = 400; seed < 420; ++seed) Put(seed);
  for (uint64_t seed = 0; seed < 8; ++seed) EXPECT_FALSE(Has(seed));
}

TEST_F(MemoryTierTest, AReadersChunkOutlivesItsEviction) {
  Make(2 * kEach);
  Put(1);
  const StoredChunkPtr held = *tier_->Get(MakeKey(1));
  for (uint64_t seed = 10; seed < 30; ++seed) {
    Put(seed);
    Use(seed);
  }
  EXPECT_FALSE(Has(1));
  EXPECT_TRUE(held->Verify().ok());
  EXPECT_TRUE(SameBytes(*held, *MakeChunk(1)));
}

TEST_F(MemoryTierTest, DamagedChunkIsRefusedAndDropped) {
  Make(10 * kEach);
  const StoredChunkPtr chunk = MakeChunk(1);
  ASSERT_TRUE(tier_->Put(chunk).ok());
  Put(2);
  Damage(*chunk);
  EXPECT_EQ(tier_->Get(MakeKey(1)).status().code(), StatusCode::kDataLoss);
  EXPECT_FALSE(Has(1));
  EXPECT_EQ(tier_->Get(MakeKey(1)).status().code(), StatusCode::kNotFound);
  EXPECT_EQ(tier_->stats().damaged, 1u);
  EXPECT_EQ(tier_->stats().bytes, kEach);
  EXPECT_TRUE(evicted_.empty());
  Put(1);
  Use(1);
}

TEST_F(MemoryTierTest, PutOfWhatIsThereIsAUse) {
  Make(10 * kEach);
  for (uint64_t seed = 0; seed < 10; ++seed) Put(seed);
  for (int again = 0; again < 3; ++again) Put(4);
  EXPECT_EQ(tier_->stats().bytes, 10 * kEach);
  for (uint64_t seed = 100; seed < 150; ++seed) Put(seed);
  EXPECT_TRUE(Has(4));
}

TEST(MemoryTierThreadsTest, ManyThreadsAtOnce) {
  constexpr uint64_t kLimit = 100'000;
  std::mutex mutex;
  uint64_t evicted = 0;
  const std::unique_ptr<Tier> tier =
      NewMemoryTier({.limit_bytes = kLimit, .on_evicted = [&](StoredChunkPtr chunk) {
                       ASSERT_TRUE(chunk->Verify().ok());
                       std::lock_guard lock(mutex);
                       ++evicted;
                     }});
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(t);
      for (int step = 0; step < 5000; ++step) {
        const uint64_t seed = random() % 300;
        const ChunkKey key = MakeKey(seed);
        if (const auto chunk = tier->Get(key); chunk.ok()) {
          ASSERT_EQ((*chunk)->key(), key);
        } else {
          ASSERT_EQ(chunk.status().code(), StatusCode::kNotFound);
          ASSERT_TRUE(tier->Put(MakeChunk(seed)).ok());
        }
        if (step % 50 == 0) tier->Erase(key);
        if (step % 20 == 0) {
          tier->SetPinned(key, true);
          tier->SetPinned(key, false);
        }
        ASSERT_LE(tier->stats().bytes, kLimit);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const std::lock_guard lock(mutex);
  EXPECT_EQ(tier->stats().evictions, evicted);
}

}  // namespace
}  // namespace tandem::kvstore
