// A prober against a real server, over loopback or over a relay that lets through so many bytes a
// second.
#include "kvstore/transfer/link_prober.h"

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>

#include "absl/time/clock.h"
#include "tests/unit/kvstore/handoff_fixture.h"
#include "tests/unit/kvstore/raw_peer.h"

namespace tandem::kvstore {
namespace {

namespace asio = boost::asio;
using Tcp = asio::ip::tcp;

/// A port that leads to another one of this machine.
class Relay {
 public:
  Relay(uint16_t server_port, double bytes_per_s)
      : server_port_(server_port),
        bytes_per_s_(bytes_per_s),
        acceptor_(io_.io(), {asio::ip::address_v4::loopback(), 0}),
        address_("127.0.0.1:" + std::to_string(acceptor_.local_endpoint().port())) {
    asio::co_spawn(io_.io(), Accept(), asio::detached);
  }
  ~Relay() {
    asio::post(io_.io(), [this] { io_.io().stop(); });
  }
  const std::string& address() const { return address_; }
  void SetRate(double bytes_per_s) { bytes_per_s_ = bytes_per_s; }

 private:
  struct Pair {
    explicit Pair(asio::io_context& io) : client(io), server(io) {}
    Tcp::socket client, server;
  };

  asio::awaitable<void> Accept() {
    for (;;) {
      auto pair = std::make_shared<Pair>(io_.io());
      co_await acceptor_.async_accept(pair->client, asio::use_awaitable);
      const Tcp::endpoint server(asio::ip::address_v4::loopback(), server_port_);
      co_await pair->server.async_connect(server, asio::use_awaitable);
      pair->server.set_option(asio::socket_base::receive_buffer_size(65536));
      pair->client.set_option(Tcp::no_delay(true));
      asio::co_spawn(io_.io(), Copy(pair, pair->client, pair->server, false), asio::detached);
      asio::co_spawn(io_.io(), Copy(pair, pair->server, pair->client, true), asio::detached);
    }
  }
  asio::awaitable<void> Copy(std::shared_ptr<Pair> pair, Tcp::socket& from, Tcp::socket& to,
                             bool paced) {
    std::vector<uint8_t> piece(4096);
    asio::steady_timer timer(io_.io());
    timer.expires_after(std::chrono::seconds(0));
    for (;;) {
      auto [failed, n] =
          co_await from.async_read_some(asio::buffer(piece), asio::as_tuple(asio::use_awaitable));
      if (failed) break;
      if (paced) {
        // A link that rests saves nothing up.
        const auto pause = std::chrono::duration<double>(static_cast<double>(n) / bytes_per_s_);
        timer.expires_at(std::max(timer.expiry(), std::chrono::steady_clock::now()) +
                         std::chrono::duration_cast<std::chrono::nanoseconds>(pause));
        co_await timer.async_wait(asio::use_awaitable);
      }
      auto [lost, sent] = co_await asio::async_write(to, asio::buffer(piece.data(), n),
                                                     asio::as_tuple(asio::use_awaitable));
      if (lost) break;
    }
    boost::system::error_code ignored;
    pair->client.close(ignored);
    pair->server.close(ignored);
  }

  const uint16_t server_port_;
  std::atomic<double> bytes_per_s_;
  testing_support::IoThread io_;
  Tcp::acceptor acceptor_;
  const std::string address_;
};

class LinkProberTest : public HandoffFixture {
 protected:
  ~LinkProberTest() override {
    if (prober_) prober_->Stop();
  }
  void StartProber(const std::string& peer, double share = 0.01) {
    began_ = absl::Now();
    prober_.emplace(
        client_thread_.io(),
        LinkProber::Options{
            .address = "127.0.0.1:9", .links = &links_, .share = share, .skip_own_host = false});
    prober_->SetPeers({peer});
  }
  LinkEstimate Get(const std::string& peer) const { return links_.Get(peer, absl::Now()); }

  LinkTable links_, servers_links_;
  absl::Time began_;
  std::optional<LinkProber> prober_;
};

TEST_F(LinkProberTest, MeasuresALink) {
  StartServer({.links = &servers_links_});
  servers_links_.AddRate("127.0.0.1:9", {1'000'000, 1}, absl::Now());
  StartProber(address());
  ASSERT_TRUE(Eventually([&] { return Get(address()).bytes_per_s > 0; }));
  const LinkEstimate link = Get(address());
  EXPECT_GT(link.rtt_s, 0);
  EXPECT_LT(link.rtt_s, 1);
  EXPECT_GT(link.confidence, 0.5);
  EXPECT_FALSE(link.relayed);
  EXPECT_GT(link.probe_bytes, 0u);
  // The other end hears of it with the next visit.
  EXPECT_TRUE(Eventually(
      [&] { return servers_links_.Get("127.0.0.1:9", absl::Now()).reverse_bytes_per_s > 0; }));
  const LinkEstimate later = Get(address());
  const double busy_s = static_cast<double>(later.probe_bytes) / later.bytes_per_s;
  EXPECT_LT(busy_s, 0.1 + 0.01 * absl::ToDoubleSeconds(absl::Now() - began_));
}

TEST_F(LinkProberTest, SeesHowFastARelayIsAndThatItIsOne) {
  StartServer();
  const Relay relay(server_->port(), 5e6);
  StartProber(relay.address());
  ASSERT_TRUE(Eventually([&] { return Get(relay.address()).bytes_per_s > 0; }));
  // However busy the machine is; tests/e2e/links_test.cc has shaped links.
  EXPECT_LT(Get(relay.address()).bytes_per_s, 7e6);
  EXPECT_GT(Get(relay.address()).bytes_per_s, 1e6);
  EXPECT_TRUE(Get(relay.address()).relayed);
}

TEST_F(LinkProberTest, FollowsALinkThatHasChanged) {
  StartServer({.probe_share = 0.1});
  Relay relay(server_->port(), 20e6);
  StartProber(relay.address(), 0.1);
  ASSERT_TRUE(Eventually([&] { return Get(relay.address()).bytes_per_s > 0; }));
  relay.SetRate(2e6);
  EXPECT_TRUE(Eventually([&] { return Get(relay.address()).bytes_per_s < 3e6; }));
}

TEST_F(LinkProberTest, AServerThatMayNotAnswersWithTheRoundTripAlone) {
  StartServer({.probe_share = 0});
  StartProber(address());
  ASSERT_TRUE(Eventually([&] { return Get(address()).rtt_s > 0; }));
  EXPECT_EQ(Get(address()).bytes_per_s, 0);
  EXPECT_EQ(Get(address()).probe_bytes, 0u);
}

TEST_F(LinkProberTest, AProberThatMayNotAsksForTheRoundTripAlone) {
  StartServer();
  StartProber(address(), 0);
  ASSERT_TRUE(Eventually([&] { return Get(address()).rtt_s > 0; }));
  EXPECT_EQ(Get(address()).probe_bytes, 0u);
}

TEST_F(LinkProberTest, NothingIsAskedWherePullsHaveMeasured) {
  StartServer();
  links_.AddRate(address(), {1'000'000, 1}, absl::Now());
  StartProber(address());
  ASSERT_TRUE(Eventually([&] { return Get(address()).rtt_s > 0; }));
  EXPECT_EQ(Get(address()).probe_bytes, 0u);
}

TEST_F(LinkProberTest, AnOlderPeerIsNotAsked) {
  asio::io_context io;
  Tcp::acceptor acceptor(io, {asio::ip::address_v4::loopback(), 0});
  StartProber("127.0.0.1:" + std::to_string(acceptor.local_endpoint().port()));
  RawPeer prober = RawPeer::Accept(acceptor);
  const auto hello = prober.ReadFrame();
  ASSERT_TRUE(hello && hello->header.type == v1::FRAME_TYPE_HELLO);
  prober.Send(FrameOf(v1::FRAME_TYPE_HELLO, v1::Hello()));
  EXPECT_TRUE(prober.AtEnd());
}

TEST_F(LinkProberTest, WhoAsksForTooMuchGetsTheLimit) {
  StartServer();
  RawPeer peer = RawPeer::Connect(server_->port());
  v1::Hello hello;
  hello.set_chunks_only(true);
  peer.Send(FrameOf(v1::FRAME_TYPE_HELLO, hello));
  const auto greeting = peer.ReadFrame();
  ASSERT_TRUE(greeting && wire::DecodeMeta(greeting->meta, hello).ok());
  EXPECT_TRUE(hello.answers_probes());
  v1::Probe probe;
  probe.set_fills(UINT32_MAX);
  peer.Send(FrameOf(v1::FRAME_TYPE_PROBE, probe));
  const auto frame = peer.ReadFrame();
  v1::Probed probed;
  ASSERT_TRUE(frame && wire::DecodeMeta(frame->meta, probed).ok());
  EXPECT_EQ(probed.fills(), 2048u);
  for (uint32_t i = 0; i < probed.fills(); ++i) {
    const auto fill = peer.ReadFrame();
    ASSERT_TRUE(fill && fill->header.type == v1::FRAME_TYPE_FILL);
    ASSERT_EQ(fill->header.body_bytes, wire::kFillBytes);
  }
  // What comes instead of DONE is no conversation.
  peer.Send(FrameOf(v1::FRAME_TYPE_PROBE, probe));
  EXPECT_EQ(peer.ReadAbort().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(LinkProberTest, StopsWhileNobodyAnswers) {
  asio::io_context io;
  Tcp::acceptor silent(io, {asio::ip::address_v4::loopback(), 0});
  StartProber("127.0.0.1:" + std::to_string(silent.local_endpoint().port()));
  RawPeer prober = RawPeer::Accept(silent);
  ASSERT_TRUE(prober.ReadFrame());
  prober_->Stop();
  EXPECT_TRUE(prober.AtEnd());
}

}  // namespace
}  // namespace tandem::kvstore
