// Handoffs that succeed, and refusals that leave everything as it was.
#include <map>
#include <set>

#include "tests/unit/kvstore/handoff_fixture.h"

namespace tandem::kvstore {
namespace {

using absl::StatusCode;

class HandoffTest : public HandoffFixture {
 protected:
  void SetUp() override {
    StartServer();
    StartClient();
  }
};

TEST_F(HandoffTest, MovesKvAppendedBeforeThePull) {
  Offered offered = Publish(1);
  offered.publication->Append(MakeChunk(0, 256));
  offered.publication->Append(MakeChunk(256, 256));
  offered.publication->Append(MakeChunk(512, 17));
  offered.publication->Finish({.n_tokens = 529, .first_token = -7});
  EXPECT_EQ(server_->publications(), 1u);
  EXPECT_EQ(server_->held_bytes(), 529 * kBytesPerToken);
  CollectingSink sink;
  const PullResult result = Pull(1, sink).get();
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->end.n_tokens, 529u);
  EXPECT_EQ(result->end.first_token, -7);
  EXPECT_EQ(result->stats.chunks, 3u);
  EXPECT_EQ(result->stats.bytes, 529 * kBytesPerToken);
  EXPECT_EQ(sink.committed_tokens(), 529u);
  EXPECT_TRUE(sink.Holds(0));
  const Outcome outcome = offered.released.get();
  EXPECT_TRUE(outcome.first.ok()) << outcome.first;
  EXPECT_EQ(outcome.second.bytes, 529 * kBytesPerToken);
  EXPECT_EQ(outcome.second.chunks, 3u);
  EXPECT_GT(outcome.second.duration, absl::ZeroDuration());
  EXPECT_TRUE(ServerIsEmpty(1));
  offered.publication->Append(MakeChunk(0, 1));
  offered.publication->Finish({});
  offered.publication->Abort(absl::InternalError("too late"));
  EXPECT_EQ(server_->held_bytes(), 0u);
}

TEST_F(HandoffTest, ChunksLeaveWhileTheNextIsNotThereYet) {
  Offered offered = Publish(1);
  offered.publication->Append(MakeChunk(0, 100));
  CollectingSink sink;
  auto result = Pull(1, sink);
  for (uint32_t chunk = 1; chunk < 20; ++chunk) {
    ASSERT_TRUE(Eventually([&] { return sink.committed_chunks() == chunk; }));
    offered.publication->Append(MakeChunk(chunk * 100, 100));
  }
  ASSERT_TRUE(Eventually([&] { return sink.committed_chunks() == 20; }));
  offered.publication->Finish({.n_tokens = 2000, .first_token = 3});
  ASSERT_TRUE(result.get().ok());
  EXPECT_TRUE(sink.Holds(0));
  EXPECT_TRUE(offered.released.get().first.ok());
}

TEST_F(HandoffTest, ALongWaitForAChunkIsNotSilence) {
  StartClient({.silence_timeout = absl::Milliseconds(1500)});
  Offered offered = Publish(1);
  CollectingSink sink;
  auto result = Pull(1, sink);
  // Twice as long as the peer may be silent.
  ASSERT_EQ(result.wait_for(std::chrono::seconds(3)), std::future_status::timeout);
  offered.publication->Append(MakeChunk(0, 5));
  offered.publication->Finish({.n_tokens = 5});
  const PullResult ended = result.get();
  EXPECT_TRUE(ended.ok()) << ended.status();
}

TEST_F(HandoffTest, EmptyPromptAndEveryWayToCutTheSink) {
  for (const size_t span_bytes : {size_t{1}, size_t{63}, size_t{64}, size_t{4096}, SIZE_MAX}) {
    Offered offered = Publish(1);
    const uint32_t tokens = span_bytes == 1 ? 100 : 9000;
    for (uint32_t at = 0; at < tokens; at += 1000) {
      offered.publication->Append(MakeChunk(at, std::min(1000u, tokens - at)));
    }
    offered.publication->Finish({.n_tokens = tokens});
    CollectingSink sink(span_bytes);
    const PullResult result = Pull(1, sink).get();
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(sink.committed_tokens(), tokens);
    EXPECT_TRUE(sink.Holds(0)) << span_bytes;
    ASSERT_TRUE(offered.released.get().first.ok());
  }
  Offered nothing = Publish(2);
  nothing.publication->Finish({.n_tokens = 0, .first_token = 1});
  CollectingSink sink;
  EXPECT_TRUE(Pull(2, sink).get().ok());
}

TEST_F(HandoffTest, ManyAtOnceFromManyThreads) {
  constexpr uint32_t kThreads = 4, kEach = 24, kChunks = 12;
  std::vector<std::thread> threads;
  for (uint32_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      std::vector<Offered> offers;
      std::vector<std::unique_ptr<CollectingSink>> sinks;
      std::vector<std::future<PullResult>> results;
      for (uint32_t i = 0; i < kEach; ++i) {
        offers.push_back(Publish(t * kEach + i));
        sinks.push_back(std::make_unique<CollectingSink>());
        results.push_back(Pull(t * kEach + i, *sinks.back()));
      }
      for (uint32_t chunk = 0; chunk < kChunks; ++chunk) {
        for (uint32_t i = 0; i < kEach; ++i) {
          offers[i].publication->Append(MakeChunk(chunk * 97, 97, t * kEach + i));
        }
      }
      for (Offered& offer : offers) offer.publication->Finish({.n_tokens = 97 * kChunks});
      for (uint32_t i = 0; i < kEach; ++i) {
        const PullResult result = results[i].get();
        EXPECT_TRUE(result.ok()) << result.status();
        EXPECT_EQ(sinks[i]->committed_tokens(), 97 * kChunks);
        EXPECT_TRUE(sinks[i]->Holds(t * kEach + i));
        EXPECT_TRUE(offers[i].released.get().first.ok());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_LE(client_->idle_connections(), 4u);
  EXPECT_TRUE(ServerIsEmpty(4));
}

TEST_F(HandoffTest, ConnectionsAreReused) {
  for (uint32_t i = 0; i < 10; ++i) {
    Offered offered = Publish(i);
    offered.publication->Append(MakeChunk(0, 3));
    offered.publication->Finish({.n_tokens = 3});
    CollectingSink sink;
    ASSERT_TRUE(Pull(i, sink).get().ok());
    ASSERT_TRUE(offered.released.get().first.ok());
    EXPECT_EQ(server_->connections(), 1u);
    EXPECT_EQ(client_->idle_connections(), 1u);
  }
}

TEST_F(HandoffTest, AnIdleConnectionThatTheServerClosesIsDropped) {
  StartServer({.idle_timeout = absl::Milliseconds(50)});
  Offered offered = Publish(1);
  offered.publication->Finish({});
  CollectingSink sink;
  ASSERT_TRUE(Pull(1, sink).get().ok());
  EXPECT_TRUE(Eventually([&] { return client_->idle_connections() == 0; }));
  EXPECT_TRUE(ServerIsEmpty());
}

TEST_F(HandoffTest, AServerThatRestartedIsFoundAgain) {
  Offered before = Publish(1);
  before.publication->Finish({});
  CollectingSink sink;
  ASSERT_TRUE(Pull(1, sink).get().ok());
  const std::string listen = address();
  server_->Stop();
  StartServer({.listen = listen});
  Offered after = Publish(2);
  after.publication->Finish({});
  const PullResult result = Pull(2, sink).get();
  EXPECT_TRUE(result.ok()) << result.status();
}

TEST_F(HandoffTest, UnknownIdIsNotFound) {
  CollectingSink sink;
  EXPECT_THAT(Pull(404, sink).get().status(), HasStatus(StatusCode::kNotFound, "handoff id"));
  EXPECT_TRUE(ServerIsEmpty());
}

TEST_F(HandoffTest, AnIdIsOfferedOnceAndPulledOnce) {
  Offered offered = Publish(1);
  auto second = server_->Publish(MakeId(1), MakeContext(), {}, nullptr);
  EXPECT_EQ(second.status().code(), StatusCode::kAlreadyExists);
  EXPECT_EQ(server_->Publish("short", MakeContext(), {}, nullptr).status().code(),
            StatusCode::kInvalidArgument);
  offered.publication->Append(MakeChunk(0, 1));
  CollectingSink first_sink, second_sink;
  auto first = Pull(1, first_sink);
  ASSERT_TRUE(Eventually([&] { return first_sink.committed_chunks() == 1; }));
  EXPECT_EQ(Pull(1, second_sink).get().status().code(), StatusCode::kAlreadyExists);
  offered.publication->Finish({.n_tokens = 1});
  EXPECT_TRUE(first.get().ok());
  EXPECT_TRUE(offered.released.get().first.ok());
  EXPECT_TRUE(Publish(1).publication != nullptr);
}

TEST_F(HandoffTest, AnotherIdentityIsRefusedByName) {
  StartClient({.identity = {{"model", "tale-7m"}, {"type_k", "q8_0"}, {"flash_attention", "on"}}});
  Offered offered = Publish(1);
  CollectingSink sink;
  const absl::Status status = Pull(1, sink).get().status();
  EXPECT_THAT(status, HasStatus(StatusCode::kFailedPrecondition, "type_k is f16 here and q8_0"));
  EXPECT_THAT(status, HasStatus(StatusCode::kFailedPrecondition, "flash_attention"));
  EXPECT_THAT(status.ToString(), testing::Not(testing::HasSubstr("model")));
  EXPECT_TRUE(Eventually([&] { return server_->connections() == 0; }));
  EXPECT_EQ(server_->publications(), 1u);
}

TEST_F(HandoffTest, AddressesThatLeadNowhere) {
  CollectingSink sink;
  for (const char* bad : {"", "host", "127.0.0.1:", "127.0.0.1:70000", "::1:80", ":80"}) {
    EXPECT_EQ(Pull(bad, 1, sink).get().status().code(), StatusCode::kInvalidArgument) << bad;
  }
  const std::string closed = address();
  server_->Stop();
  EXPECT_THAT(Pull(closed, 1, sink).get().status(), HasStatus(StatusCode::kUnavailable, closed));
  EXPECT_EQ(Pull("no-such-host.invalid:80", 1, sink).get().status().code(),
            StatusCode::kUnavailable);
}

TEST_F(HandoffTest, ListeningWhereOneCannot) {
  const auto start = [&](std::string listen) {
    return HandoffServer::Start(server_thread_.io(), {.listen = std::move(listen)}).status();
  };
  EXPECT_EQ(start("nonsense").code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(start("127.0.0.1:-1").code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(start(address()), HasStatus(StatusCode::kUnavailable, address()));
  EXPECT_EQ(
      HandoffServer::Start(server_thread_.io(), {.listen = "127.0.0.1:0",
                                                 .identity = {{"huge", std::string(100000, 'x')}}})
          .status()
          .code(),
      StatusCode::kInvalidArgument);
}

TEST_F(HandoffTest, MoreConnectionsThanAllowedAreRefused) {
  StartServer({.max_connections = 2});
  std::vector<Offered> offers;
  std::vector<CollectingSink> sinks(3);
  std::vector<std::future<PullResult>> results;
  for (uint32_t i = 0; i < 3; ++i) {
    offers.push_back(Publish(i));
    offers[i].publication->Append(MakeChunk(0, 1));
  }
  for (uint32_t i = 0; i < 2; ++i) {
    results.push_back(Pull(i, sinks[i]));
    ASSERT_TRUE(Eventually([&] { return sinks[i].committed_chunks() == 1; }));
  }
  const absl::Status refused = Pull(2, sinks[2]).get().status();
  EXPECT_TRUE(refused.code() == StatusCode::kResourceExhausted ||
              refused.code() == StatusCode::kUnavailable)
      << refused;
  for (uint32_t i = 0; i < 2; ++i) {
    offers[i].publication->Finish({.n_tokens = 1});
    EXPECT_TRUE(results[i].get().ok());
  }
  // The refused one was not lost.
  auto again = Pull(2, sinks[2]);
  offers[2].publication->Finish({.n_tokens = 1});
  EXPECT_TRUE(again.get().ok());
}

}  // namespace
}  // namespace tandem::kvstore
