// The Redis tier on a server that is away, slow, or says what no Redis says.
#include <gmock/gmock.h>

#include "tests/unit/redis/redis_server.h"

namespace tandem::kvstore {
namespace {

using absl::StatusCode;

/// What a test waits for when nothing answers.
constexpr absl::Duration kTimeout = absl::Milliseconds(200);
/// A machine with other work may take so many times longer.
constexpr int kSlack = 10;

class RedisFailureTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!RedisServer::Installed())
      GTEST_SKIP() << "NOT TESTED: Debian's redis-tools are not installed";
    server_ = std::make_unique<RedisServer>();
    tier_ = MakeTier(Options());
  }
  RedisTierOptions Options() {
    return {.nodes = {server_->Address()}, .timeout = kTimeout, .now = [this] { return now_; }};
  }
  StatusCode GetCode() { return tier_->Get(KeyOf(1)).status().code(); }

  /// How many time limits the call took.
  static double Limits(const std::function<void()>& call) {
    const absl::Time start = absl::Now();
    call();
    return absl::FDivDuration(absl::Now() - start, kTimeout);
  }
  /// Puts the chunk, however often a busy machine needs.
  void PutOne() {
    ASSERT_TRUE(Eventually([&] { return tier_->Put(ChunkOf(1)).ok() || (Pass(), false); }));
  }
  void Pass() { now_ += RedisTierOptions().retry_after; }

  absl::Time now_ = absl::Now();
  std::unique_ptr<RedisServer> server_;
  std::unique_ptr<Tier> tier_;
};

TEST_F(RedisFailureTest, AServerThatDiesAndComesBack) {
  PutOne();
  server_->Kill();
  const uint64_t before = tier_->stats().failures;
  EXPECT_LT(Limits([&] {
              for (int i = 0; i < 3; ++i) EXPECT_EQ(GetCode(), StatusCode::kUnavailable);
            }),
            3 * kSlack);
  EXPECT_EQ(tier_->stats().failures, before + 3);
  EXPECT_FALSE(tier_->stats().healthy);
  EXPECT_EQ(tier_->Put(ChunkOf(1)).code(), StatusCode::kUnavailable);
  const std::vector<ChunkKey> keys = {KeyOf(1)};
  EXPECT_THAT(tier_->Contains(keys), testing::ElementsAre(false));
  server_->Restart();
  // It is not even tried before its time.
  EXPECT_EQ(GetCode(), StatusCode::kUnavailable);
  EXPECT_EQ(server_->Run({"INFO", "commandstats"}).find("cmdstat_get"), std::string::npos);
  Pass();
  EXPECT_TRUE(Eventually([&] { return GetCode() == StatusCode::kNotFound || (Pass(), false); }));
  EXPECT_TRUE(tier_->stats().healthy);
  PutOne();
  EXPECT_TRUE(Eventually([&] { return GetCode() == StatusCode::kOk; }));
}

TEST_F(RedisFailureTest, AwayAtTheStart) {
  server_->Kill();
  tier_ = MakeTier(Options());
  EXPECT_EQ(GetCode(), StatusCode::kUnavailable);
  server_->Restart();
  EXPECT_TRUE(Eventually([&] { return GetCode() == StatusCode::kNotFound || (Pass(), false); }));
}

TEST_F(RedisFailureTest, AFrozenServer) {
  PutOne();
  server_->Freeze();
  for (int i = 0; i < 3; ++i) {
    EXPECT_LT(Limits([&] { EXPECT_EQ(GetCode(), StatusCode::kUnavailable); }), kSlack);
  }
  EXPECT_FALSE(tier_->stats().healthy);
  EXPECT_LT(Limits([&] {
              for (int i = 0; i < 1000; ++i) EXPECT_EQ(GetCode(), StatusCode::kUnavailable);
            }),
            kSlack);
  Pass();
  // One is let through; the next is not.
  EXPECT_GE(Limits([&] { EXPECT_EQ(GetCode(), StatusCode::kUnavailable); }), 0.99);
  EXPECT_LT(Limits([&] {
              for (int i = 0; i < 1000; ++i) EXPECT_EQ(GetCode(), StatusCode::kUnavailable);
            }),
            kSlack);
  server_->Thaw();
  Pass();
  EXPECT_TRUE(Eventually([&] { return GetCode() == StatusCode::kOk || (Pass(), false); }));
  EXPECT_TRUE(tier_->stats().healthy);
}

TEST_F(RedisFailureTest, APutLargerThanTheTimeAllows) {
  PutOne();
  server_->Freeze();
  const StoredChunkPtr large = ChunkOf(2, 64 << 20);
  EXPECT_LT(Limits([&] { EXPECT_EQ(tier_->Put(large).code(), StatusCode::kUnavailable); }), kSlack);
  server_->Thaw();
  EXPECT_TRUE(Eventually([&] { return GetCode() == StatusCode::kOk || (Pass(), false); }));
}

TEST_F(RedisFailureTest, AConnectionClosedWhileIdleIsNoFailure) {
  PutOne();
  const uint64_t before = tier_->stats().failures;
  for (int i = 0; i < 3; ++i) {
    server_->Run({"CLIENT", "KILL", "TYPE", "normal"});
    EXPECT_EQ(GetCode(), StatusCode::kOk);
  }
  EXPECT_EQ(tier_->stats().failures, before);
}

TEST_F(RedisFailureTest, AFrozenNodeCostsTheOthersNothing) {
  RedisServer frozen;
  frozen.Freeze();
  RedisTierOptions options = Options();
  options.nodes.insert(options.nodes.begin(), frozen.Address());
  options.timeout = 10 * kTimeout;
  tier_ = MakeTier(options);
  PutOne();
  EXPECT_EQ(GetCode(), StatusCode::kOk);
  EXPECT_EQ(tier_->stats().failures, 0u);
  EXPECT_TRUE(tier_->stats().healthy);
}

/// Tiers on a server that answers nonsense.
class HostileRedisTest : public testing::Test {
 protected:
  /// The status of a Get when every piece of bytes that comes is answered so.
  absl::Status GetFrom(std::function<void(std::string_view, const FakeServer::Send&)> serve) {
    const FakeServer server(std::move(serve));
    const auto tier = MakeTier({.nodes = {server.Address()}, .timeout = kTimeout});
    const absl::Time start = absl::Now();
    const absl::Status status = tier->Get(KeyOf(1)).status();
    EXPECT_LT(absl::FDivDuration(absl::Now() - start, kTimeout), kSlack);
    tier->Contains(std::vector<ChunkKey>{KeyOf(1)});
    tier->Put(ChunkOf(1)).IgnoreError();
    return status;
  }
  /// As GetFrom, but the server passes for a single Redis, and answers GET so.
  absl::Status GetAnswered(const std::string& answer) {
    return GetFrom([&](std::string_view received, const FakeServer::Send& send) {
      const bool asks_map = received.find("SLOTS") != std::string_view::npos;
      send(asks_map ? "-ERR This instance has cluster support disabled\r\n" : answer);
    });
  }
};

TEST_F(HostileRedisTest, AnswersThatAreNone) {
  for (const std::string answer :
       {"HTTP/1.1 400 Bad Request\r\n\r\n", "\r\n", "$5\r\nab\r\n", "$-2\r\n", "*-7\r\n", "+OK",
        "*1000000000\r\n", "*2000000000\r\n:1\r\n", "$99999999999999999999\r\n", ":1\r\n:2\r\n",
        "+OK\r\n+OK\r\n", "*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n:1\r\n",
        "%1\r\n+a\r\n+b\r\n", "-\r\n", "-LOADING\r\n", "-MOVED\r\n", "-MOVED 1 nowhere\r\n",
        "-ASK \r\n", "-MOVED 1 127.0.0.1:1\r\n"}) {
    EXPECT_EQ(GetAnswered(answer).code(), StatusCode::kUnavailable) << answer;
  }
  for (const std::string answer :
       {"$0\r\n\r\n", "$5\r\nabcde\r\n", "+OK\r\n", ":1\r\n", "*0\r\n"}) {
    EXPECT_EQ(GetAnswered(answer).code(), StatusCode::kDataLoss) << answer;
  }
}

TEST_F(HostileRedisTest, MovedInACircle) {
  // Without a host the same server is meant.
  int gets = 0;
  std::string port;
  const FakeServer server([&](std::string_view received, const FakeServer::Send& send) {
    if (received.find("SLOTS") != std::string_view::npos) {
      send("-ERR no cluster\r\n");
    } else {
      ++gets;
      send("-MOVED 7 :" + port + "\r\n");
    }
  });
  port = server.Address().substr(server.Address().find(':') + 1);
  const auto tier = MakeTier({.nodes = {server.Address()}, .timeout = kSlack * kTimeout});
  EXPECT_EQ(tier->Get(KeyOf(1)).status().code(), StatusCode::kUnavailable);
  EXPECT_EQ(gets, 5);
}

TEST_F(HostileRedisTest, AByteNowAndThen) {
  const absl::Status status = GetFrom([](std::string_view, const FakeServer::Send& send) {
    if (!send("$100000\r\n")) return;
    for (int i = 0; i < 2000; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      if (!send("x")) return;
    }
  });
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("no answer in time"));
}

TEST_F(HostileRedisTest, BytesWithoutEnd) {
  const absl::Status status = GetFrom([](std::string_view, const FakeServer::Send& send) {
    const std::string zeros(1 << 16, '0');
    if (!send("$500000000\r\n")) return;
    while (send(zeros)) {
    }
  });
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
}

TEST_F(HostileRedisTest, AMapThatMakesNoSense) {
  for (const std::string map :
       {"*0\r\n", "*1\r\n*0\r\n", "*1\r\n:5\r\n", "*1\r\n*3\r\n:-1\r\n:99999\r\n*0\r\n",
        "*1\r\n*3\r\n:0\r\n:16384\r\n*2\r\n$9\r\n127.0.0.1\r\n:1\r\n",
        "*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$9\r\n127.0.0.1\r\n:99999\r\n",
        "*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n:1\r\n:1\r\n", "$3\r\nabc\r\n", "-NOAUTH\r\n"}) {
    const absl::Status status =
        GetFrom([&](std::string_view, const FakeServer::Send& send) { send(map); });
    EXPECT_EQ(status.code(), StatusCode::kUnavailable) << map;
  }
}

TEST(RedisNameTest, ANameThatLeadsNowhere) {
  const auto tier = MakeTier({.nodes = {"no-such-host.invalid:6379"}, .timeout = kTimeout});
  const absl::Time start = absl::Now();
  EXPECT_EQ(tier->Get(KeyOf(1)).status().code(), StatusCode::kUnavailable);
  EXPECT_LT(absl::FDivDuration(absl::Now() - start, kTimeout), kSlack);
}

TEST(RedisNameTest, ANameIsLookedUp) {
  if (!RedisServer::Installed())
    GTEST_SKIP() << "NOT TESTED: Debian's redis-tools are not installed";
  const RedisServer server;
  const auto tier = MakeTier(
      {.nodes = {"localhost:" + std::to_string(server.port())}, .timeout = kSlack * kTimeout});
  EXPECT_TRUE(tier->Put(ChunkOf(1)).ok());
}

}  // namespace
}  // namespace tandem::kvstore
