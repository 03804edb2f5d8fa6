// The disk tier on a disk that is full, fails, or gives back other bytes than it was given.
#include <fcntl.h>
#include <rocksdb/db.h>
#include <sys/mount.h>
#include <sys/resource.h>

#include <algorithm>
#include <csignal>
#include <fstream>

#include "kvstore/tiers/disk_tier.h"
#include "tests/unit/store/store_fixture.h"

namespace tandem::kvstore {
namespace {

using absl::StatusCode;
namespace fs = std::filesystem;

class DiskFailureTest : public ::testing::Test {
 protected:
  void Open(uint64_t limit_bytes = 64 << 20) {
    const absl::Status status = TryOpen(limit_bytes);
    ASSERT_TRUE(status.ok()) << status;
  }
  absl::Status TryOpen(uint64_t limit_bytes = 64 << 20) {
    tier_.reset();
    dropped_ = 0;
    auto tier = OpenDiskTier({.path = dir_ / "kv",
                              .limit_bytes = limit_bytes,
                              .now = clock_.now(),
                              .on_dropped = [this](const ChunkKey&) { ++dropped_; }});
    if (!tier.ok()) return tier.status();
    tier_ = *std::move(tier);
    return absl::OkStatus();
  }
  // 20,000 bytes each.
  absl::Status Put(uint64_t seed) { return tier_->Put(MakeChunk(seed, {.bytes = 20'000})); }
  void Fill(uint64_t n) {
    for (uint64_t seed = 0; seed < n; ++seed) ASSERT_TRUE(Put(seed).ok());
  }
  // How many of the first n can be had; all others must be refused.
  uint64_t Readable(uint64_t n) {
    uint64_t readable = 0;
    for (uint64_t seed = 0; seed < n; ++seed) {
      const auto chunk = tier_->Get(MakeKey(seed));
      if (!chunk.ok()) continue;
      EXPECT_TRUE(SameBytes(**chunk, *MakeChunk(seed, {.bytes = 20'000})));
      ++readable;
    }
    return readable;
  }
  // Files of the database with this extension or beginning, the oldest first.
  std::vector<fs::path> Files(const std::string& what) {
    std::vector<fs::path> files;
    for (const auto& entry : fs::directory_iterator(dir_ / "kv")) {
      const std::string name = entry.path().filename();
      if (entry.path().extension() == what || name.starts_with(what)) files.push_back(entry);
    }
    std::ranges::sort(files);
    return files;
  }
  static void FlipByte(const fs::path& file, uint64_t at) {
    std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
    stream.seekg(static_cast<std::streamoff>(at));
    const char byte = static_cast<char>(stream.get() ^ 1);
    stream.seekp(static_cast<std::streamoff>(at));
    stream.put(byte);
    ASSERT_TRUE(stream.good());
  }

  TempDir dir_;
  TestClock clock_;
  std::atomic<uint64_t> dropped_ = 0;
  std::unique_ptr<DiskTier> tier_;
};

// What the tier gives back

TEST_F(DiskFailureTest, AFlippedBitInABlobFileIsRefusedCountedAndDropped) {
  Open();
  Fill(400);
  tier_.reset();
  const std::vector<fs::path> blobs = Files(".blob");
  ASSERT_FALSE(blobs.empty());
  FlipByte(blobs[0], 30'000);
  Open();
  EXPECT_EQ(tier_->stats().chunks, 400u);
  EXPECT_EQ(Readable(400), 399u);
  EXPECT_EQ(tier_->stats().damaged, 1u);
  EXPECT_EQ(tier_->stats().chunks, 399u);
  EXPECT_EQ(dropped_, 1u);
  EXPECT_TRUE(tier_->stats().healthy);
  // Put again, it is well; after a restart too.
  for (uint64_t seed = 0; seed < 400; ++seed) ASSERT_TRUE(Put(seed).ok());
  Open();
  EXPECT_EQ(Readable(400), 400u);
}

TEST_F(DiskFailureTest, ATruncatedBlobFileCostsItsChunksAndNoOthers) {
  Open();
  Fill(400);
  tier_.reset();
  const std::vector<fs::path> blobs = Files(".blob");
  ASSERT_GE(blobs.size(), 2u);
  fs::resize_file(blobs[0], fs::file_size(blobs[0]) / 2);
  fs::remove(blobs[1]);
  Open();
  const uint64_t readable = Readable(400);
  EXPECT_GT(readable, 0u);
  EXPECT_LT(readable, 400u);
  EXPECT_EQ(tier_->stats().damaged, 400 - readable);
  EXPECT_EQ(tier_->stats().chunks, readable);
  Open();
  EXPECT_EQ(tier_->stats().chunks, readable);
  EXPECT_EQ(Readable(400), readable);
}

TEST_F(DiskFailureTest, AValueThatIsAnotherChunkIsRefused) {
  Open();
  Fill(3);
  tier_.reset();
  {
    // As nothing but a mistake could write it: RocksDB's own checksums are right.
    rocksdb::Options options;
    options.num_levels = 2;
    rocksdb::DB* raw = nullptr;
    ASSERT_TRUE(rocksdb::DB::Open(options, dir_ / "kv", &raw).ok());
    const std::unique_ptr<rocksdb::DB> db(raw);
    std::string value;
    ASSERT_TRUE(db->Get({}, "v" + MakeKey(0).Bytes(), &value).ok());
    ASSERT_TRUE(db->Put({}, "v" + MakeKey(1).Bytes(), value).ok());
    value[1000] ^= 1;
    ASSERT_TRUE(db->Put({}, "v" + MakeKey(0).Bytes(), value).ok());
    ASSERT_TRUE(db->Put({}, "i" + MakeKey(2).Bytes(), "what is this").ok());
    ASSERT_TRUE(db->Put({}, "i and this", "").ok());
  }
  Open();
  EXPECT_EQ(tier_->stats().chunks, 2u);
  EXPECT_EQ(tier_->Get(MakeKey(0)).status().code(), StatusCode::kDataLoss);
  EXPECT_EQ(tier_->Get(MakeKey(0)).status().code(), StatusCode::kNotFound);
  EXPECT_EQ(tier_->Get(MakeKey(1)).status().code(), StatusCode::kDataLoss);
  EXPECT_EQ(tier_->Get(MakeKey(2)).status().code(), StatusCode::kNotFound);
  EXPECT_EQ(tier_->stats().damaged, 2u);
  Fill(3);
  EXPECT_EQ(Readable(3), 3u);
}

// Damage that a collection of garbage meets first stops RocksDB's writes; the tier finds the
// damaged value, drops it, and goes on.
TEST_F(DiskFailureTest, DamageFoundWhileTidyingUpIsFoundAndDropped) {
  constexpr uint64_t kLimit = 8 << 20;
  Open(kLimit);
  Fill(350);
  tier_.reset();
  const std::vector<fs::path> blobs = Files(".blob");
  ASSERT_GE(blobs.size(), 3u);
  for (size_t i = 0; i < 3; ++i) FlipByte(blobs[i], 30'000);
  Open(kLimit);
  // Every second one goes: their files must be rewritten.
  uint64_t refused = 0;
  for (uint64_t seed = 0; seed < 3000; ++seed) {
    if (seed < 350 && seed % 2 == 0) tier_->Erase(MakeKey(seed));
    if (seed >= 350 && !Put(seed).ok()) ++refused;
    for (uint64_t old = 1; old < 350 && seed % 10 == 0; old += 2) tier_->Touch(MakeKey(old));
    clock_.Advance(absl::Seconds(20));
  }
  EXPECT_TRUE(tier_->stats().healthy);
  EXPECT_GE(tier_->stats().damaged, 1u);
  EXPECT_LE(tier_->stats().damaged, 6u);
  EXPECT_LT(refused, 100u);
  EXPECT_GT(tier_->stats().chunks, 300u);
  std::vector<ChunkKey> keys;
  tier_->ForEach([&](const TierEntry& entry) {
    keys.push_back(entry.key);
    return true;
  });
  const uint64_t damaged = tier_->stats().damaged;
  for (const ChunkKey& key : keys) EXPECT_TRUE(tier_->Get(key).ok());
  EXPECT_EQ(tier_->stats().damaged, damaged);
}

// What it does with a database that does not open

TEST_F(DiskFailureTest, WithADamagedManifestTheTierStartsAnew) {
  for (const bool gone : {false, true}) {
    Open();
    Fill(200);
    tier_.reset();
    const std::vector<fs::path> manifests = Files("MANIFEST");
    ASSERT_FALSE(manifests.empty());
    if (gone) {
      fs::remove(manifests.back());
    } else {
      FlipByte(manifests.back(), fs::file_size(manifests.back()) / 2);
    }
    Open();
    // What the tier says it has, it has.
    uint64_t listed = 0;
    tier_->ForEach([&](const TierEntry& entry) {
      EXPECT_TRUE(tier_->Get(entry.key).ok());
      ++listed;
      return true;
    });
    EXPECT_EQ(listed, tier_->stats().chunks);
    Fill(200);
    EXPECT_EQ(Readable(200), 200u);
    Open();
    EXPECT_EQ(Readable(200), 200u);
  }
}

TEST_F(DiskFailureTest, WithDamagedTablesTheTierStartsAnew) {
  Open();
  Fill(400);
  tier_.reset();
  for (const fs::path& table : Files(".sst")) {
    for (uint64_t at = 10; at < fs::file_size(table) - 100; at += 50) FlipByte(table, at);
  }
  Open();
  uint64_t listed = 0;
  tier_->ForEach([&](const TierEntry& entry) {
    listed += tier_->Get(entry.key).ok();
    return true;
  });
  EXPECT_EQ(listed, tier_->stats().chunks);
  Fill(400);
  EXPECT_EQ(Readable(400), 400u);
}

TEST_F(DiskFailureTest, ADamagedLogCostsTheWritesAfterTheDamageAndNoOthers) {
  Open();
  Fill(400);
  tier_.reset();
  const fs::path log = Files(".log").back();
  ASSERT_GT(fs::file_size(log), 50'000u);
  FlipByte(log, fs::file_size(log) / 2);
  Open();
  EXPECT_GT(tier_->stats().chunks, 200u);
  EXPECT_LT(tier_->stats().chunks, 400u);
  EXPECT_EQ(Readable(400), tier_->stats().chunks);
  EXPECT_EQ(tier_->stats().damaged, 0u);
}

TEST_F(DiskFailureTest, AFolderThatIsNoDatabaseIsSaidWithItsPathAndAWayOut) {
  fs::create_directories(dir_ / "kv/CURRENT");
  const absl::Status status = TryOpen();
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  const std::string message(status.message());
  EXPECT_THAT(message, ::testing::HasSubstr(dir_ / "kv"));
  EXPECT_THAT(message, ::testing::HasSubstr("can be computed again"));
}

// When it cannot write

// Any write that makes a file longer than the limit fails (EFBIG), as on a disk with errors.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    getrlimit(RLIMIT_FSIZE, &before_);
    was_ = std::signal(SIGXFSZ, SIG_IGN);
    const rlimit now{bytes, before_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &now);
  }
  ~FileSizeLimit() {
    setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, was_);
  }

 private:
  rlimit before_;
  void (*was_)(int);
};

TEST_F(DiskFailureTest, FailingWritesLeaveItAloneForAWhileAndThenItRecovers) {
  Open();
  Fill(50);
  {
    const FileSizeLimit limit(100);
    EXPECT_EQ(Put(100).code(), StatusCode::kUnavailable);
    EXPECT_FALSE(tier_->stats().healthy);
    EXPECT_EQ(tier_->stats().failures, 1u);
    // Left alone: no further attempt, so no further failure.
    EXPECT_EQ(Put(101).code(), StatusCode::kUnavailable);
    EXPECT_EQ(tier_->stats().failures, 1u);
    EXPECT_EQ(Readable(50), 50u);
    clock_.Advance(absl::Seconds(11));
    EXPECT_EQ(Put(102).code(), StatusCode::kUnavailable);
    EXPECT_EQ(tier_->stats().failures, 2u);
  }
  EXPECT_EQ(Put(103).code(), StatusCode::kUnavailable);
  clock_.Advance(absl::Seconds(11));
  const absl::Status recovered = Put(104);
  EXPECT_TRUE(recovered.ok()) << recovered;
  EXPECT_TRUE(tier_->stats().healthy);
  EXPECT_EQ(Readable(50), 50u);
  EXPECT_EQ(tier_->stats().damaged, 0u);
  Open();
  EXPECT_EQ(tier_->stats().chunks, 51u);
  EXPECT_EQ(Readable(50), 50u);
}

class FullDiskTest : public DiskFailureTest {
 protected:
  void SetUp() override {
    fs::create_directories(dir_ / "kv");
    if (!Mount("size=48m", 0)) {
      GTEST_SKIP() << "NOT TESTED: what happens on a full disk. That needs root, to mount a tmpfs.";
    }
  }
  void TearDown() override {
    tier_.reset();
    umount2((dir_ / "kv").c_str(), MNT_DETACH);
  }
  bool Mount(const char* options, unsigned long flags) {
    return mount("tmpfs", (dir_ / "kv").c_str(), "tmpfs", flags, options) == 0;
  }
  // Takes all but so much of what is free, also while the tier still writes what it has taken.
  void Occupy(uint64_t leave) {
    const int file = open((dir_ / "kv/occupied").c_str(), O_CREAT | O_WRONLY, 0600);
    uint64_t size = 0;
    EXPECT_TRUE(Eventually([&] {
      const uint64_t free = fs::space(dir_ / "kv").available;
      if (free <= leave) return true;
      const uint64_t piece = std::min<uint64_t>(free - leave, 1 << 20);
      const auto from = static_cast<off_t>(size), bytes = static_cast<off_t>(piece);
      if (posix_fallocate(file, from, bytes) == 0) size += piece;
      return false;
    }));
    close(file);
  }
};

TEST_F(FullDiskTest, DegradesAndRecoversWhenRoomIsMade) {
  Open(512 << 20);
  uint64_t n = 0;
  while (n < 4000 && Put(n).ok()) ++n;
  EXPECT_GT(n, 100u);
  EXPECT_LT(n, 4000u);
  EXPECT_FALSE(tier_->stats().healthy);
  EXPECT_GE(tier_->stats().failures, 1u);
  EXPECT_EQ(Readable(n), n);
  // Room is made by what is there: half of it.
  for (uint64_t seed = 0; seed < n; ++seed) {
    if (seed % 4 != 0) tier_->Erase(MakeKey(seed));
  }
  Open(16 << 20);
  EXPECT_TRUE(Eventually([&] {
    clock_.Advance(absl::Seconds(11));
    return Put(5000).ok();
  }));
  EXPECT_TRUE(tier_->stats().healthy);
  EXPECT_TRUE(tier_->Get(MakeKey(5000)).ok());
}

TEST_F(FullDiskTest, AnotherMayTakeAllAndGiveItBack) {
  Open();
  Fill(300);
  Occupy(100'000);
  EXPECT_EQ(Put(1000).code(), StatusCode::kUnavailable);
  EXPECT_FALSE(tier_->stats().healthy);
  EXPECT_EQ(Readable(300), 300u);
  clock_.Advance(absl::Seconds(11));
  EXPECT_EQ(Put(1000).code(), StatusCode::kUnavailable);
  EXPECT_EQ(tier_->stats().failures, 2u);
  fs::remove(dir_ / "kv/occupied");
  clock_.Advance(absl::Seconds(11));
  EXPECT_TRUE(Put(1000).ok());
  EXPECT_TRUE(tier_->stats().healthy);
  EXPECT_EQ(Readable(300), 300u);
}

// RocksDB itself runs into ENOSPC: the bytes are there, but it can make no file.
TEST_F(FullDiskTest, RunningOutOfFilesStopsRocksDbAndItRecovers) {
  Open();
  Fill(50);
  // RocksDB's own threads may make a file between the two.
  ASSERT_TRUE(Eventually([&] {
    const auto used = std::to_string(std::distance(fs::directory_iterator(dir_ / "kv"), {}) + 1);
    return Mount(("size=48m,nr_inodes=" + used).c_str(), MS_REMOUNT);
  }));
  uint64_t n = 50;
  while (n < 1200 && Put(n).ok()) ++n;
  EXPECT_LT(n, 1200u);
  EXPECT_FALSE(tier_->stats().healthy);
  EXPECT_EQ(Readable(n), n);
  clock_.Advance(absl::Seconds(11));
  EXPECT_FALSE(Put(5000).ok());
  ASSERT_TRUE(Mount("size=48m,nr_inodes=10000", MS_REMOUNT));
  clock_.Advance(absl::Seconds(11));
  const absl::Status recovered = Put(5001);
  EXPECT_TRUE(recovered.ok()) << recovered;
  EXPECT_TRUE(tier_->stats().healthy);
  EXPECT_EQ(Readable(n), n);
  Open();
  EXPECT_EQ(Readable(n), n);
  EXPECT_EQ(tier_->stats().chunks, n + 1);
}

TEST_F(FullDiskTest, OpensOnAFullDiskOrSaysSo) {
  Open();
  Fill(300);
  tier_.reset();
  Occupy(0);
  if (const absl::Status status = TryOpen(); status.ok()) {
    EXPECT_EQ(Readable(300), 300u);
    EXPECT_EQ(Put(1000).code(), StatusCode::kUnavailable);
  } else {
    EXPECT_EQ(status.code(), StatusCode::kUnavailable);
    EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("room"));
  }
  fs::remove(dir_ / "kv/occupied");
  Open();
  EXPECT_EQ(Readable(300), 300u);
  EXPECT_TRUE(Put(1000).ok());
}

}  // namespace
}  // namespace tandem::kvstore
