// What the handoff is compared with: an Asio socket that carries nothing but bytes, from and to
// buffers allocated beforehand, in coroutines on the same two threads.
#pragma once

#include <boost/asio/io_context.hpp>
#include <cstdint>
#include <memory>
#include <span>

namespace tandem::bench {

class BareSocket {
 public:
  /// Connects a sender on `server` with a receiver on `client`.
  BareSocket(boost::asio::io_context& server, boost::asio::io_context& client);
  ~BareSocket();

  /// Asks for `from`'s bytes and waits until all are in `to`, of the same size. The sender hands
  /// `chunk_bytes` at a time to the socket.
  void Fetch(std::span<const uint8_t> from, std::span<uint8_t> to, size_t chunk_bytes);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace tandem::bench
