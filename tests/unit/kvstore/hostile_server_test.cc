// Servers that send damaged, incomplete or impossible frames, against the real client.
#include <functional>

#include "tests/unit/kvstore/handoff_fixture.h"
#include "tests/unit/kvstore/raw_peer.h"

namespace tandem::kvstore {
namespace {

using absl::StatusCode;
using Bytes = std::vector<uint8_t>;

Bytes ChunkOf(uint32_t first_position, uint32_t n_tokens, uint32_t stated_tokens) {
  v1::ChunkHeader meta;
  meta.set_first_position(first_position);
  meta.set_n_tokens(stated_tokens);
  return FrameOf(v1::FRAME_TYPE_CHUNK, meta, MakeChunk(first_position, n_tokens).bytes);
}
Bytes ChunkOf(uint32_t first_position, uint32_t n_tokens) {
  return ChunkOf(first_position, n_tokens, n_tokens);
}
Bytes EndOf(uint32_t n_tokens) {
  v1::End end;
  end.set_n_tokens(n_tokens);
  return FrameOf(v1::FRAME_TYPE_END, end);
}
Bytes AbortOf(int code, const std::string& message) {
  v1::Abort abort;
  abort.set_code(code);
  abort.set_message(message);
  return FrameOf(v1::FRAME_TYPE_ABORT, abort);
}
Bytes Join(std::initializer_list<Bytes> frames) {
  Bytes all;
  for (const Bytes& frame : frames) all.insert(all.end(), frame.begin(), frame.end());
  return all;
}

class HostileServerTest : public HandoffFixture {
 protected:
  void SetUp() override { StartClient({.silence_timeout = absl::Milliseconds(200)}); }

  std::string address() { return "127.0.0.1:" + std::to_string(acceptor_.local_endpoint().port()); }
  Bytes Hello() const { return FrameOf(v1::FRAME_TYPE_HELLO, wire::ToHello(identity_)); }

  /// Pulls from a server whose one connection `script` plays.
  PullResult PullFrom(KvSink& sink, const std::function<void(RawPeer)>& script) {
    auto result = Pull(address(), 1, sink);
    script(RawPeer::Accept(acceptor_));
    return result.get();
  }
  /// Pulls from a server that says hello, reads the PULL, says `words`, and stops.
  PullResult PullWords(KvSink& sink, const Bytes& words) {
    return PullFrom(sink, [&](RawPeer peer) {
      peer.ReadFrame();
      peer.Send(Hello());
      peer.ReadFrame();
      peer.Send(words);
      peer.FinishSending();
      while (peer.ReadFrame()) {
      }
    });
  }

  boost::asio::io_context io_;
  boost::asio::ip::tcp::acceptor acceptor_{io_, {boost::asio::ip::address_v4::loopback(), 0}};
};

TEST_F(HostileServerTest, TheSoundOneIsUnderstood) {
  CollectingSink sink;
  const auto wait = FrameOf(v1::FRAME_TYPE_WAIT, v1::Wait());
  const PullResult result =
      PullWords(sink, Join({wait, ChunkOf(0, 5), wait, wait, ChunkOf(5, 2), EndOf(7)}));
  EXPECT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE(sink.Holds(0));
}

TEST_F(HostileServerTest, WrongSequencesAreDataLoss) {
  const auto pull = FrameOf(v1::FRAME_TYPE_PULL, v1::Pull());
  const std::vector<std::pair<const char*, Bytes>> cases = {
      {"late start", ChunkOf(1, 5)},
      {"hole", Join({ChunkOf(0, 5), ChunkOf(6, 1)})},
      {"duplicate", Join({ChunkOf(0, 5), ChunkOf(0, 5)})},
      {"overlap", Join({ChunkOf(0, 5), ChunkOf(4, 5)})},
      {"fewer bytes than tokens", ChunkOf(0, 5, 6)},
      {"more bytes than tokens", ChunkOf(0, 5, 4)},
      {"no tokens", ChunkOf(0, 0)},
      {"early end", Join({ChunkOf(0, 5), EndOf(6)})},
      {"late end", Join({ChunkOf(0, 5), EndOf(4)})},
      {"a PULL", Join({ChunkOf(0, 5), pull})},
      {"another HELLO", Hello()},
      {"nonsense", Bytes(100, 'x')},
  };
  for (const auto& [name, words] : cases) {
    CollectingSink sink;
    const PullResult result = PullWords(sink, words);
    EXPECT_EQ(result.status().code(), StatusCode::kDataLoss) << name << ": " << result.status();
    EXPECT_TRUE(sink.Holds(0));
    EXPECT_LE(sink.committed_chunks(), 1u);
  }
}

TEST_F(HostileServerTest, TheServerIsToldWhatWasWrong) {
  CollectingSink sink;
  absl::Status told;
  const PullResult result = PullFrom(sink, [&](RawPeer peer) {
    peer.ReadFrame();
    peer.Send(Hello());
    peer.ReadFrame();
    peer.Send(ChunkOf(3, 5));
    told = peer.ReadAbort();
  });
  EXPECT_THAT(told, HasStatus(StatusCode::kDataLoss, "position 3"));
  EXPECT_EQ(result.status(), told);
}

TEST_F(HostileServerTest, AFlippedBitAnywhereIsNoticed) {
  const Bytes sound = Join({ChunkOf(0, 2), ChunkOf(2, 1), EndOf(3)});
  for (size_t at = 0; at < sound.size(); ++at) {
    Bytes words = sound;
    words[at] ^= 1 << (at % 8);
    CollectingSink sink;
    const PullResult result = PullWords(sink, words);
    // A length that grew makes the client wait for bytes that do not come.
    EXPECT_TRUE(result.status().code() == StatusCode::kDataLoss ||
                result.status().code() == StatusCode::kUnavailable)
        << "flipped at " << at << ": " << result.status();
    EXPECT_TRUE(sink.Holds(0)) << "flipped at " << at;
  }
}

TEST_F(HostileServerTest, ADamagedHandshake) {
  for (size_t at = 0; at < Hello().size(); ++at) {
    CollectingSink sink;
    const PullResult result = PullFrom(sink, [&](RawPeer peer) {
      peer.ReadFrame();
      Bytes hello = Hello();
      hello[at] ^= 1 << (at % 8);
      peer.Send(hello);
      peer.FinishSending();
      while (peer.ReadFrame()) {
      }
    });
    EXPECT_FALSE(result.ok()) << "flipped at " << at;
  }
}

TEST_F(HostileServerTest, TruncationAnywhereIsUnavailable) {
  const Bytes sound = Join({ChunkOf(0, 2), ChunkOf(2, 1), EndOf(3)});
  for (size_t n = 0; n < sound.size(); ++n) {
    CollectingSink sink;
    const PullResult result = PullWords(sink, {sound.begin(), sound.begin() + n});
    EXPECT_EQ(result.status().code(), StatusCode::kUnavailable) << n << ": " << result.status();
    EXPECT_TRUE(sink.Holds(0));
  }
}

TEST_F(HostileServerTest, AnotherVersionAndAnotherProtocol) {
  CollectingSink sink;
  const auto answer = [&](Bytes words) {
    return PullFrom(sink, [&](RawPeer peer) {
      peer.ReadFrame();
      peer.Send(words);
      while (peer.ReadFrame()) {
      }
    });
  };
  Bytes hello = Hello();
  hello[4] = 9;
  EXPECT_THAT(answer(hello).status(), HasStatus(StatusCode::kFailedPrecondition, "version 9"));
  const std::string http = "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n";
  EXPECT_THAT(answer({http.begin(), http.end()}).status(),
              HasStatus(StatusCode::kFailedPrecondition, "does not speak"));
  EXPECT_EQ(answer(EndOf(0)).status().code(), StatusCode::kFailedPrecondition);
}

TEST_F(HostileServerTest, AnotherIdentityIsToldToTheServer) {
  CollectingSink sink;
  absl::Status told;
  const PullResult result = PullFrom(sink, [&](RawPeer peer) {
    peer.ReadFrame();
    peer.Send(FrameOf(v1::FRAME_TYPE_HELLO, wire::ToHello({{"model", "other"}})));
    told = peer.ReadAbort();
  });
  EXPECT_THAT(result.status(), HasStatus(StatusCode::kFailedPrecondition, "model is tale-7m here"));
  EXPECT_EQ(told, result.status());
}

TEST_F(HostileServerTest, AbortsCarryTheirReason) {
  CollectingSink sink;
  EXPECT_THAT(PullWords(sink, AbortOf(8, "no room")).status(),
              HasStatus(StatusCode::kResourceExhausted, "no room"));
  EXPECT_THAT(PullWords(sink, Join({ChunkOf(0, 5), AbortOf(1, "gone")})).status(),
              HasStatus(StatusCode::kCancelled, "gone"));
  EXPECT_EQ(PullWords(sink, AbortOf(0, "not an error?")).status().code(), StatusCode::kUnknown);
  EXPECT_EQ(PullWords(sink, AbortOf(77, "")).status().code(), StatusCode::kUnknown);
}

TEST_F(HostileServerTest, SilenceIsUnavailable) {
  for (const Bytes& words : {Bytes(), ChunkOf(0, 5), Bytes(10, 0), Bytes(32 + 2, 0)}) {
    CollectingSink sink;
    absl::Status told;
    Bytes partial = words.size() == 34 ? ChunkOf(0, 5) : words;
    if (words.size() == 34) partial.resize(60);
    if (words.size() == 10) partial = {'T', 'D', 'M', '1'};
    const PullResult result = PullFrom(sink, [&](RawPeer peer) {
      peer.ReadFrame();
      peer.Send(Hello());
      peer.ReadFrame();
      peer.Send(partial);
      told = peer.ReadAbort();
    });
    EXPECT_THAT(result.status(), HasStatus(StatusCode::kUnavailable, "did not answer in time"));
    EXPECT_EQ(told.code(), StatusCode::kUnavailable);
  }
}

TEST_F(HostileServerTest, AStaleConnectionIsReplacedOnce) {
  CollectingSink first_sink;
  auto first = Pull(address(), 1, first_sink);
  RawPeer kept = RawPeer::Accept(acceptor_);
  kept.ReadFrame();
  kept.Send(Hello());
  kept.ReadFrame();
  kept.Send(Join({ChunkOf(0, 5), EndOf(5)}));
  ASSERT_TRUE(first.get().ok());
  EXPECT_EQ(kept.ReadFrame()->header.type, v1::FRAME_TYPE_DONE);
  EXPECT_EQ(client_->idle_connections(), 1u);

  CollectingSink second_sink;
  auto second = Pull(address(), 2, second_sink);
  EXPECT_EQ(kept.ReadFrame()->header.type, v1::FRAME_TYPE_PULL);
  kept.Close();
  RawPeer fresh = RawPeer::Accept(acceptor_);
  fresh.ReadFrame();
  fresh.Send(Hello());
  EXPECT_EQ(fresh.ReadFrame()->header.type, v1::FRAME_TYPE_PULL);
  fresh.Send(Join({ChunkOf(0, 5), EndOf(5)}));
  ASSERT_TRUE(second.get().ok());

  // A first byte of an answer, or a fresh connection that fails, is not retried.
  CollectingSink third_sink;
  auto third = Pull(address(), 3, third_sink);
  EXPECT_EQ(fresh.ReadFrame()->header.type, v1::FRAME_TYPE_DONE);
  EXPECT_EQ(fresh.ReadFrame()->header.type, v1::FRAME_TYPE_PULL);
  fresh.Send({'T'});
  fresh.Close();
  EXPECT_EQ(third.get().status().code(), StatusCode::kUnavailable);
}

TEST_F(HostileServerTest, CancellationWhileConnectingOrShakingHands) {
  CollectingSink sink;
  auto context = MakeContext();
  auto result = Pull(address(), 1, sink, context);
  RawPeer peer = RawPeer::Accept(acceptor_);
  EXPECT_EQ(peer.ReadFrame()->header.type, v1::FRAME_TYPE_HELLO);
  context->Cancel(absl::CancelledError("no patience"));
  EXPECT_EQ(result.get().status().code(), StatusCode::kCancelled);
  EXPECT_THAT(peer.ReadAbort(), HasStatus(StatusCode::kCancelled, "no patience"));
}

TEST_F(HostileServerTest, CancellationInTheMiddleOfAChunk) {
  CollectingSink sink;
  auto context = MakeContext();
  auto result = Pull(address(), 1, sink, context);
  RawPeer peer = RawPeer::Accept(acceptor_);
  peer.ReadFrame();
  peer.Send(Hello());
  peer.ReadFrame();
  Bytes chunk = ChunkOf(0, 1000);
  chunk.resize(chunk.size() / 2);
  peer.Send(chunk);
  context->Cancel(absl::CancelledError("no patience"));
  EXPECT_EQ(result.get().status().code(), StatusCode::kCancelled);
  EXPECT_THAT(peer.ReadAbort(), HasStatus(StatusCode::kCancelled, "no patience"));
  EXPECT_EQ(sink.committed_chunks(), 0u);
}

}  // namespace
}  // namespace tandem::kvstore
