// Connections to other nodes' data planes: made, greeted, kept for the next use. Used by
// HandoffClient and ChunkClient.
#pragma once

#include <atomic>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kvstore/kv_layout.h"
#include "kvstore/transfer/frame_socket.h"

namespace tandem::kvstore {

using SocketPtr = std::shared_ptr<FrameSocket>;

/// A use of a connection that can be ended from outside. Io thread only.
struct PeerUse {
  std::string address;
  /// Why it must end; OK while it runs.
  absl::Status stopped;
  SocketPtr peer;
  std::shared_ptr<boost::asio::steady_timer> resolving;
  /// The peer said so in its HELLO; set by Connect.
  bool answers_probes = false;

  void Stop(absl::Status reason);
};

/// Io thread only, but for idle_connections.
class PeerPool : public std::enable_shared_from_this<PeerPool> {
 public:
  struct Options {
    Identity identity;
    /// Only chunks are asked for: the peer's identity does not matter.
    bool chunks_only = false;
    absl::Duration connect_timeout = absl::Seconds(5);
    absl::Duration silence_timeout = absl::Seconds(10);
    uint32_t max_idle_connections_per_peer = 4;
  };
  PeerPool(boost::asio::io_context& io, Options options);

  /// Gives `use` a connection kept from an earlier use. False when there is none.
  bool TakeIdle(PeerUse& use);
  /// Gives `use` a new connection, greeted. UNAVAILABLE when the peer cannot be reached,
  /// FAILED_PRECONDITION when its protocol or identity differs.
  boost::asio::awaitable<absl::Status> Connect(PeerUse& use);
  /// Keeps the connection for the next use; closes it when there are enough.
  void Park(PeerUse& use);
  /// Closes the connection of a use that failed, telling the peer why.
  boost::asio::awaitable<void> Abandon(PeerUse& use, absl::Status reason);
  /// Closes the connection of a use without a word.
  void Drop(PeerUse& use);
  /// Closes every connection; those in use end with UNAVAILABLE.
  void Shutdown();
  size_t idle_connections() const { return n_idle_; }

 private:
  boost::asio::awaitable<absl::StatusOr<std::vector<FrameSocket::Tcp::endpoint>>> Resolve(
      PeerUse& use);
  boost::asio::awaitable<absl::Status> Handshake(PeerUse& use);
  void Use(PeerUse& use, SocketPtr peer);
  void Forget(const std::string& address, const SocketPtr& peer);

  boost::asio::io_context& io_;
  const Options options_;
  const absl::StatusOr<std::vector<uint8_t>> hello_;
  bool stopped_ = false;
  /// Connections in use, those saying goodbye included.
  std::set<SocketPtr> busy_;
  std::map<std::string, std::vector<SocketPtr>> idle_;
  std::atomic<size_t> n_idle_ = 0;
};

}  // namespace tandem::kvstore
