// The disk tier as long as the disk is well: order of eviction, limits, what a restart finds.
#include "kvstore/tiers/disk_tier.h"

#include <sys/wait.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <optional>

#include "kvstore/tiers/disk_index.h"
#include "tests/unit/store/store_fixture.h"

namespace tandem::kvstore {
namespace {

using absl::StatusCode;

constexpr uint64_t kEach = 1000 + kDiskEntryOverhead;
constexpr uint64_t kKillLimit = 8 << 20;

class DiskTierTest : public ::testing::Test {
 protected:
  void Open(uint64_t limit_bytes) {
    tier_.reset();
    dropped_.clear();
    auto tier =
        OpenDiskTier({.path = dir_ / "kv",
                      .limit_bytes = limit_bytes,
                      .now = clock_.now(),
                      .on_dropped = [this](const ChunkKey& key) { dropped_.push_back(key); }});
    ASSERT_TRUE(tier.ok()) << tier.status();
    tier_ = *std::move(tier);
  }
  bool Has(uint64_t seed) {
    const ChunkKey key = MakeKey(seed);
    return tier_->Contains({&key, 1})[0];
  }
  void Put(uint64_t seed, ChunkShape shape = {}) {
    const absl::Status status = tier_->Put(MakeChunk(seed, shape));
    ASSERT_TRUE(status.ok()) << status;
  }
  void ExpectGet(uint64_t seed, ChunkShape shape = {}) {
    const auto chunk = tier_->Get(MakeKey(seed, shape.level));
    ASSERT_TRUE(chunk.ok()) << chunk.status();
    EXPECT_TRUE(SameBytes(**chunk, *MakeChunk(seed, shape)));
  }
  uint64_t ListedBytes() {
    uint64_t bytes = 0;
    tier_->ForEach([&](const TierEntry& entry) {
      bytes += entry.bytes + kDiskEntryOverhead;
      return true;
    });
    return bytes;
  }

  TempDir dir_;
  TestClock clock_;
  std::vector<ChunkKey> dropped_;
  std::unique_ptr<DiskTier> tier_;
};

TEST_F(DiskTierTest, GivesBackWhatWasPutAlsoAfterARestart) {
  Open(1 << 20);
  const ChunkShape shape{
      .bytes = 5000, .first_position = 768, .n_tokens = 200, .level = Level::kQ2};
  Put(1);
  Put(2, shape);
  for (int restart = 0; restart < 2; ++restart) {
    ExpectGet(1);
    ExpectGet(2, shape);
    EXPECT_EQ(tier_->Get(MakeKey(3)).status().code(), StatusCode::kNotFound);
    EXPECT_EQ(tier_->Get(MakeKey(2)).status().code(), StatusCode::kNotFound);
    EXPECT_EQ(tier_->stats().chunks, 2u);
    EXPECT_EQ(tier_->stats().bytes, 6000u + 2 * kDiskEntryOverhead);
    EXPECT_TRUE(tier_->stats().healthy);
    tier_->ForEach([&](const TierEntry& entry) {
      if (entry.key == MakeKey(1)) return true;
      EXPECT_EQ(entry.key, MakeKey(2, Level::kQ2));
      EXPECT_EQ(entry.first_position, 768u);
      EXPECT_EQ(entry.n_tokens, 200u);
      EXPECT_EQ(entry.bytes, 5000u);
      return true;
    });
    Open(1 << 20);
  }
  EXPECT_EQ(tier_->name(), "disk");
}

TEST_F(DiskTierTest, WhatIsErasedStaysAwayAfterARestart) {
  Open(1 << 20);
  Put(1);
  Put(2);
  tier_->Erase(MakeKey(1));
  tier_->Erase(MakeKey(7));
  EXPECT_FALSE(Has(1));
  Open(1 << 20);
  EXPECT_FALSE(Has(1));
  ExpectGet(2);
  Put(1);
  ExpectGet(1);
}

TEST_F(DiskTierTest, LimitHoldsToTheByte) {
  Open(10 * kEach);
  for (uint64_t seed = 0; seed < 10; ++seed) Put(seed);
  EXPECT_EQ(tier_->stats().bytes, 10 * kEach);
  EXPECT_TRUE(dropped_.empty());
  for (uint64_t seed = 10; seed < 200; ++seed) {
    Put(seed, {.bytes = 100 + seed * 7});
    ASSERT_LE(tier_->stats().bytes, 10 * kEach);
    ASSERT_EQ(tier_->stats().bytes, ListedBytes());
  }
  EXPECT_EQ(tier_->stats().evictions, dropped_.size());
  EXPECT_EQ(tier_->Put(MakeChunk(500, {.bytes = 10 * kEach - kDiskEntryOverhead + 1})).code(),
            StatusCode::kResourceExhausted);
  Put(501, {.bytes = 10 * kEach - kDiskEntryOverhead});
  EXPECT_EQ(tier_->stats().chunks, 1u);
}

TEST_F(DiskTierTest, LeastRecentlyUsedGoesFirst) {
  Open(4 * kEach);
  for (uint64_t seed = 0; seed < 4; ++seed) {
    Put(seed);
    clock_.Advance(absl::Seconds(20));
  }
  ExpectGet(0);
  tier_->Touch(MakeKey(1));
  for (uint64_t seed = 10; seed < 12; ++seed) {
    clock_.Advance(absl::Seconds(20));
    Put(seed);
  }
  EXPECT_THAT(dropped_, ::testing::ElementsAre(MakeKey(2), MakeKey(3)));
}

TEST_F(DiskTierTest, UseIsRememberedOverARestart) {
  Open(4 * kEach);
  for (uint64_t seed = 0; seed < 4; ++seed) {
    Put(seed);
    clock_.Advance(absl::Seconds(20));
  }
  ExpectGet(0);
  Open(4 * kEach);
  Put(10);
  EXPECT_THAT(dropped_, ::testing::ElementsAre(MakeKey(1)));
}

TEST_F(DiskTierTest, DeepestGoesFirstAmongEquals) {
  Open(6 * kEach);
  for (uint64_t i = 0; i < 6; ++i) {
    Put(i, {.first_position = static_cast<uint32_t>((i * 5) % 6) * 256});
  }
  for (uint64_t seed = 100; seed < 103; ++seed) {
    clock_.Advance(absl::Seconds(20));
    Put(seed);
  }
  // Those at positions 5, 4 and 3.
  EXPECT_THAT(dropped_, ::testing::ElementsAre(MakeKey(1), MakeKey(2), MakeKey(3)));
}

TEST_F(DiskTierTest, PinnedStayAlsoAfterARestart) {
  Open(10 * kEach);
  for (uint64_t seed = 0; seed < 8; ++seed) {
    Put(seed);
    EXPECT_TRUE(tier_->SetPinned(MakeKey(seed), true));
  }
  EXPECT_FALSE(tier_->SetPinned(MakeKey(99), true));
  for (int restart = 0; restart < 2; ++restart) {
    for (uint64_t seed = 100; seed < 150; ++seed) Put(seed);
    for (uint64_t seed = 0; seed < 8; ++seed) EXPECT_TRUE(Has(seed));
    EXPECT_EQ(tier_->Put(MakeChunk(300, {.bytes = 2 * kEach})).code(),
              StatusCode::kResourceExhausted);
    Open(10 * kEach);
  }
  for (uint64_t seed = 0; seed < 8; ++seed) tier_->SetPinned(MakeKey(seed), false);
  clock_.Advance(absl::Seconds(20));
  for (uint64_t seed = 200; seed < 210; ++seed) Put(seed);
  for (uint64_t seed = 0; seed < 8; ++seed) EXPECT_FALSE(Has(seed));
}

TEST_F(DiskTierTest, ASmallerLimitTrimsAtOpen) {
  Open(20 * kEach);
  for (uint64_t seed = 0; seed < 20; ++seed) {
    Put(seed);
    clock_.Advance(absl::Seconds(20));
  }
  tier_->SetPinned(MakeKey(0), true);
  Open(5 * kEach);
  EXPECT_EQ(tier_->stats().chunks, 5u);
  EXPECT_EQ(dropped_.size(), 15u);
  ExpectGet(0);
  for (uint64_t seed = 16; seed < 20; ++seed) ExpectGet(seed);
  Open(5 * kEach);
  EXPECT_EQ(tier_->stats().chunks, 5u);
}

TEST_F(DiskTierTest, FolderStaysWithinOneAndAHalfTimesTheLimit) {
  constexpr uint64_t kLimit = 32 << 20, kBytes = 50'000;
  Open(kLimit);
  std::mt19937_64 random(3);
  uint64_t most = 0, refused = 0;
  for (uint64_t seed = 0; seed < 6000; ++seed) {
    // Uses out of order, so that files empty themselves unevenly.
    for (int use = 0; use < 2 && seed > 0; ++use) tier_->Touch(MakeKey(random() % seed));
    if (seed % 16 == 0) clock_.Advance(absl::Seconds(20));
    if (!tier_->Put(MakeChunk(seed, {.bytes = kBytes})).ok()) ++refused;
    if (seed % 20 == 0) most = std::max(most, FolderBytes(dir_.path()));
    ASSERT_LE(tier_->stats().bytes, kLimit);
  }
  std::printf("most %.1f MB of %.1f MB, %llu of 6000 refused\n", 1e-6 * static_cast<double>(most),
              1e-6 * static_cast<double>(kLimit), static_cast<unsigned long long>(refused));
  EXPECT_LE(most, kLimit * 31 / 20);
  EXPECT_GT(tier_->stats().bytes, kLimit * 9 / 10);
  EXPECT_TRUE(Eventually([&] { return FolderBytes(dir_.path()) < kLimit * 3 / 2; }));
  uint64_t read = 0;
  tier_->ForEach([&](const TierEntry& entry) {
    const auto chunk = tier_->Get(entry.key);
    EXPECT_TRUE(chunk.ok()) << chunk.status();
    ++read;
    return chunk.ok();
  });
  EXPECT_EQ(read, tier_->stats().chunks);
}

TEST_F(DiskTierTest, SpaceOfWhatIsErasedComesBackWithoutWrites) {
  constexpr uint64_t kLimit = 32 << 20;
  Open(kLimit);
  for (uint64_t seed = 0; seed < 600; ++seed) Put(seed, {.bytes = 50'000});
  EXPECT_GT(FolderBytes(dir_.path()), kLimit * 8 / 10);
  for (uint64_t seed = 0; seed < 600; ++seed) {
    if (seed % 10 != 0) tier_->Erase(MakeKey(seed));
  }
  EXPECT_TRUE(Eventually([&] { return FolderBytes(dir_.path()) < kLimit / 2; }))
      << FolderBytes(dir_.path());
  for (uint64_t seed = 0; seed < 600; seed += 10) ExpectGet(seed, {.bytes = 50'000});
}

TEST_F(DiskTierTest, AFolderThatCannotBeMadeIsSaidWithItsPath) {
  const std::string file = dir_ / "file";
  ASSERT_NE(std::fclose(std::fopen(file.c_str(), "w")), EOF);
  const auto tier = OpenDiskTier({.path = file + "/kv"});
  EXPECT_EQ(tier.status().code(), StatusCode::kUnavailable);
  EXPECT_THAT(std::string(tier.status().message()), ::testing::HasSubstr(file));
}

TEST_F(DiskTierTest, TwoAtOnceInOneFolderIsRefused) {
  Open(1 << 20);
  const auto second = OpenDiskTier({.path = dir_ / "kv"});
  EXPECT_EQ(second.status().code(), StatusCode::kUnavailable);
  EXPECT_THAT(std::string(second.status().message()), ::testing::HasSubstr("no other process"));
}

// Writes chunks from TANDEM_TEST_FIRST on until it is killed, and says on stdout of each that Put
// has returned. A program of its own, since RocksDB's threads do not come along through a fork.
TEST(DiskTierChild, DISABLED_Writes) {
  const auto tier = OpenDiskTier({.path = getenv("TANDEM_TEST_PATH"), .limit_bytes = kKillLimit});
  ASSERT_TRUE(tier.ok()) << tier.status();
  for (uint64_t seed = std::stoull(getenv("TANDEM_TEST_FIRST"));; ++seed) {
    const absl::Status status = (*tier)->Put(MakeChunk(seed, {.bytes = 20'000}));
    ASSERT_TRUE(status.ok()) << status;
    dprintf(STDOUT_FILENO, "put %llu\n", static_cast<unsigned long long>(seed));
  }
}

// Runs the child until it has said so many, and kills it. The last seed that it said.
std::optional<uint64_t> WriteAndKill(const std::string& path, uint64_t first, uint64_t n_puts) {
  int ends[2];
  if (pipe(ends) != 0) return std::nullopt;
  setenv("TANDEM_TEST_PATH", path.c_str(), 1);
  setenv("TANDEM_TEST_FIRST", std::to_string(first).c_str(), 1);
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], STDOUT_FILENO);
    close(ends[0]);
    close(ends[1]);
    execl("/proc/self/exe", "child", "--gtest_filter=DiskTierChild.*",
          "--gtest_also_run_disabled_tests", nullptr);
    _exit(127);
  }
  close(ends[1]);
  std::FILE* said = fdopen(ends[0], "r");
  std::optional<uint64_t> last;
  char line[256];
  uint64_t n = 0;
  while (std::fgets(line, sizeof(line), said)) {
    unsigned long long seed = 0;
    if (std::sscanf(line, "put %llu", &seed) != 1) continue;
    last = seed;
    if (++n == n_puts) kill(child, SIGKILL);
  }
  std::fclose(said);
  int status = 0;
  waitpid(child, &status, 0);
  return WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL ? last : std::nullopt;
}

TEST_F(DiskTierTest, KillDuringWritesLosesNothing) {
  uint64_t first = 0;
  for (int round = 0; round < 6; ++round) {
    const uint64_t n_puts = 100 + 157 * round;
    const std::optional<uint64_t> last = WriteAndKill(dir_ / "kv", first, n_puts);
    ASSERT_TRUE(last) << round;
    Open(kKillLimit);
    EXPECT_LE(tier_->stats().bytes, kKillLimit);
    // The limit holds some 400; the last of them were not evicted.
    for (uint64_t back = 0; back < std::min<uint64_t>(n_puts, 300); ++back) {
      ASSERT_TRUE(Has(*last - back)) << round << " " << back;
    }
    uint64_t read = 0;
    tier_->ForEach([&](const TierEntry& entry) {
      const auto chunk = tier_->Get(entry.key);
      EXPECT_TRUE(chunk.ok()) << chunk.status();
      ++read;
      return chunk.ok();
    });
    EXPECT_EQ(read, tier_->stats().chunks);
    EXPECT_EQ(tier_->stats().damaged, 0u);
    first = *last + 100;
    tier_.reset();
  }
  EXPECT_LE(FolderBytes(dir_.path()), kKillLimit + (16 << 20));
}

TEST_F(DiskTierTest, ManyThreadsAtOnce) {
  constexpr uint64_t kLimit = 400'000;
  std::atomic<uint64_t> n_dropped = 0;
  auto opened = OpenDiskTier({.path = dir_ / "threads",
                              .limit_bytes = kLimit,
                              .now = clock_.now(),
                              .on_dropped = [&](const ChunkKey&) { ++n_dropped; }});
  ASSERT_TRUE(opened.ok());
  DiskTier& tier = **opened;
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(t);
      for (int step = 0; step < 1500; ++step) {
        const uint64_t seed = random() % 600;
        const ChunkKey key = MakeKey(seed);
        if (const auto chunk = tier.Get(key); chunk.ok()) {
          ASSERT_TRUE(SameBytes(**chunk, *MakeChunk(seed)));
        } else {
          ASSERT_EQ(chunk.status().code(), StatusCode::kNotFound) << chunk.status();
          const absl::Status status = tier.Put(MakeChunk(seed));
          ASSERT_TRUE(status.ok()) << status;
        }
        if (step % 30 == 0) tier.Erase(key);
        if (step % 20 == 0) {
          tier.SetPinned(key, true);
          tier.SetPinned(key, false);
        }
        if (step % 100 == 0) clock_.Advance(absl::Seconds(20));
        ASSERT_LE(tier.stats().bytes, kLimit);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(tier.stats().damaged, 0u);
  EXPECT_EQ(tier.stats().failures, 0u);
  EXPECT_EQ(tier.stats().evictions, n_dropped);
}

TEST(DiskRecordTest, OtherBytesAreNoRecord) {
  const DiskRecord record{
      .first_position = 7, .n_tokens = 256, .bytes = 123456789012, .last_use = -5, .pinned = true};
  const std::string bytes = record.Encode();
  const auto decoded = DiskRecord::Decode(bytes);
  ASSERT_TRUE(decoded.ok());
  EXPECT_EQ(decoded->first_position, 7u);
  EXPECT_EQ(decoded->n_tokens, 256u);
  EXPECT_EQ(decoded->bytes, 123456789012u);
  EXPECT_EQ(decoded->last_use, -5);
  EXPECT_TRUE(decoded->pinned);
  EXPECT_FALSE(DiskRecord::Decode("").ok());
  EXPECT_FALSE(DiskRecord::Decode(bytes.substr(1)).ok());
  EXPECT_FALSE(DiskRecord::Decode("\2" + bytes.substr(1)).ok());
}

}  // namespace
}  // namespace tandem::kvstore
