// Chunks that were encoded with another KV profile than the one a worker has, and a worker that is
// given another model's.
#include <gmock/gmock.h>

#include <filesystem>
#include <fstream>

#include "kvstore/codec/profile.h"
#include "kvstore/tiers/disk_tier.h"
#include "tests/fault/kv_fault_fixture.h"

namespace tandem::e2e {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

constexpr uint32_t kChunks = 5;

std::string ModelProfile() {
  return fs::path(DemoModel()).replace_extension(".kvprofile").string();
}

kvstore::codec::Profile ReadProfile() {
  std::ifstream in(ModelProfile(), std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(in), {}};
  auto profile =
      kvstore::codec::ParseProfile({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()});
  EXPECT_TRUE(profile.ok()) << profile.status();
  return *std::move(profile);
}

std::string WriteProfile(const kvstore::codec::Profile& profile) {
  std::string path = TemporaryPath(".kvprofile");
  std::ofstream(path, std::ios::binary) << kvstore::codec::SerializeProfile(profile);
  return path;
}

class KvProfileFaultTest : public KvFaultTest {
 protected:
  ~KvProfileFaultTest() override {
    cluster_.reset();
    fs::remove_all(disk_);
  }
  void StartWith(const std::string& profile, const std::string& model = "") {
    std::vector<std::string> flags = {"--kv-disk-path", disk_};
    if (!profile.empty()) flags.insert(flags.end(), {"--kv-profile", profile});
    Start({.prefill_flags = flags, .floor = "q1", .model = model});
  }
  /// Leaves the prompt's chunks on disk, at q1 alone, encoded with the model's own profile.
  void Fill() {
    StartWith(ModelProfile());
    Answer(prompt_);
    ASSERT_TRUE(WaitMetric("tandem_kv_tier_chunks", "disk", 2 * kChunks));
    StopPrefill();
    cluster_.reset();
    DropLossless();
  }
  void DropLossless() {
    auto tier = kvstore::OpenDiskTier({.path = disk_});
    ASSERT_TRUE(tier.ok()) << tier.status();
    std::vector<kvstore::ChunkKey> lossless;
    (*tier)->ForEach([&](const kvstore::TierEntry& entry) {
      if (entry.key.level == kvstore::Level::kLossless) lossless.push_back(entry.key);
      return true;
    });
    EXPECT_EQ(lossless.size(), kChunks);
    for (const kvstore::ChunkKey& key : lossless) (*tier)->Erase(key);
  }
  /// With the worker that runs now no chunk can be decoded: all are refused, once, and replaced.
  void ExpectRefused() {
    EXPECT_EQ(Cached(Answer(prompt_).prompt_cache), 0u);
    EXPECT_EQ(Metric("tandem_kv_refused_chunks_total", "FAILED_PRECONDITION"), kChunks);
    ASSERT_TRUE(WaitMetric("tandem_kv_tier_chunks", "disk", 2 * kChunks));
    EXPECT_EQ(Cached(Answer(prompt_).prompt_cache), kChunks * kChunkTokens);
    // What replaced them is good: it is all that is there now.
    StopPrefill();
    DropLossless();
    cluster_->RestartPrefill();
    EXPECT_EQ(Ask(cluster_->client(), RequestFor(prompt_, 2)).prompt_cache.disk_tokens(),
              kChunks * kChunkTokens);
    EXPECT_EQ(Metric("tandem_kv_refused_chunks_total"), 0);
  }

  const std::string disk_ = TemporaryPath(".kv");
  const std::vector<int32_t> prompt_ = Text(4000, 1500);
};

TEST_F(KvProfileFaultTest, AnotherProfileOfTheSameModel) {
  Fill();
  kvstore::codec::Profile profile = ReadProfile();
  auto& q1 = profile.levels[0];
  ASSERT_TRUE(q1.has_value());
  for (auto& plane : q1->planes) plane.step *= 2;
  StartWith(WriteProfile(profile));
  ExpectRefused();
}

TEST_F(KvProfileFaultTest, NoProfileAnyMore) {
  Fill();
  // Beside this one there is none.
  const fs::path folder = TemporaryPath(".model");
  fs::create_directory(folder);
  const fs::path model = folder / fs::path(DemoModel()).filename();
  fs::create_symlink(DemoModel(), model);
  StartWith("", model);
  ExpectRefused();
  cluster_.reset();
  fs::remove_all(folder);
}

TEST(KvProfileStartTest, AnotherModelsProfileIsRefused) {
  kvstore::codec::Profile profile = ReadProfile();
  profile.model_fingerprint[0] ^= 1;
  const std::string path = WriteProfile(profile);
  Process worker(
      {BinaryPath("tandemd"), "--role", "worker", "--phase", "prefill", "--model", DemoModel(),
       "--routers", "127.0.0.1:1", "--metrics-listen", "127.0.0.1:0", "--worker-listen",
       "127.0.0.1:0", "--data-listen", "127.0.0.1:0", "--kv-profile", path},
      TemporaryPath(".log"));
  const auto code = worker.Wait();
  ASSERT_TRUE(code.has_value());
  EXPECT_NE(*code, 0);
  EXPECT_THAT(worker.Log(), HasSubstr("profile"));
  EXPECT_THAT(worker.Log(), HasSubstr("another model"));
  fs::remove(path);
}

}  // namespace
}  // namespace tandem::e2e
