// Pullers that talk nonsense, fall silent, stall or die, against the real server.
#include <boost/asio/ip/tcp.hpp>
#include <optional>

#include "tests/unit/kvstore/handoff_fixture.h"
#include "tests/unit/kvstore/raw_peer.h"

namespace tandem::kvstore {
namespace {

using absl::StatusCode;

class HostilePullerTest : public HandoffFixture {
 protected:
  void SetUp() override { StartServer(); }

  RawPeer Connect() { return RawPeer::Connect(server_->port()); }
  std::vector<uint8_t> Hello() const {
    return FrameOf(v1::FRAME_TYPE_HELLO, wire::ToHello(identity_));
  }
  static std::vector<uint8_t> PullOf(uint32_t n) {
    v1::Pull pull;
    pull.set_handoff_id(MakeId(n));
    return FrameOf(v1::FRAME_TYPE_PULL, pull);
  }
  /// A connection past its handshake that has asked for `n`.
  RawPeer Pulling(uint32_t n) {
    RawPeer peer = Connect();
    peer.Send(Hello());
    EXPECT_EQ(peer.ReadFrame()->header.type, v1::FRAME_TYPE_HELLO);
    peer.Send(PullOf(n));
    return peer;
  }
  /// Proof that the server still serves.
  void ExpectServing() {
    StartClient();
    Offered offered = Publish(99);
    offered.publication->Append(MakeChunk(0, 7));
    offered.publication->Finish({.n_tokens = 7});
    CollectingSink sink;
    const PullResult result = Pull(99, sink).get();
    EXPECT_TRUE(result.ok()) << result.status();
    client_->Stop();
    EXPECT_TRUE(ServerIsEmpty());
  }
};

TEST_F(HostilePullerTest, OtherProtocolsAreRefused) {
  const std::string http = "GET / HTTP/1.1\r\nHost: worker\r\nAccept: */*\r\n\r\n";
  for (const std::string& words : {http, std::string(100, '\0'), std::string(70000, 'x')}) {
    RawPeer peer = Connect();
    peer.Send({words.begin(), words.end()});
    EXPECT_THAT(peer.ReadAbort(), HasStatus(StatusCode::kFailedPrecondition, "does not speak"));
    EXPECT_TRUE(peer.AtEnd());
  }
  ExpectServing();
}

TEST_F(HostilePullerTest, AnotherVersionIsRefused) {
  std::vector<uint8_t> hello = Hello();
  hello[4] = 9;
  RawPeer peer = Connect();
  peer.Send(hello);
  EXPECT_THAT(peer.ReadAbort(), HasStatus(StatusCode::kFailedPrecondition, "version 9"));
  EXPECT_TRUE(peer.AtEnd());
  ExpectServing();
}

TEST_F(HostilePullerTest, FramesOutOfOrderAreRefused) {
  const auto done = FrameOf(v1::FRAME_TYPE_DONE, v1::Done());
  for (const auto& first : {PullOf(1), done, FrameOf(v1::FRAME_TYPE_END, v1::End())}) {
    RawPeer peer = Connect();
    peer.Send(first);
    EXPECT_THAT(peer.ReadAbort(), HasStatus(StatusCode::kInvalidArgument, "HELLO"));
  }
  for (const auto& second : {Hello(), done}) {
    RawPeer peer = Connect();
    peer.Send(Hello());
    EXPECT_TRUE(peer.ReadFrame().has_value());
    peer.Send(second);
    EXPECT_THAT(peer.ReadAbort(), HasStatus(StatusCode::kInvalidArgument, "between requests"));
  }
  Offered offered = Publish(1);
  RawPeer peer = Pulling(1);
  peer.Send(done);
  EXPECT_THAT(peer.ReadAbort(), HasStatus(StatusCode::kInvalidArgument, "DONE"));
  EXPECT_EQ(offered.released.get().first.code(), StatusCode::kInvalidArgument);
  ExpectServing();
}

TEST_F(HostilePullerTest, TruncationAnywhereLeavesNothing) {
  std::vector<uint8_t> words = Hello();
  const auto pull = PullOf(1);
  words.insert(words.end(), pull.begin(), pull.end());
  for (size_t n = 0; n < words.size(); ++n) {
    RawPeer peer = Connect();
    peer.Send({words.begin(), words.begin() + n});
  }
  ExpectServing();
}

TEST_F(HostilePullerTest, AFlippedBitAnywhereIsNoticed) {
  Offered offered = Publish(1);
  offered.publication->Append(MakeChunk(0, 7));
  const std::vector<uint8_t> hello = Hello(), pull = PullOf(1);
  for (size_t at = 0; at < hello.size() + pull.size(); ++at) {
    std::vector<uint8_t> bad_hello = hello, bad_pull = pull;
    uint8_t& byte = at < hello.size() ? bad_hello[at] : bad_pull[at - hello.size()];
    byte ^= 1 << (at % 8);
    RawPeer peer = Connect();
    peer.Send(bad_hello);
    peer.Send(bad_pull);
    peer.FinishSending();
    while (auto frame = peer.ReadFrame()) {
      EXPECT_NE(frame->header.type, v1::FRAME_TYPE_CHUNK) << "flipped at " << at;
    }
  }
  EXPECT_EQ(server_->publications(), 1u);
  offered.publication.reset();
  ExpectServing();
}

TEST_F(HostilePullerTest, LengthsAreCheckedBeforeMemoryIsTaken) {
  for (const size_t offset : {8, 16}) {
    std::vector<uint8_t> hello = Hello();
    for (size_t i = 0; i < 4; ++i) hello[offset + i] = 0xff;
    RawPeer peer = Connect();
    peer.Send(hello);
    EXPECT_THAT(peer.ReadAbort(), HasStatus(StatusCode::kDataLoss, "limit"));
  }
  ExpectServing();
}

TEST_F(HostilePullerTest, SilentConnectionsAreClosed) {
  StartServer(
      {.handshake_timeout = absl::Milliseconds(50), .idle_timeout = absl::Milliseconds(50)});
  RawPeer silent = Connect(), slow = Connect(), idle = Connect();
  slow.Send({'T', 'D', 'M'});
  idle.Send(Hello());
  EXPECT_TRUE(idle.ReadFrame().has_value());
  for (RawPeer* peer : {&silent, &slow, &idle}) {
    EXPECT_EQ(peer->ReadAbort().code(), StatusCode::kUnavailable);
    EXPECT_TRUE(peer->AtEnd());
  }
  EXPECT_TRUE(ServerIsEmpty());
}

TEST_F(HostilePullerTest, APullerThatDiesReleasesTheKv) {
  for (const bool finished : {false, true}) {
    Offered offered = Publish(1);
    offered.publication->Append(MakeChunk(0, 100));
    if (finished) offered.publication->Finish({.n_tokens = 100});
    {
      RawPeer peer = Pulling(1);
      EXPECT_EQ(peer.ReadFrame()->header.type, v1::FRAME_TYPE_CHUNK);
    }
    EXPECT_EQ(offered.released.get().first.code(), StatusCode::kUnavailable);
    EXPECT_TRUE(ServerIsEmpty());
  }
}

TEST_F(HostilePullerTest, APullerThatDiesInTheMiddleOfAChunk) {
  Offered offered = Publish(1);
  offered.publication->Append(MakeChunk(0, 1 << 20));
  RawPeer peer = Pulling(1);
  EXPECT_TRUE(peer.ReadBytes(100000).has_value());
  peer.Close();
  const Outcome outcome = offered.released.get();
  EXPECT_EQ(outcome.first.code(), StatusCode::kUnavailable);
  EXPECT_EQ(outcome.second.chunks, 0u);
  EXPECT_TRUE(ServerIsEmpty());
}

TEST_F(HostilePullerTest, APullerThatStallsIsGivenUpAfterTheLease) {
  StartServer({.lease = absl::Milliseconds(300)});
  Offered offered = Publish(1);
  offered.publication->Append(MakeChunk(0, 1 << 20));
  RawPeer peer = Pulling(1);
  EXPECT_EQ(offered.released.get().first.code(), StatusCode::kUnavailable);
  EXPECT_TRUE(ServerIsEmpty());
}

TEST_F(HostilePullerTest, APullerThatDoesNotConfirmIsGivenUpAfterTheLease) {
  StartServer({.lease = absl::Milliseconds(100)});
  Offered offered = Publish(1);
  offered.publication->Append(MakeChunk(0, 10));
  offered.publication->Finish({.n_tokens = 10});
  RawPeer peer = Pulling(1);
  EXPECT_EQ(peer.ReadFrame()->header.type, v1::FRAME_TYPE_CHUNK);
  EXPECT_EQ(peer.ReadFrame()->header.type, v1::FRAME_TYPE_END);
  EXPECT_EQ(peer.ReadAbort().code(), StatusCode::kDeadlineExceeded);
  EXPECT_EQ(offered.released.get().first.code(), StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(ServerIsEmpty());
}

TEST_F(HostilePullerTest, AbortWhileTheSocketIsFull) {
  Offered offered = Publish(1);
  offered.publication->Append(MakeChunk(0, 1 << 20));
  RawPeer peer = Pulling(1);
  EXPECT_TRUE(peer.ReadBytes(wire::kHeaderBytes).has_value());
  offered.publication->Abort(absl::CancelledError("never mind"));
  EXPECT_EQ(offered.released.get().first.code(), StatusCode::kCancelled);
  // The chunk that is half sent is sent whole, then the reason follows.
  EXPECT_TRUE(peer.ReadBytes((1 << 20) * kBytesPerToken + 4).has_value());
  EXPECT_THAT(peer.ReadAbort(), HasStatus(StatusCode::kCancelled, "never mind"));
  EXPECT_TRUE(ServerIsEmpty());
}

TEST_F(HostilePullerTest, WaitIsSaidWhileThereIsNoChunk) {
  Offered offered = Publish(1);
  RawPeer peer = Pulling(1);
  for (int i = 0; i < 2; ++i) EXPECT_EQ(peer.ReadFrame()->header.type, v1::FRAME_TYPE_WAIT);
  peer.Send(FrameOf(v1::FRAME_TYPE_ABORT, wire::ToAbort(absl::DataLossError("cannot use it"))));
  EXPECT_THAT(offered.released.get().first, HasStatus(StatusCode::kDataLoss, "cannot use it"));
  EXPECT_TRUE(peer.AtEnd());
}

}  // namespace
}  // namespace tandem::kvstore
