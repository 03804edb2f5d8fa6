// A disk that gives back other bytes than it was given, loses files, or is full: requests go on,
// what is damaged is computed again, and somebody can see it.
#include <gmock/gmock.h>
#include <sys/mount.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "tests/fault/kv_fault_fixture.h"

namespace tandem::e2e {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

constexpr uint32_t kChunks = 5;

class KvDiskFaultTest : public KvFaultTest {
 protected:
  ~KvDiskFaultTest() override {
    cluster_.reset();
    fs::remove_all(disk_);
  }
  void StartWithDisk() {
    // Small files: what is written reaches one of its own soon.
    Start({.prefill_flags = {"--kv-disk-path", disk_, "--kv-disk-bytes", "64MiB"}});
  }
  /// Leaves the chunks of `prompt_` on disk, all of them in blob files, and no prefill worker.
  void Fill() {
    StartWithDisk();
    EXPECT_EQ(Cached(Answer(prompt_).prompt_cache), 0u);
    ASSERT_TRUE(WaitMetric("tandem_kv_tier_chunks", "disk", kChunks));
    // The log goes into blob files when the database is opened.
    StopPrefill();
    cluster_->RestartPrefill();
    StopPrefill();
    ASSERT_FALSE(Files(".blob").empty());
  }
  std::vector<fs::path> Files(const std::string& suffix) {
    std::vector<fs::path> files;
    for (const auto& entry : fs::directory_iterator(disk_)) {
      if (entry.is_regular_file() && entry.path().string().ends_with(suffix)) {
        files.push_back(entry.path());
      }
    }
    return files;
  }
  static void Flip(const fs::path& path, uint64_t at) {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(static_cast<std::streamoff>(at));
    const char byte = static_cast<char>(file.get() ^ 1);
    file.seekp(static_cast<std::streamoff>(at));
    file.put(byte);
    ASSERT_TRUE(file.good());
  }
  static void Garble(const fs::path& path) {
    std::ofstream(path, std::ios::binary) << std::string(fs::file_size(path), 'x');
  }
  double Damaged() { return Metric("tandem_kv_tier_damaged_total", "disk"); }

  const std::string disk_ = TemporaryPath(".kv");
  const std::vector<int32_t> prompt_ = Text(1, 1500);
};

TEST_F(KvDiskFaultTest, AFlippedBitCostsOneChunk) {
  Fill();
  const fs::path file = Files(".blob").front();
  Flip(file, fs::file_size(file) / 2);
  cluster_->RestartPrefill();
  EXPECT_EQ(Answer(prompt_).prompt_cache.disk_tokens(), (kChunks - 1) * kChunkTokens);
  EXPECT_TRUE(WaitMetric("tandem_kv_tier_damaged_total", "disk", 1));
  // It was computed and kept anew.
  ASSERT_TRUE(WaitMetric("tandem_kv_tier_chunks", "disk", kChunks));
  cluster_->RestartPrefill();
  EXPECT_EQ(Answer(prompt_).prompt_cache.disk_tokens(), kChunks * kChunkTokens);
  EXPECT_EQ(Damaged(), 0);
}

TEST_F(KvDiskFaultTest, FlippedBitsEverywhere) {
  Fill();
  for (const fs::path& file : Files(".blob")) {
    for (uint64_t at = 64; at + 64 < fs::file_size(file); at += 1024) Flip(file, at);
  }
  cluster_->RestartPrefill();
  EXPECT_EQ(Cached(Answer(prompt_).prompt_cache), 0u);
  EXPECT_TRUE(WaitMetric("tandem_kv_tier_damaged_total", "disk", kChunks));
}

TEST_F(KvDiskFaultTest, TruncatedFiles) {
  Fill();
  for (const fs::path& file : Files(".blob")) fs::resize_file(file, fs::file_size(file) / 2);
  cluster_->RestartPrefill();
  EXPECT_LT(Cached(Answer(prompt_).prompt_cache), kChunks * kChunkTokens);
  EXPECT_TRUE(WaitMetric("tandem_kv_tier_damaged_total", "disk", 1));
}

TEST_F(KvDiskFaultTest, FilesThatAreGone) {
  Fill();
  for (const fs::path& file : Files(".blob")) fs::remove(file);
  cluster_->RestartPrefill();
  EXPECT_EQ(Cached(Answer(prompt_).prompt_cache), 0u);
}

TEST_F(KvDiskFaultTest, ADatabaseThatLostItsListOfFilesIsRepaired) {
  Fill();
  for (const auto& entry : fs::directory_iterator(disk_)) {
    const std::string name = entry.path().filename();
    if (name == "CURRENT" || name.starts_with("MANIFEST")) Garble(entry.path());
  }
  cluster_->RestartPrefill();
  EXPECT_TRUE(WaitMetric("tandem_kv_tier_healthy", "disk", 1));
  Answer(prompt_);
  EXPECT_TRUE(WaitMetric("tandem_kv_tier_chunks", "disk", kChunks));
}

TEST_F(KvDiskFaultTest, NothingButGarbageIsNoReasonToStop) {
  Fill();
  for (const fs::path& file : Files("")) Garble(file);
  cluster_->RestartPrefill();
  EXPECT_EQ(Cached(Answer(prompt_).prompt_cache), 0u);
  EXPECT_TRUE(WaitMetric("tandem_kv_tier_chunks", "disk", kChunks));
}

TEST_F(KvDiskFaultTest, AFolderThatCannotBeOpenedIsSaidToBeIt) {
  std::ofstream(disk_) << "a file where the folder should be";
  Process worker(
      {BinaryPath("tandemd"), "--role", "worker", "--phase", "prefill", "--model", DemoModel(),
       "--routers", "127.0.0.1:1", "--metrics-listen", "127.0.0.1:0", "--worker-listen",
       "127.0.0.1:0", "--data-listen", "127.0.0.1:0", "--kv-disk-path", disk_},
      TemporaryPath(".log"));
  const auto code = worker.Wait();
  ASSERT_TRUE(code.has_value());
  EXPECT_NE(*code, 0);
  EXPECT_THAT(worker.Log(), HasSubstr(disk_));
  EXPECT_THAT(worker.Log(), HasSubstr("name another"));
}

/// A file system of 24 MiB.
class KvDiskFullTest : public KvDiskFaultTest {
 protected:
  void SetUp() override {
    fs::create_directories(disk_);
    mounted_ = geteuid() == 0 && mount("tmpfs", disk_.c_str(), "tmpfs", 0, "size=24m") == 0;
    if (!mounted_) GTEST_SKIP() << "NOT TESTED: a full disk. That needs root, to mount a tmpfs.";
  }
  ~KvDiskFullTest() override {
    cluster_.reset();
    if (mounted_) umount2(disk_.c_str(), MNT_DETACH);
  }
  bool mounted_ = false;
};

TEST_F(KvDiskFullTest, MemoryServesUntilThereIsRoomAgain) {
  Start({.prefill_flags = {"--kv-disk-path", disk_, "--kv-disk-bytes", "8MiB"}});
  const fs::path filler = disk_ + "/filler";
  const size_t left = 64 << 10;
  std::ofstream(filler, std::ios::binary) << std::string(fs::space(disk_).available - left, 'x');
  EXPECT_EQ(Cached(Answer(prompt_).prompt_cache), 0u);
  EXPECT_TRUE(WaitMetric("tandem_kv_tier_failures_total", "disk", 1));
  EXPECT_TRUE(WaitFor([&] { return Metric("tandem_kv_tier_healthy", "disk") == 0; }));
  EXPECT_EQ(Answer(prompt_).prompt_cache.memory_tokens(), kChunks * kChunkTokens);
  EXPECT_EQ(Metric("tandem_kv_tier_chunks", "disk"), 0);
  fs::remove(filler);
  // The tier is tried again by what is written, after a while.
  uint32_t seed = 100;
  EXPECT_TRUE(WaitFor([&] {
    Ask(cluster_->client(), RequestFor(Text(seed++, 300), 1));
    return Metric("tandem_kv_tier_healthy", "disk") == 1;
  }));
  EXPECT_TRUE(WaitMetric("tandem_kv_tier_chunks", "disk", 1));
}

}  // namespace
}  // namespace tandem::e2e
