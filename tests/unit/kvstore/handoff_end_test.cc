// Handoffs that end early: aborts, cancellation, leases, stops. Nothing may be left behind.
#include "tests/unit/kvstore/handoff_fixture.h"

namespace tandem::kvstore {
namespace {

using absl::StatusCode;

class HandoffEndTest : public HandoffFixture {
 protected:
  void SetUp() override {
    StartServer();
    StartClient();
  }
  /// A publication with a chunk that its puller has, so that both wait for the next one.
  Offered PublishHalf(CollectingSink& sink, std::future<PullResult>& result,
                      RequestContextPtr server_side = MakeContext(),
                      RequestContextPtr client_side = MakeContext()) {
    Offered offered = Publish(1, std::move(server_side));
    offered.publication->Append(MakeChunk(0, 10));
    result = Pull(1, sink, std::move(client_side));
    EXPECT_TRUE(Eventually([&] { return sink.committed_chunks() == 1; }));
    return offered;
  }

  CollectingSink sink_;
  std::future<PullResult> result_;
};

TEST_F(HandoffEndTest, AbortReachesThePuller) {
  Offered offered = PublishHalf(sink_, result_);
  offered.publication->Abort(absl::ResourceExhaustedError("no room, says the prefill worker"));
  EXPECT_THAT(result_.get().status(), HasStatus(StatusCode::kResourceExhausted, "no room, says"));
  EXPECT_EQ(offered.released.get().first.code(), StatusCode::kResourceExhausted);
  EXPECT_TRUE(ServerIsEmpty());
}

TEST_F(HandoffEndTest, AbortWithoutAPuller) {
  Offered offered = Publish(1);
  offered.publication->Append(MakeChunk(0, 10));
  offered.publication->Abort(absl::OkStatus());
  EXPECT_EQ(offered.released.get().first.code(), StatusCode::kAborted);
  EXPECT_TRUE(ServerIsEmpty());
  EXPECT_EQ(Pull(1, sink_).get().status().code(), StatusCode::kNotFound);
}

TEST_F(HandoffEndTest, DroppingAnOpenPublicationAborts) {
  Offered offered = PublishHalf(sink_, result_);
  offered.publication.reset();
  EXPECT_EQ(result_.get().status().code(), StatusCode::kAborted);
  EXPECT_EQ(offered.released.get().first.code(), StatusCode::kAborted);
  EXPECT_TRUE(ServerIsEmpty());
}

TEST_F(HandoffEndTest, DroppingAFinishedPublicationDoesNot) {
  Offered offered = PublishHalf(sink_, result_);
  offered.publication->Finish({.n_tokens = 10});
  offered.publication.reset();
  EXPECT_TRUE(result_.get().ok());
  EXPECT_TRUE(offered.released.get().first.ok());
}

TEST_F(HandoffEndTest, CancellingThePullReachesTheServer) {
  auto context = MakeContext();
  Offered offered = PublishHalf(sink_, result_, MakeContext(), context);
  context->Cancel(absl::CancelledError("the client went away"));
  EXPECT_THAT(result_.get().status(), HasStatus(StatusCode::kCancelled, "the client went away"));
  EXPECT_THAT(offered.released.get().first,
              HasStatus(StatusCode::kCancelled, "the client went away"));
  EXPECT_TRUE(ServerIsEmpty());
}

TEST_F(HandoffEndTest, CancellingTheServersSideReachesThePuller) {
  auto context = MakeContext();
  Offered offered = PublishHalf(sink_, result_, context);
  context->Cancel(absl::CancelledError("the client went away"));
  EXPECT_THAT(result_.get().status(), HasStatus(StatusCode::kCancelled, "the client went away"));
  EXPECT_EQ(offered.released.get().first.code(), StatusCode::kCancelled);
  EXPECT_TRUE(ServerIsEmpty());
}

TEST_F(HandoffEndTest, ContextsCancelledBeforehand) {
  auto context = MakeContext();
  context->Cancel(absl::CancelledError("long gone"));
  EXPECT_EQ(Pull(1, sink_, context).get().status().code(), StatusCode::kCancelled);
  Offered offered = Publish(1, context);
  EXPECT_EQ(offered.released.get().first.code(), StatusCode::kCancelled);
  EXPECT_TRUE(ServerIsEmpty());
}

TEST_F(HandoffEndTest, ContextsCancelledAfterwardsDoNothing) {
  auto context = MakeContext();
  Offered offered = PublishHalf(sink_, result_, context, context);
  offered.publication->Finish({.n_tokens = 10});
  EXPECT_TRUE(result_.get().ok());
  EXPECT_TRUE(offered.released.get().first.ok());
  client_->Stop();
  server_->Stop();
  context->Cancel(absl::CancelledError("too late"));
}

TEST_F(HandoffEndTest, TheDeadlineEndsAPull) {
  auto context = MakeContext(absl::Now() + absl::Milliseconds(200));
  Offered offered = Publish(1);
  EXPECT_EQ(Pull(1, sink_, context).get().status().code(), StatusCode::kDeadlineExceeded);
  EXPECT_EQ(offered.released.get().first.code(), StatusCode::kDeadlineExceeded);
  auto late = MakeContext(absl::InfinitePast());
  EXPECT_EQ(Pull(1, sink_, late).get().status().code(), StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(ServerIsEmpty());
}

TEST_F(HandoffEndTest, TheLeaseEndsWhatNobodyPulls) {
  StartServer({.lease = absl::Milliseconds(50)});
  Offered open = Publish(1), finished = Publish(2);
  open.publication->Append(MakeChunk(0, 10));
  finished.publication->Append(MakeChunk(0, 10));
  finished.publication->Finish({.n_tokens = 10});
  EXPECT_THAT(finished.released.get().first,
              HasStatus(StatusCode::kDeadlineExceeded, "nobody pulled"));
  EXPECT_EQ(Pull(2, sink_).get().status().code(), StatusCode::kNotFound);
  EXPECT_EQ(server_->publications(), 1u) << "an unfinished one has no lease";
  EXPECT_EQ(server_->held_bytes(), 10 * kBytesPerToken);
}

TEST_F(HandoffEndTest, HolesOverlapsAndWrongEndsReachBothSides) {
  struct Case {
    const char* name;
    uint32_t first_position, n_tokens, end;
  };
  for (const Case& c :
       {Case{"hole", 11, 5, 16}, Case{"overlap", 9, 5, 14}, Case{"duplicate", 0, 10, 10},
        Case{"no tokens", 10, 0, 10}, Case{"too few", 10, 5, 16}, Case{"too many", 10, 5, 14}}) {
    SCOPED_TRACE(c.name);
    CollectingSink sink;
    std::future<PullResult> result;
    Offered offered = PublishHalf(sink, result);
    offered.publication->Append(MakeChunk(c.first_position, c.n_tokens));
    offered.publication->Finish({.n_tokens = c.end});
    EXPECT_EQ(result.get().status().code(), StatusCode::kDataLoss);
    EXPECT_EQ(offered.released.get().first.code(), StatusCode::kDataLoss);
    EXPECT_TRUE(ServerIsEmpty());
  }
}

TEST_F(HandoffEndTest, AChunkAfterTheEnd) {
  Offered offered = Publish(1);
  offered.publication->Finish({.n_tokens = 0});
  offered.publication->Append(MakeChunk(0, 1));
  EXPECT_EQ(offered.released.get().first.code(), StatusCode::kDataLoss);
}

TEST_F(HandoffEndTest, ASinkThatRefusesEndsBothSides) {
  Offered offered = Publish(1);
  KvChunk odd = MakeChunk(0, 10);
  odd.bytes.pop_back();
  offered.publication->Append(std::move(odd));
  EXPECT_THAT(Pull(1, sink_).get().status(), HasStatus(StatusCode::kDataLoss, "wrong size"));
  EXPECT_EQ(offered.released.get().first.code(), StatusCode::kDataLoss);
  EXPECT_EQ(sink_.committed_chunks(), 0u);
  EXPECT_TRUE(ServerIsEmpty());
}

class ThrowingSink final : public KvSink {
 public:
  absl::StatusOr<std::vector<std::span<uint8_t>>> Prepare(uint32_t, uint32_t, uint64_t) override {
    throw std::bad_alloc();
  }
  void Commit() override {}
};

TEST_F(HandoffEndTest, ASinkThatThrowsEndsBothSides) {
  Offered offered = Publish(1);
  offered.publication->Append(MakeChunk(0, 10));
  ThrowingSink sink;
  EXPECT_EQ(Pull(1, sink).get().status().code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(offered.released.get().first.code(), StatusCode::kResourceExhausted);
  EXPECT_TRUE(ServerIsEmpty());
}

TEST_F(HandoffEndTest, StoppingTheServerMidWay) {
  Offered offered = PublishHalf(sink_, result_);
  server_->Stop();
  EXPECT_EQ(result_.get().status().code(), StatusCode::kUnavailable);
  ASSERT_EQ(offered.released.wait_for(std::chrono::seconds(0)), std::future_status::ready)
      << "Stop has waited for the callbacks";
  EXPECT_EQ(offered.released.get().first.code(), StatusCode::kUnavailable);
  EXPECT_EQ(server_->publications(), 0u);
  EXPECT_EQ(server_->held_bytes(), 0u);
  EXPECT_EQ(server_->connections(), 0u);
  EXPECT_EQ(server_->Publish(MakeId(2), MakeContext(), {}, nullptr).status().code(),
            StatusCode::kUnavailable);
  offered.publication->Append(MakeChunk(10, 10));
}

TEST_F(HandoffEndTest, StoppingTheClientMidWay) {
  Offered offered = PublishHalf(sink_, result_);
  client_->Stop();
  ASSERT_EQ(result_.wait_for(std::chrono::seconds(0)), std::future_status::ready);
  EXPECT_EQ(result_.get().status().code(), StatusCode::kUnavailable);
  EXPECT_EQ(offered.released.get().first.code(), StatusCode::kUnavailable);
  EXPECT_EQ(Pull(1, sink_).get().status().code(), StatusCode::kUnavailable);
  EXPECT_TRUE(ServerIsEmpty());
}

// Everything at once, ended at random points: whatever happens, every callback runs and nothing
// stays.
TEST_F(HandoffEndTest, AStormLeavesNothing) {
  constexpr uint32_t kSequences = 120;
  std::vector<Offered> offers;
  std::vector<std::unique_ptr<CollectingSink>> sinks;
  std::vector<std::future<PullResult>> results;
  std::vector<RequestContextPtr> contexts;
  for (uint32_t i = 0; i < kSequences; ++i) {
    contexts.push_back(MakeContext());
    offers.push_back(Publish(i, i % 7 == 3 ? contexts.back() : MakeContext()));
    sinks.push_back(std::make_unique<CollectingSink>());
    results.push_back(Pull(i, *sinks.back(), contexts.back()));
  }
  std::thread canceller([&] {
    for (uint32_t i = 0; i < kSequences; i += 2) {
      // Every eleventh is aborted after at most three chunks.
      Eventually([&] { return sinks[i]->committed_chunks() > i % 3 || i % 11 == 4; });
      contexts[i]->Cancel(absl::CancelledError("half of them"));
    }
  });
  for (uint32_t chunk = 0; chunk < 8; ++chunk) {
    for (uint32_t i = 0; i < kSequences; ++i) {
      if (i % 11 == 4 && chunk == 3) offers[i].publication->Abort(absl::InternalError("gone"));
      offers[i].publication->Append(MakeChunk(chunk * 500, 500, i));
    }
  }
  for (Offered& offer : offers) offer.publication->Finish({.n_tokens = 4000});
  uint32_t succeeded = 0;
  for (uint32_t i = 0; i < kSequences; ++i) {
    const PullResult result = results[i].get();
    const absl::Status released = offers[i].released.get().first;
    if (result.ok()) {
      EXPECT_EQ(sinks[i]->committed_tokens(), 4000u);
    }
    if (i % 2 == 1 && i % 11 != 4) {
      EXPECT_TRUE(result.ok() && released.ok()) << released;
    }
    EXPECT_TRUE(sinks[i]->Holds(i));
    succeeded += result.ok();
  }
  canceller.join();
  EXPECT_GE(succeeded, kSequences / 2 - kSequences / 11);
  EXPECT_TRUE(ServerIsEmpty(4));
}

TEST_F(HandoffEndTest, StoppingBothInAStorm) {
  for (int round = 0; round < 10; ++round) {
    StartServer();
    StartClient();
    std::vector<Offered> offers;
    std::vector<std::unique_ptr<CollectingSink>> sinks;
    std::vector<std::future<PullResult>> results;
    for (uint32_t i = 0; i < 30; ++i) {
      offers.push_back(Publish(i));
      offers.back().publication->Append(MakeChunk(0, 2000, i));
      sinks.push_back(std::make_unique<CollectingSink>());
      results.push_back(Pull(i, *sinks.back()));
    }
    Eventually([&] { return sinks[round * 3]->committed_chunks() > 0; });
    std::thread other([&] { client_->Stop(); });
    server_->Stop();
    other.join();
    for (uint32_t i = 0; i < 30; ++i) {
      EXPECT_EQ(results[i].get().status().code(), StatusCode::kUnavailable);
      EXPECT_EQ(offers[i].released.get().first.code(), StatusCode::kUnavailable);
    }
    EXPECT_TRUE(ServerIsEmpty());
    EXPECT_EQ(client_->idle_connections(), 0u);
  }
}

}  // namespace
}  // namespace tandem::kvstore
