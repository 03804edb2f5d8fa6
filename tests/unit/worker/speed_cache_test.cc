#include "workers/speed_cache.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "absl/strings/str_cat.h"

namespace tandem::workers {
namespace {

namespace fs = std::filesystem;

class SpeedCacheTest : public testing::Test {
 protected:
  SpeedCacheTest() { fs::remove_all(folder_); }
  ~SpeedCacheTest() override { fs::remove_all(folder_); }

  std::string Read() const {
    std::ifstream in(cache_.PathOf(kKey), std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  void Write(const std::string& text) const {
    std::ofstream(cache_.PathOf(kKey), std::ios::binary) << text;
  }

  static scheduler::LatencyLearner::Learned Example() {
    scheduler::LatencyLearner learner;
    for (int i = 0; i < 40; ++i) {
      learner.ObserveDecode(1 + i % 5, 100 + 10 * i, 0.003 + 0.001 * (i % 5) + 1e-6 * i);
    }
    return learner.LearnedDecode();
  }

  static constexpr char kKey[] = "decode model=x threads=2";
  const std::string folder_ =
      (fs::path(testing::TempDir()) / absl::StrCat("speed-cache-", getpid()) / "a").string();
  const SpeedCache cache_{folder_};
};

TEST_F(SpeedCacheTest, GivesBackWhatWasKept) {
  EXPECT_TRUE(absl::IsNotFound(cache_.Load(kKey).status()));
  const auto learned = Example();
  ASSERT_TRUE(cache_.Save(kKey, learned).ok());
  const auto loaded = cache_.Load(kKey);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->fit.matrix, learned.fit.matrix);
  EXPECT_EQ(loaded->fit.vector, learned.fit.vector);
  EXPECT_EQ(loaded->fit.samples, learned.fit.samples);
  EXPECT_EQ(loaded->factor_ratios, learned.factor_ratios);
  EXPECT_EQ(loaded->factor_weights, learned.factor_weights);
  EXPECT_TRUE(absl::IsNotFound(cache_.Load("decode model=x threads=1").status()));
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), fs::directory_iterator()), 1)
      << "something is left besides the file";
}

TEST_F(SpeedCacheTest, RefusesEveryDamage) {
  const auto learned = Example();
  ASSERT_TRUE(cache_.Save(kKey, learned).ok());
  const std::string good = Read();
  for (size_t i = 0; i < good.size(); i += 3) {
    if (std::isspace(static_cast<unsigned char>(good[i])) != 0) continue;
    std::string bad = good;
    bad[i] = bad[i] == '7' ? '8' : '7';
    Write(bad);
    const auto loaded = cache_.Load(kKey);
    // The last of 17 digits may be another one of the same number.
    const bool same = loaded.ok() && loaded->fit.matrix == learned.fit.matrix &&
                      loaded->fit.vector == learned.fit.vector &&
                      loaded->factor_ratios == learned.factor_ratios;
    EXPECT_TRUE(same || absl::IsDataLoss(loaded.status())) << i << ": " << bad.substr(i, 20);
  }
  for (size_t size = 0; size + 2 < good.size(); size += 97) {
    Write(good.substr(0, size));
    EXPECT_TRUE(absl::IsDataLoss(cache_.Load(kKey).status())) << size;
  }
  ASSERT_TRUE(cache_.Save(kKey, Example()).ok());
  EXPECT_TRUE(cache_.Load(kKey).ok());
}

TEST_F(SpeedCacheTest, SaysWhenItCannotWrite) {
  EXPECT_TRUE(absl::IsUnavailable(SpeedCache("").Save(kKey, Example())));
  EXPECT_TRUE(absl::IsInvalidArgument(SpeedCache("/dev/null/x").Save(kKey, Example())));
}

}  // namespace
}  // namespace tandem::workers
