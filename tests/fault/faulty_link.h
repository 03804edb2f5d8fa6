// A link to a data plane that damages, cuts or delays what comes over it, where a test says.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>

#include "tests/support/io_thread.h"

namespace tandem::e2e {

/// What happens to the frames with chunks that the server sends. Bytes count from the first byte of
/// the first such frame: 0 to 31 are its header, the next handful its protobuf, the rest its body.
struct LinkFault {
  /// This byte arrives with its lowest bit flipped.
  std::optional<uint64_t> flip_at;
  /// Before this byte the connection ends.
  std::optional<uint64_t> cut_at;
  /// How fast such frames go; 0: as fast as they can.
  uint64_t bytes_per_s = 0;
};

/// A port that leads to another port of this machine. Thread-safe.
class FaultyLink {
 public:
  explicit FaultyLink(int server_port);
  ~FaultyLink();

  std::string Address() const { return "127.0.0.1:" + std::to_string(port_); }
  /// Ends all connections; those to come are so, and bytes are counted anew.
  void Set(LinkFault fault);
  /// Bytes of frames with chunks that arrived since.
  uint64_t chunk_bytes() const;

 private:
  using Tcp = boost::asio::ip::tcp;
  struct Connection;
  class Chunks;

  boost::asio::awaitable<void> Accept();
  static boost::asio::awaitable<void> Up(std::shared_ptr<Connection> connection);
  boost::asio::awaitable<void> Down(std::shared_ptr<Connection> connection);
  /// Passes on what has come from the server; `chunk`: it belongs to one. False when the connection
  /// ends by that.
  boost::asio::awaitable<bool> Pass(Connection& connection, bool chunk, std::string bytes);
  /// Counts and damages bytes of chunks. How many of them may be passed on.
  size_t Damage(std::string& bytes);

  const int server_port_;
  int port_ = 0;
  mutable std::mutex mutex_;
  LinkFault fault_;                                    // guarded by mutex_
  uint64_t chunk_bytes_ = 0;                           // guarded by mutex_
  std::set<std::shared_ptr<Connection>> connections_;  // the io thread's
  std::optional<testing_support::IoThread> io_;
  std::optional<Tcp::acceptor> acceptor_;
};

}  // namespace tandem::e2e
