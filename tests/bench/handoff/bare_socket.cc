// See bare_socket.h.
#include "tests/bench/handoff/bare_socket.h"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/use_future.hpp>
#include <boost/asio/write.hpp>

namespace tandem::bench {

namespace asio = boost::asio;
using Tcp = asio::ip::tcp;
using asio::use_awaitable;

struct BareSocket::State {
  State(asio::io_context& server, asio::io_context& client) : sender(server), receiver(client) {
    Tcp::acceptor acceptor(server, Tcp::endpoint(asio::ip::address_v4::loopback(), 0));
    receiver.connect(acceptor.local_endpoint());
    acceptor.accept(sender);
    for (Tcp::socket* socket : {&sender, &receiver}) socket->set_option(Tcp::no_delay(true));
  }
  Tcp::socket sender;
  Tcp::socket receiver;
};

namespace {

// Asio's own async_write and async_read move 64 KiB a system call and are slower: as strong an
// opponent as we can make hands over all that there is.
asio::awaitable<void> Send(Tcp::socket& socket, std::span<const uint8_t> from, size_t chunk_bytes) {
  uint8_t request = 0;
  co_await asio::async_read(socket, asio::mutable_buffer(&request, 1), use_awaitable);
  while (!from.empty()) {
    const size_t n = std::min(chunk_bytes, from.size());
    std::span<const uint8_t> chunk = from.first(n);
    while (!chunk.empty()) {
      chunk = chunk.subspan(co_await socket.async_write_some(
          asio::const_buffer(chunk.data(), chunk.size()), use_awaitable));
    }
    from = from.subspan(n);
  }
}

asio::awaitable<void> Receive(Tcp::socket& socket, std::span<uint8_t> to) {
  const uint8_t request = 1;
  co_await asio::async_write(socket, asio::const_buffer(&request, 1), use_awaitable);
  while (!to.empty()) {
    to = to.subspan(
        co_await socket.async_read_some(asio::mutable_buffer(to.data(), to.size()), use_awaitable));
  }
}

}  // namespace

BareSocket::BareSocket(asio::io_context& server, asio::io_context& client)
    : state_(std::make_unique<State>(server, client)) {}

BareSocket::~BareSocket() = default;

void BareSocket::Fetch(std::span<const uint8_t> from, std::span<uint8_t> to, size_t chunk_bytes) {
  auto sent = asio::co_spawn(state_->sender.get_executor(), Send(state_->sender, from, chunk_bytes),
                             asio::use_future);
  asio::co_spawn(state_->receiver.get_executor(), Receive(state_->receiver, to), asio::use_future)
      .get();
  sent.get();
}

}  // namespace tandem::bench
