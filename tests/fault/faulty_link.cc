#include "tests/fault/faulty_link.h"

#include <algorithm>
#include <array>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/use_future.hpp>
#include <boost/asio/write.hpp>
#include <chrono>
#include <utility>

#include "kvstore/transfer/wire.h"

namespace tandem::e2e {

namespace asio = boost::asio;

namespace {

constexpr auto kToTuple = asio::as_tuple(asio::use_awaitable);
/// A slow link passes on what is due so often.
constexpr std::chrono::milliseconds kBeat{10};

}  // namespace

struct FaultyLink::Connection {
  explicit Connection(Tcp::socket accepted)
      : client(std::move(accepted)), server(client.get_executor()) {}
  void Close() {
    boost::system::error_code ignored;
    client.close(ignored);
    server.close(ignored);
  }
  Tcp::socket client, server;
};

/// Finds the frames with chunks in a stream, given piece by piece.
class FaultyLink::Chunks {
 public:
  /// How many of the bytes at the beginning of `bytes` are alike, and whether they are a chunk's.
  /// 0: the first frame's header is not whole yet.
  std::pair<size_t, bool> Next(const std::string& bytes) {
    if (left_ == 0) {
      if (bytes.size() < kvstore::wire::kHeaderBytes) return {0, false};
      std::array<uint8_t, kvstore::wire::kHeaderBytes> header;
      std::copy_n(bytes.begin(), header.size(), header.begin());
      const auto frame = kvstore::wire::DecodeHeader(header);
      if (!frame.ok()) return {bytes.size(), false};
      left_ = header.size() + frame->meta_bytes + frame->body_bytes;
      chunk_ = frame->type == v1::FRAME_TYPE_CHUNK;
    }
    const size_t n = std::min<uint64_t>(left_, bytes.size());
    left_ -= n;
    return {n, chunk_};
  }

 private:
  uint64_t left_ = 0;
  bool chunk_ = false;
};

FaultyLink::FaultyLink(int server_port) : server_port_(server_port), io_(std::in_place) {
  acceptor_.emplace(io_->io(), Tcp::endpoint(asio::ip::address_v4::loopback(), 0));
  port_ = acceptor_->local_endpoint().port();
  asio::co_spawn(io_->io(), Accept(), asio::detached);
}

FaultyLink::~FaultyLink() {
  asio::post(io_->io(), asio::use_future([this] {
               acceptor_->close();
               for (const auto& connection : connections_) connection->Close();
             }))
      .get();
  io_.reset();  // once all its coroutines have ended
}

void FaultyLink::Set(LinkFault fault) {
  asio::post(io_->io(), asio::use_future([this, fault] {
               for (const auto& connection : connections_) connection->Close();
               std::lock_guard lock(mutex_);
               fault_ = fault;
               chunk_bytes_ = 0;
             }))
      .get();
}

uint64_t FaultyLink::chunk_bytes() const {
  std::lock_guard lock(mutex_);
  return chunk_bytes_;
}

asio::awaitable<void> FaultyLink::Accept() {
  for (;;) {
    auto [error, socket] = co_await acceptor_->async_accept(kToTuple);
    if (error) co_return;
    auto connection = std::make_shared<Connection>(std::move(socket));
    connections_.insert(connection);
    asio::co_spawn(io_->io(), Down(connection), asio::detached);
  }
}

asio::awaitable<void> FaultyLink::Up(std::shared_ptr<Connection> connection) {
  std::array<char, 65536> buffer;
  for (;;) {
    auto [error, n] = co_await connection->client.async_read_some(asio::buffer(buffer), kToTuple);
    if (error) break;
    auto [failed, sent] =
        co_await asio::async_write(connection->server, asio::buffer(buffer.data(), n), kToTuple);
    if (failed) break;
  }
  connection->Close();
}

asio::awaitable<void> FaultyLink::Down(std::shared_ptr<Connection> connection) {
  const Tcp::endpoint server(asio::ip::address_v4::loopback(), server_port_);
  auto [refused] = co_await connection->server.async_connect(server, kToTuple);
  if (!refused) {
    asio::co_spawn(io_->io(), Up(connection), asio::detached);
    Chunks chunks;
    std::string bytes;
    std::array<char, 65536> buffer;
    for (;;) {
      auto [error, n] = co_await connection->server.async_read_some(asio::buffer(buffer), kToTuple);
      if (error) break;
      bytes.append(buffer.data(), n);
      bool goes_on = true;
      for (auto [size, chunk] = chunks.Next(bytes); size > 0 && goes_on;
           std::tie(size, chunk) = chunks.Next(bytes)) {
        goes_on = co_await Pass(*connection, chunk, bytes.substr(0, size));
        bytes.erase(0, size);
      }
      if (!goes_on) break;
    }
  }
  connection->Close();
  connections_.erase(connection);
}

size_t FaultyLink::Damage(std::string& bytes) {
  std::lock_guard lock(mutex_);
  const uint64_t begin = chunk_bytes_, end = begin + bytes.size();
  if (fault_.flip_at && *fault_.flip_at >= begin && *fault_.flip_at < end) {
    bytes[*fault_.flip_at - begin] ^= 1;
  }
  size_t left = bytes.size();
  if (fault_.cut_at && *fault_.cut_at < end) left = std::max(*fault_.cut_at, begin) - begin;
  chunk_bytes_ += left;
  return left;
}

asio::awaitable<bool> FaultyLink::Pass(Connection& connection, bool chunk, std::string bytes) {
  uint64_t rate = 0;
  if (chunk) {
    std::lock_guard lock(mutex_);
    rate = fault_.bytes_per_s;
  }
  const uint64_t beats_per_s = std::chrono::seconds(1) / kBeat;
  const size_t at_once = rate == 0 ? bytes.size() : std::max<uint64_t>(1, rate / beats_per_s);
  asio::steady_timer beat(connection.client.get_executor());
  for (size_t at = 0; at < bytes.size(); at += at_once) {
    std::string piece = bytes.substr(at, at_once);
    const size_t wanted = piece.size(), left = chunk ? Damage(piece) : wanted;
    auto [error, n] =
        co_await asio::async_write(connection.client, asio::buffer(piece.data(), left), kToTuple);
    if (error || left < wanted) co_return false;
    if (rate == 0) continue;
    beat.expires_after(kBeat);
    co_await beat.async_wait(kToTuple);
  }
  co_return true;
}

}  // namespace tandem::e2e
