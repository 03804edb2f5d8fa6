// A Redis that lies, freezes, dies and comes back: no request waits for it or believes it.
#include <algorithm>

#include "kvstore/tiers/redis_tier.h"
#include "tests/fault/kv_fault_fixture.h"
#include "tests/unit/redis/redis_server.h"

namespace tandem::e2e {
namespace {

constexpr uint32_t kChunks = 5;

class KvRedisFaultTest : public KvFaultTest {
 protected:
  void SetUp() override {
    if (!kvstore::RedisServer::Installed()) GTEST_SKIP() << "NOT TESTED: no redis-server here.";
    redis_.emplace();
  }
  void StartWithRedis(const std::string& timeout) {
    Start({.prefill_flags = {"--kv-redis", redis_->Address(), "--kv-redis-timeout", timeout}});
  }
  bool WaitKeys(int n) {
    return WaitFor([&] { return std::stoi(redis_->Run({"DBSIZE"})) >= n; });
  }
  /// The median time to first token of prompts that nobody knows.
  double MedianTtft() {
    std::vector<double> seconds;
    for (int i = 0; i < 5; ++i) {
      const Generated got = Ask(cluster_->client(), RequestFor(Text(seed_++, 1500), 2));
      EXPECT_EQ(Cached(got.prompt_cache), 0u);
      seconds.push_back(got.timings.ttft_s());
    }
    std::nth_element(seconds.begin(), seconds.begin() + 2, seconds.end());
    return seconds[2];
  }

  std::optional<kvstore::RedisServer> redis_;
  uint32_t seed_ = 1000;
};

TEST_F(KvRedisFaultTest, DamagedValuesAreRefusedAndReplaced) {
  StartWithRedis("10s");
  const auto prompt = Text(2, 1500);
  EXPECT_EQ(Cached(Answer(prompt).prompt_cache), 0u);
  ASSERT_TRUE(WaitKeys(kChunks));
  const auto ids = IdsOf(prompt);
  ASSERT_EQ(ids.size(), kChunks);
  for (uint32_t i = 0; i < kChunks; ++i) {
    const std::string name =
        kvstore::RedisTierOptions().key_prefix + kvstore::ChunkKey{.id = ids[i]}.Bytes();
    std::string value = redis_->Run({"GET", name});
    ASSERT_GT(value.size(), 100u);
    if (i % 2 == 0) {
      value[value.size() / 2] ^= 1;
    } else {
      value.resize(value.size() / 2);
    }
    ASSERT_EQ(redis_->Run({"SET", name, value}), "OK");
  }
  cluster_->RestartPrefill();
  EXPECT_EQ(Cached(Answer(prompt).prompt_cache), 0u);
  EXPECT_TRUE(WaitMetric("tandem_kv_tier_damaged_total", "redis", 1));
  // A chunk that was computed before its turn came was not looked at, and still lies there.
  ASSERT_TRUE(WaitKeys(kChunks));
  WaitFor([&] { return Metric("tandem_kv_tier_pending_bytes", "redis") == 0; });
  cluster_->RestartPrefill();
  EXPECT_GT(Answer(prompt).prompt_cache.redis_tokens(), 0u);
}

TEST_F(KvRedisFaultTest, FrozenKilledAndBack) {
  Start();
  Ask(cluster_->client(), RequestFor(Text(seed_++, 600), 2));  // the engine is warm
  const double without = MedianTtft();
  StartWithRedis("100ms");
  Ask(cluster_->client(), RequestFor(Text(seed_++, 600), 2));
  redis_->Freeze();
  // The first ones pay for finding out: the median does not.
  EXPECT_LE(MedianTtft(), 2 * without);
  Answer(Text(3, 1500));
  EXPECT_GE(Metric("tandem_kv_tier_failures_total", "redis"), 1);
  EXPECT_TRUE(WaitFor([&] { return Metric("tandem_kv_tier_healthy", "redis") == 0; }));
  redis_->Kill();
  EXPECT_EQ(Cached(Answer(Text(4, 1500)).prompt_cache), 0u);
  redis_->Restart();
  const auto prompt = Text(5, 1500);
  // It is tried again by what wants something of it, after a while.
  EXPECT_TRUE(WaitFor([&] {
    Ask(cluster_->client(), RequestFor(Text(seed_++, 300), 1));
    return Metric("tandem_kv_tier_healthy", "redis") == 1;
  }));
  const int before = std::stoi(redis_->Run({"DBSIZE"}));
  Answer(prompt);
  ASSERT_TRUE(WaitKeys(before + static_cast<int>(kChunks)));
  cluster_->RestartPrefill();
  EXPECT_GT(Answer(prompt).prompt_cache.redis_tokens(), 0u);
}

}  // namespace
}  // namespace tandem::e2e
