// A store node that dies, speaks another language, or is at the other end of a link that damages,
// cuts and delays: what it held is computed instead, and counted.
#include <signal.h>

#include <algorithm>
#include <future>

#include "kvstore/transfer/wire.h"
#include "tests/fault/fake_store.h"
#include "tests/fault/faulty_link.h"
#include "tests/fault/kv_fault_fixture.h"
#include "tests/unit/redis/redis_server.h"

namespace tandem::e2e {
namespace {

constexpr uint32_t kChunks = 3;
constexpr size_t kPromptTokens = 800;

class KvWireFaultTest : public KvFaultTest {
 protected:
  /// A real store at the other end of a link, with the chunks of `n` prompts; a prefill worker that
  /// has none of them, and a router that knows where they are.
  void FillStore(uint32_t n) {
    Start();
    // The router must not see the store itself: it would name it besides the link.
    store_.emplace(std::vector<std::string>{"--role", "store", "--routers", "127.0.0.1:1",
                                            "--worker-listen", "127.0.0.1:0", "--data-listen",
                                            "127.0.0.1:0", "--report-interval", "20ms"});
    link_.emplace(store_->store_data_port());
    fake_.emplace(cluster_->router().RouterAddress(), link_->Address());
    std::vector<kvstore::ChunkId> all;
    for (uint32_t i = 0; i < n; ++i) {
      Ask(cluster_->client(), RequestFor(Prompt(i), 1));
      const auto ids = IdsOf(Prompt(i));
      all.insert(all.end(), ids.begin(), ids.end());
    }
    ASSERT_TRUE(WaitFor([&] {
      return MetricSum(store_->Metrics(), "tandem_kv_tier_chunks", "memory") == all.size();
    }));
    cluster_->RestartPrefill();
    fake_->Hold(all, kvstore::Level::kLossless);
    ASSERT_TRUE(WaitChunks(cluster_->router(), static_cast<double>(all.size())));
  }
  static std::vector<int32_t> Prompt(uint32_t i) { return Text(2000 + i, kPromptTokens); }
  double Refused() { return Metric("tandem_kv_refused_chunks_total", "peer"); }
  double Failures(const std::string& code = "") {
    return Metric("tandem_kv_peer_failures_total", code);
  }

  std::optional<DaemonProcess> store_;
  std::optional<FaultyLink> link_;
  std::optional<FakeStore> fake_;
};

TEST_F(KvWireFaultTest, ASoundLinkBringsEverything) {
  // The best of three: what a busy machine brings too late is computed.
  FillStore(3);
  uint32_t most = 0;
  for (uint32_t i = 0; i < 3; ++i) {
    most = std::max(most, Answer(Prompt(i)).prompt_cache.peer_tokens());
  }
  EXPECT_EQ(most, kChunks * kChunkTokens);
  EXPECT_EQ(Refused() + Failures(), 0);
  EXPECT_GT(link_->chunk_bytes(), 0u);
}

TEST_F(KvWireFaultTest, FlippedBits) {
  // Of the header every field: magic, version, type, lengths, reserved, checksum. Then the
  // protobuf, the envelope, and KV.
  const std::vector<uint64_t> places = {1, 4, 6, 8, 12, 17, 23, 30, 33, 50, 80, 3000, 20000};
  FillStore(static_cast<uint32_t>(places.size()));
  for (uint32_t i = 0; i < places.size(); ++i) {
    SCOPED_TRACE(places[i]);
    const double before = Refused() + Failures();
    link_->Set({.flip_at = places[i]});
    const Generated got = Answer(Prompt(i));
    EXPECT_LT(got.prompt_cache.peer_tokens(), kChunks * kChunkTokens);
    EXPECT_TRUE(WaitFor([&] { return Refused() + Failures() > before; }));
    EXPECT_GT(link_->chunk_bytes(), places[i]);
  }
  EXPECT_GE(Metric("tandem_kv_refused_chunks_total", "DATA_LOSS"), 1);
}

TEST_F(KvWireFaultTest, ConnectionsThatEndInTheMiddle) {
  const std::vector<uint64_t> places = {0, 10, 36, 70, 20000};
  FillStore(static_cast<uint32_t>(places.size()));
  for (uint32_t i = 0; i < places.size(); ++i) {
    SCOPED_TRACE(places[i]);
    const double before = Failures("UNAVAILABLE");
    link_->Set({.cut_at = places[i]});
    EXPECT_EQ(Cached(Answer(Prompt(i)).prompt_cache), 0u);
    EXPECT_TRUE(WaitFor([&] { return Failures("UNAVAILABLE") > before; }));
  }
}

TEST_F(KvWireFaultTest, AChunkThatComesByTheDrop) {
  FillStore(1);
  link_->Set({.bytes_per_s = 2000});
  EXPECT_EQ(Cached(Answer(Prompt(0)).prompt_cache), 0u);
  // What still comes keeps the worker from nothing, its own end included.
  EXPECT_TRUE(WaitFor([&] { return link_->chunk_bytes() > 0; }));
  StopPrefill();
  cluster_->RestartPrefill();
}

TEST_F(KvWireFaultTest, StoreKilledInTheMiddleOfAStream) {
  FillStore(1);
  // Slow enough to die in the middle, fast enough that what its kernel still sends soon ends.
  link_->Set({.bytes_per_s = 300'000});
  auto answer = std::async(std::launch::async, [this] { return Answer(Prompt(0)); });
  ASSERT_TRUE(WaitFor([&] { return link_->chunk_bytes() > 0; }));
  store_->process().Signal(SIGKILL);
  answer.get();
  EXPECT_TRUE(WaitFor([&] { return Failures("UNAVAILABLE") >= 1; }));
}

/// Nodes that say something else than what HELLO is answered with.
class KvStrangerTest : public KvFaultTest, public testing::WithParamInterface<const char*> {
 protected:
  static std::string Reply(const std::string& kind) {
    if (kind == "Http") return "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n";
    std::vector<uint8_t> hello =
        *kvstore::wire::EncodeFrame(v1::FRAME_TYPE_HELLO, kvstore::wire::ToHello({}));
    const size_t version_at = 4;
    hello[version_at] = kvstore::wire::kVersion + 1;
    return {hello.begin(), hello.end()};
  }
};

TEST_P(KvStrangerTest, IsAMiss) {
  Start();
  kvstore::FakeServer stranger(
      [reply = Reply(GetParam())](std::string_view, const kvstore::FakeServer::Send& send) {
        send(reply);
      });
  FakeStore node(cluster_->router().RouterAddress(), stranger.Address());
  const auto prompt = Text(3000, kPromptTokens);
  node.Hold(IdsOf(prompt), kvstore::Level::kLossless);
  ASSERT_TRUE(WaitChunks(cluster_->router(), kChunks));
  EXPECT_EQ(Cached(Answer(prompt).prompt_cache), 0u);
  EXPECT_TRUE(WaitMetric("tandem_kv_peer_failures_total", "FAILED_PRECONDITION", 1));
}

INSTANTIATE_TEST_SUITE_P(Replies, KvStrangerTest, testing::Values("Http", "OtherVersion"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace tandem::e2e
