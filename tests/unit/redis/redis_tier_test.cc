// The Redis tier on one server that works.
#include <gmock/gmock.h>

#include <random>
#include <thread>

#include "tests/unit/redis/redis_server.h"

namespace tandem::kvstore {
namespace {

using absl::StatusCode;

/// No test here is about time: a busy machine must not fail it.
constexpr absl::Duration kAmple = absl::Seconds(20);

class RedisTierTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!RedisServer::Installed())
      GTEST_SKIP() << "NOT TESTED: Debian's redis-tools are not installed";
    server_ = std::make_unique<RedisServer>();
    tier_ = MakeTier(Options());
  }
  RedisTierOptions Options() const { return {.nodes = {server_->Address()}, .timeout = kAmple}; }

  std::unique_ptr<RedisServer> server_;
  std::unique_ptr<Tier> tier_;
};

TEST_F(RedisTierTest, PutGetContainsErase) {
  EXPECT_EQ(tier_->name(), "redis");
  EXPECT_EQ(tier_->Get(KeyOf(1)).status().code(), StatusCode::kNotFound);
  ASSERT_TRUE(tier_->Put(ChunkOf(1)).ok());
  const auto got = tier_->Get(KeyOf(1));
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_TRUE(std::ranges::equal((*got)->bytes(), ChunkOf(1)->bytes()));
  EXPECT_EQ((*got)->first_position(), 256u);
  const std::vector<ChunkKey> keys = {KeyOf(0), KeyOf(1), KeyOf(1, Level::kQ1), KeyOf(1)};
  EXPECT_THAT(tier_->Contains(keys), testing::ElementsAre(false, true, false, true));
  EXPECT_TRUE(tier_->Contains({}).empty());
  tier_->Erase(KeyOf(1));
  tier_->Erase(KeyOf(1));
  EXPECT_EQ(tier_->Get(KeyOf(1)).status().code(), StatusCode::kNotFound);
  EXPECT_EQ(server_->Run({"DBSIZE"}), "0");
  EXPECT_EQ(tier_->stats().failures, 0u);
  EXPECT_TRUE(tier_->stats().healthy);
}

TEST_F(RedisTierTest, WhatItCannotDo) {
  ASSERT_TRUE(tier_->Put(ChunkOf(1)).ok());
  EXPECT_FALSE(tier_->SetPinned(KeyOf(1), true));
  tier_->ForEach([](const TierEntry&) {
    ADD_FAILURE() << "a shared tier has no entries of its own";
    return true;
  });
  EXPECT_EQ(tier_->stats().bytes, 0u);
}

TEST_F(RedisTierTest, LargeAndEmptyValues) {
  for (const size_t bytes : {size_t{0}, size_t{1}, size_t{300'000}, size_t{20'000'000}}) {
    ASSERT_TRUE(tier_->Put(ChunkOf(1, bytes)).ok());
    const auto got = tier_->Get(KeyOf(1));
    ASSERT_TRUE(got.ok()) << got.status();
    EXPECT_TRUE(std::ranges::equal((*got)->bytes(), ChunkOf(1, bytes)->bytes()));
  }
}

TEST_F(RedisTierTest, ManyKeysInOneRoundTrip) {
  std::vector<ChunkKey> keys;
  std::vector<bool> expected;
  for (int i = 0; i < 3000; ++i) {
    keys.push_back(KeyOf(i));
    expected.push_back(i % 3 == 0);
    if (expected.back()) {
      ASSERT_TRUE(tier_->Put(ChunkOf(i, 10)).ok());
    }
  }
  EXPECT_EQ(tier_->Contains(keys), expected);
}

TEST_F(RedisTierTest, SharedBetweenTiers) {
  const auto other = MakeTier(Options());
  ASSERT_TRUE(tier_->Put(ChunkOf(7)).ok());
  EXPECT_TRUE(other->Get(KeyOf(7)).ok());
  other->Erase(KeyOf(7));
  EXPECT_EQ(tier_->Get(KeyOf(7)).status().code(), StatusCode::kNotFound);
}

TEST_F(RedisTierTest, AFlippedBitIsFoundAndDropped) {
  ASSERT_TRUE(tier_->Put(ChunkOf(1)).ok());
  const std::string damaged(1, static_cast<char>(ChunkOf(1)->bytes()[500] ^ 8));
  server_->Run({"SETRANGE", NameOf(1), "500", damaged});
  EXPECT_EQ(tier_->Get(KeyOf(1)).status().code(), StatusCode::kDataLoss);
  EXPECT_EQ(server_->Run({"DBSIZE"}), "0");
  EXPECT_EQ(tier_->stats().damaged, 1u);
  EXPECT_EQ(tier_->Get(KeyOf(1)).status().code(), StatusCode::kNotFound);
  EXPECT_TRUE(tier_->stats().healthy);
}

TEST_F(RedisTierTest, ATruncatedValueIsFoundAndDropped) {
  const std::string name = NameOf(1);
  for (const std::string end : {"0", "62", "63", "1000"}) {
    ASSERT_TRUE(tier_->Put(ChunkOf(1)).ok());
    server_->Run({"SET", name, server_->Run({"GETRANGE", name, "0", end})});
    EXPECT_EQ(tier_->Get(KeyOf(1)).status().code(), StatusCode::kDataLoss) << end;
    EXPECT_EQ(server_->Run({"DBSIZE"}), "0");
  }
  EXPECT_EQ(tier_->stats().damaged, 4u);
}

TEST_F(RedisTierTest, AnotherChunkUnderTheKeyIsDropped) {
  ASSERT_TRUE(tier_->Put(ChunkOf(1)).ok());
  server_->Run({"RENAME", NameOf(1), NameOf(2)});
  EXPECT_EQ(tier_->Get(KeyOf(2)).status().code(), StatusCode::kDataLoss);
  EXPECT_EQ(server_->Run({"DBSIZE"}), "0");
}

TEST_F(RedisTierTest, AnotherVersionsChunkStays) {
  ASSERT_TRUE(tier_->Put(ChunkOf(1)).ok());
  server_->Run({"SETRANGE", NameOf(1), "4", "\2"});
  EXPECT_EQ(tier_->Get(KeyOf(1)).status().code(), StatusCode::kNotFound);
  EXPECT_EQ(server_->Run({"DBSIZE"}), "1");
  EXPECT_EQ(tier_->stats().damaged, 0u);
}

TEST_F(RedisTierTest, TimeToLive) {
  RedisTierOptions options = Options();
  options.ttl = absl::Minutes(10);
  ASSERT_TRUE(MakeTier(options)->Put(ChunkOf(1)).ok());
  const int64_t left = std::stoll(server_->Run({"PTTL", NameOf(1)}));
  EXPECT_GT(left, 500'000);
  EXPECT_LE(left, 600'000);
  options.ttl = absl::ZeroDuration();
  ASSERT_TRUE(MakeTier(options)->Put(ChunkOf(1)).ok());
  EXPECT_EQ(server_->Run({"PTTL", NameOf(1)}), "-1");
}

TEST_F(RedisTierTest, AnotherKindOfValueUnderTheKey) {
  server_->Run({"RPUSH", NameOf(1), "x"});
  EXPECT_EQ(tier_->Get(KeyOf(1)).status().code(), StatusCode::kUnavailable);
  EXPECT_TRUE(tier_->Put(ChunkOf(1)).ok());
  EXPECT_TRUE(tier_->Get(KeyOf(1)).ok());
}

TEST_F(RedisTierTest, AFullRedisIsNotLeftAlone) {
  ASSERT_TRUE(tier_->Put(ChunkOf(1)).ok());
  server_->Run({"CONFIG", "SET", "maxmemory", "1"});
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(tier_->Put(ChunkOf(2)).code(), StatusCode::kResourceExhausted);
  }
  EXPECT_EQ(tier_->stats().failures, 5u);
  EXPECT_TRUE(tier_->stats().healthy);
  EXPECT_TRUE(tier_->Get(KeyOf(1)).ok());
}

TEST_F(RedisTierTest, Login) {
  const RedisServer guarded({"--requirepass", "open", "--user", "tandem", "on", ">sesame",
                             "~tandem:*", "+@all", "-cluster"});
  RedisTierOptions options = {.nodes = {guarded.Address()}, .password = "open", .timeout = kAmple};
  EXPECT_TRUE(MakeTier(options)->Put(ChunkOf(1)).ok());
  options.username = "tandem";
  options.password = "sesame";
  EXPECT_TRUE(MakeTier(options)->Get(KeyOf(1)).ok());
  options.password = "hush";
  const absl::Status refused = MakeTier(options)->Get(KeyOf(1)).status();
  EXPECT_EQ(refused.code(), StatusCode::kUnavailable);
  EXPECT_THAT(
      std::string(refused.message()),
      testing::AllOf(testing::HasSubstr("WRONGPASS"), testing::Not(testing::HasSubstr("hush"))));
  options.username = options.password = "";
  EXPECT_EQ(MakeTier(options)->Get(KeyOf(1)).status().code(), StatusCode::kUnavailable);
}

TEST_F(RedisTierTest, FromManyThreads) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 50; ++i) {
        const int number = 100 * t + i;
        EXPECT_TRUE(tier_->Put(ChunkOf(number)).ok());
        EXPECT_TRUE(tier_->Get(KeyOf(number)).ok());
        EXPECT_TRUE(tier_->stats().healthy);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(server_->Run({"DBSIZE"}), "200");
}

TEST(RedisTierOptionsTest, WhatMakesNoSense) {
  const auto code = [](RedisTierOptions options) {
    return NewRedisTier(std::move(options)).status().code();
  };
  EXPECT_EQ(code({}), StatusCode::kInvalidArgument);
  for (const std::string address : {"", "host", "host:", "host:99999", "host:1:2", ":1"}) {
    EXPECT_EQ(code({.nodes = {"127.0.0.1:6379", address}}), StatusCode::kInvalidArgument)
        << address;
  }
  const std::vector<std::string> nodes = {"[::1]:6379"};
  EXPECT_EQ(code({.nodes = nodes}), StatusCode::kOk);
  EXPECT_EQ(code({.nodes = nodes, .timeout = absl::ZeroDuration()}), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({.nodes = nodes, .ttl = -absl::Seconds(1)}), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({.nodes = nodes, .ttl = absl::Microseconds(1)}), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({.nodes = nodes, .ttl = absl::InfiniteDuration()}), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace tandem::kvstore
