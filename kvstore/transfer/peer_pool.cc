#include "kvstore/transfer/peer_pool.h"

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <utility>

#include "base/status.h"
#include "kvstore/transfer/address.h"
#include "kvstore/transfer/wire.h"

namespace tandem::kvstore {
namespace {

namespace asio = boost::asio;
using Tcp = asio::ip::tcp;

absl::StatusOr<std::vector<uint8_t>> HelloFrame(const PeerPool::Options& options) {
  v1::Hello hello = wire::ToHello(options.identity);
  hello.set_chunks_only(options.chunks_only);
  return wire::EncodeFrame(v1::FRAME_TYPE_HELLO, hello);
}

}  // namespace

void PeerUse::Stop(absl::Status reason) {
  if (!stopped.ok() || reason.ok()) return;
  stopped = std::move(reason);
  if (peer) peer->Interrupt(stopped);
  if (resolving) resolving->cancel();
}

PeerPool::PeerPool(asio::io_context& io, Options options)
    : io_(io), options_(std::move(options)), hello_(HelloFrame(options_)) {}

void PeerPool::Use(PeerUse& use, SocketPtr peer) {
  busy_.insert(peer);
  use.peer = std::move(peer);
  if (!use.stopped.ok()) use.peer->Interrupt(use.stopped);
}

bool PeerPool::TakeIdle(PeerUse& use) {
  auto found = idle_.find(use.address);
  if (found == idle_.end()) return false;
  SocketPtr peer = std::move(found->second.back());
  found->second.pop_back();
  --n_idle_;
  if (found->second.empty()) idle_.erase(found);
  peer->StopWatching();
  Use(use, std::move(peer));
  return true;
}

asio::awaitable<absl::Status> PeerPool::Connect(PeerUse& use) {
  Drop(use);
  if (stopped_) co_return absl::UnavailableError("the worker is stopping");
  CO_ASSIGN_OR_RETURN(const std::vector<Tcp::endpoint> endpoints, co_await Resolve(use));
  Use(use, std::make_shared<FrameSocket>(io_));
  CO_RETURN_IF_ERROR(
      co_await use.peer->Connect(endpoints, options_.connect_timeout, options_.silence_timeout));
  co_return co_await Handshake(use);
}

// getaddrinfo may take much longer than we wait for it, and nothing stops it. So its outcome goes
// to memory of its own, and waiting for it is waiting for a timer that it cancels.
asio::awaitable<absl::StatusOr<std::vector<Tcp::endpoint>>> PeerPool::Resolve(PeerUse& use) {
  if (!use.stopped.ok()) co_return use.stopped;
  CO_ASSIGN_OR_RETURN(const Address address, ParseAddress(use.address));
  boost::system::error_code not_numeric;
  const auto numeric = asio::ip::make_address(address.host, not_numeric);
  if (!not_numeric) {
    co_return std::vector<Tcp::endpoint>(1, Tcp::endpoint(numeric, address.port));
  }
  struct Lookup {
    explicit Lookup(asio::io_context& io) : resolver(io) {}
    Tcp::resolver resolver;
    std::vector<Tcp::endpoint> endpoints;
    std::string error = "no answer in time";
  };
  auto lookup = std::make_shared<Lookup>(io_);
  use.resolving = std::make_shared<asio::steady_timer>(io_);
  use.resolving->expires_after(absl::ToChronoNanoseconds(options_.connect_timeout));
  lookup->resolver.async_resolve(
      address.host, std::to_string(address.port),
      [lookup, timer = use.resolving](const boost::system::error_code& error,
                                      const Tcp::resolver::results_type& found) {
        lookup->error = error ? error.message() : "";
        for (const auto& entry : found) lookup->endpoints.push_back(entry.endpoint());
        timer->cancel();
      });
  co_await use.resolving->async_wait(asio::as_tuple(asio::use_awaitable));
  use.resolving = nullptr;
  if (!use.stopped.ok()) co_return use.stopped;
  if (!lookup->endpoints.empty()) co_return lookup->endpoints;
  co_return absl::UnavailableError(
      absl::StrCat("cannot resolve ", use.address, ": ", lookup->error));
}

asio::awaitable<absl::Status> PeerPool::Handshake(PeerUse& use) {
  FrameSocket& peer = *use.peer;
  CO_RETURN_IF_ERROR(hello_.status());
  CO_RETURN_IF_ERROR(co_await peer.Write(*hello_, {}, options_.connect_timeout));
  const absl::StatusOr<Frame> frame = co_await peer.ReadFrame(options_.connect_timeout);
  if (!frame.ok()) co_return Annotate(frame.status(), peer.peer());
  if (frame->header.type != v1::FRAME_TYPE_HELLO) {
    co_return absl::FailedPreconditionError(
        absl::StrCat(peer.peer(), " answers HELLO with ", v1::FrameType_Name(frame->header.type)));
  }
  v1::Hello hello;
  CO_RETURN_IF_ERROR(wire::DecodeMeta(frame->meta, hello));
  use.answers_probes = hello.answers_probes();
  if (options_.chunks_only) co_return absl::OkStatus();
  co_return CompareIdentity(options_.identity, wire::FromHello(hello));
}

void PeerPool::Park(PeerUse& use) {
  SocketPtr peer = std::exchange(use.peer, nullptr);
  busy_.erase(peer);
  std::vector<SocketPtr>& idle = idle_[use.address];
  if (stopped_ || idle.size() >= options_.max_idle_connections_per_peer) {
    peer->Close();
    if (idle.empty()) idle_.erase(use.address);
    return;
  }
  idle.push_back(peer);
  ++n_idle_;
  // An idle server says nothing: when it does, or closes, the connection is of no use.
  peer->WatchIdle(
      [weak_self = weak_from_this(), weak_peer = std::weak_ptr(peer), address = use.address] {
        auto self = weak_self.lock();
        auto peer = weak_peer.lock();
        if (self != nullptr && peer != nullptr) self->Forget(address, peer);
      });
}

asio::awaitable<void> PeerPool::Abandon(PeerUse& use, absl::Status reason) {
  const SocketPtr peer = std::exchange(use.peer, nullptr);
  if (peer == nullptr) co_return;
  const auto self = shared_from_this();
  co_await peer->Abort(std::move(reason));
  busy_.erase(peer);
}

void PeerPool::Drop(PeerUse& use) {
  const SocketPtr peer = std::exchange(use.peer, nullptr);
  if (peer == nullptr) return;
  peer->Close();
  busy_.erase(peer);
}

void PeerPool::Forget(const std::string& address, const SocketPtr& peer) {
  auto found = idle_.find(address);
  if (found == idle_.end() || std::erase(found->second, peer) == 0) return;
  --n_idle_;
  if (found->second.empty()) idle_.erase(found);
  peer->Close();
}

void PeerPool::Shutdown() {
  stopped_ = true;
  for (const SocketPtr& peer : busy_) peer->Close();
  for (const auto& [unused, peers] : idle_) {
    for (const SocketPtr& peer : peers) peer->Close();
  }
  idle_.clear();
  n_idle_ = 0;
}

}  // namespace tandem::kvstore
