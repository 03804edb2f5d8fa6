#include "kvstore/transfer/frame_socket.h"

#include <netinet/in.h>
#include <netinet/tcp.h>

#include <algorithm>
#include <array>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "base/status.h"

namespace tandem::kvstore {
namespace {

namespace asio = boost::asio;

constexpr auto kToTuple = asio::as_tuple(asio::use_awaitable);

/// Read in pieces that are still in the core's cache when they are hashed.
constexpr size_t kPieceBytes = size_t{1} << 18;
/// As many buffers as Asio hands to one system call.
constexpr size_t kMaxBuffers = 64;
constexpr absl::Duration kAbortLimit = absl::Seconds(1);

using UserTimeout = asio::detail::socket_option::integer<IPPROTO_TCP, TCP_USER_TIMEOUT>;
using KeepIdle = asio::detail::socket_option::integer<IPPROTO_TCP, TCP_KEEPIDLE>;
using KeepInterval = asio::detail::socket_option::integer<IPPROTO_TCP, TCP_KEEPINTVL>;

/// Walks over the spans of a body and hands out the next piece of them as buffers.
class SpanCursor {
 public:
  explicit SpanCursor(const std::vector<std::span<uint8_t>>& spans) : spans_(spans) {}

  std::span<const asio::mutable_buffer> Piece() {
    size_t n_buffers = 0, bytes = 0, skip = offset_;
    for (size_t i = index_; i < spans_.size() && n_buffers < kMaxBuffers && bytes < kPieceBytes;
         ++i, skip = 0) {
      const auto rest = spans_[i].subspan(skip);
      const size_t n = std::min(rest.size(), kPieceBytes - bytes);
      if (n == 0) continue;
      buffers_[n_buffers++] = asio::mutable_buffer(rest.data(), n);
      bytes += n;
    }
    return {buffers_.data(), n_buffers};
  }

  /// Passes over `n` bytes, giving them to `checksum`.
  void Advance(size_t n, wire::Checksum& checksum) {
    while (n > 0) {
      const auto rest = spans_[index_].subspan(offset_);
      const size_t taken = std::min(n, rest.size());
      checksum.Update(rest.first(taken));
      n -= taken;
      offset_ += taken;
      if (offset_ == spans_[index_].size()) {
        ++index_;
        offset_ = 0;
      }
    }
  }

 private:
  const std::vector<std::span<uint8_t>>& spans_;
  size_t index_ = 0;
  size_t offset_ = 0;
  std::array<asio::mutable_buffer, kMaxBuffers> buffers_;
};

}  // namespace

/// While it lives, one direction of the socket is waited for until a deadline at most.
class FrameSocket::Deadline {
 public:
  Deadline(FrameSocket& socket, Clock::time_point& at, absl::Duration limit)
      : socket_(socket), at_(at), limit_(limit) {
    Renew();
  }
  ~Deadline() { at_ = Clock::time_point::max(); }
  Deadline(const Deadline&) = delete;
  Deadline& operator=(const Deadline&) = delete;

  void Renew() {
    if (limit_ == absl::InfiniteDuration()) return;
    at_ = Clock::now() + absl::ToChronoNanoseconds(limit_);
    socket_.ArmTimer();
  }

 private:
  FrameSocket& socket_;
  Clock::time_point& at_;
  const absl::Duration limit_;
};

FrameSocket::FrameSocket(asio::io_context& io) : socket_(io), timer_(io), lost_(true) {}

FrameSocket::FrameSocket(Tcp::socket socket, absl::Duration user_timeout)
    : socket_(std::move(socket)), timer_(socket_.get_executor()) {
  boost::system::error_code ignored;
  SetPeer(socket_.remote_endpoint(ignored));
  Configure(user_timeout);
}

// Without keepalive and the user timeout a peer cut off from the network is noticed never or
// after many minutes. Failures are ignored: a socket that takes no options fails soon anyway.
void FrameSocket::Configure(absl::Duration user_timeout) {
  boost::system::error_code ignored;
  socket_.set_option(Tcp::no_delay(true), ignored);
  socket_.set_option(asio::socket_base::keep_alive(true), ignored);
  socket_.set_option(KeepIdle(10), ignored);
  socket_.set_option(KeepInterval(5), ignored);
  socket_.set_option(UserTimeout(static_cast<int>(absl::ToInt64Milliseconds(user_timeout))),
                     ignored);
}

// A listener for both versions of IP sees IPv4 addresses as IPv6 ones; its peer does not.
std::string FrameSocket::TextOf(const Tcp::endpoint& endpoint) {
  const asio::ip::address address = endpoint.address();
  if (!address.is_v6()) return absl::StrCat(address.to_string(), ":", endpoint.port());
  if (address.to_v6().is_v4_mapped()) {
    const auto v4 = asio::ip::make_address_v4(asio::ip::v4_mapped, address.to_v6());
    return absl::StrCat(v4.to_string(), ":", endpoint.port());
  }
  return absl::StrCat("[", address.to_string(), "]:", endpoint.port());
}

std::string FrameSocket::local() const {
  boost::system::error_code ignored;
  return TextOf(socket_.local_endpoint(ignored));
}

FrameSocket::Awaitable<absl::Status> FrameSocket::Connect(
    const std::vector<Tcp::endpoint>& endpoints, absl::Duration limit,
    absl::Duration user_timeout) {
  Deadline deadline(*this, write_deadline_, limit);
  absl::Status status = absl::UnavailableError("no address to connect to");
  for (const Tcp::endpoint& endpoint : endpoints) {
    if (!interrupted_.ok()) co_return interrupted_;
    boost::system::error_code ignored;
    socket_.close(ignored);
    SetPeer(endpoint);
    auto [error] = co_await socket_.async_connect(endpoint, kToTuple);
    if (!error) {
      lost_ = false;
      Configure(user_timeout);
      co_return absl::OkStatus();
    }
    if (!interrupted_.ok()) co_return interrupted_;
    status =
        absl::UnavailableError(absl::StrCat("cannot connect to ", peer_, ": ", error.message()));
  }
  co_return status;
}

FrameSocket::Awaitable<absl::StatusOr<Frame>> FrameSocket::ReadFrame(absl::Duration limit) {
  Deadline deadline(*this, read_deadline_, limit);
  std::array<uint8_t, wire::kHeaderBytes> bytes;
  CO_RETURN_IF_ERROR(co_await ReadExactly(bytes));
  Frame frame;
  if (auto header = wire::DecodeHeader(bytes); header.ok()) {
    frame.header = *header;
  } else {
    // Past the first frame the peer's protocol is known: strange bytes are damaged bytes.
    co_return frames_read_ == 0 ? header.status() : absl::DataLossError(header.status().message());
  }
  frame.meta.resize(frame.header.meta_bytes);
  CO_RETURN_IF_ERROR(co_await ReadExactly(frame.meta));
  ++frames_read_;
  checksum_.Reset();
  checksum_.Update(wire::Bytes(bytes).first(wire::kChecksumOffset));
  checksum_.Update(frame.meta);
  header_ = frame.header;
  if (header_.body_bytes == 0 && checksum_.Digest() != header_.checksum) {
    co_return absl::DataLossError(
        absl::StrCat("frame ", v1::FrameType_Name(header_.type), " has a wrong checksum"));
  }
  if (header_.type == v1::FRAME_TYPE_ABORT) {
    lost_ = true;
    v1::Abort abort;
    CO_RETURN_IF_ERROR(wire::DecodeMeta(frame.meta, abort));
    co_return wire::FromAbort(abort);
  }
  co_return frame;
}

FrameSocket::Awaitable<absl::Status> FrameSocket::ReadBody(std::vector<std::span<uint8_t>> spans,
                                                           absl::Duration limit) {
  Deadline deadline(*this, read_deadline_, limit);
  SpanCursor cursor(spans);
  for (auto piece = cursor.Piece(); !piece.empty(); piece = cursor.Piece()) {
    size_t n_read = 0;
    CO_RETURN_IF_ERROR(co_await ReadSome(piece, &n_read));
    cursor.Advance(n_read, checksum_);
    deadline.Renew();
  }
  if (checksum_.Digest() != header_.checksum) {
    co_return absl::DataLossError("KV chunk has a wrong checksum");
  }
  co_return absl::OkStatus();
}

FrameSocket::Awaitable<absl::Status> FrameSocket::Write(wire::Bytes head, wire::Bytes body,
                                                        absl::Duration limit) {
  Deadline deadline(*this, write_deadline_, limit);
  mid_frame_ = true;
  while (!head.empty() || !body.empty()) {
    if (!interrupted_.ok()) co_return interrupted_;
    std::array<asio::const_buffer, 2> buffers;
    buffers[0] = asio::const_buffer(head.data(), head.size());
    buffers[1] = asio::const_buffer(body.data(), body.size());
    auto [error, n] = co_await socket_.async_write_some(buffers, kToTuple);
    if (error) co_return Fail(error);
    const size_t from_head = std::min(n, head.size());
    head = head.subspan(from_head);
    body = body.subspan(n - from_head);
    deadline.Renew();
  }
  mid_frame_ = false;
  co_return absl::OkStatus();
}

FrameSocket::Awaitable<absl::Status> FrameSocket::WriteFrame(
    v1::FrameType type, const google::protobuf::MessageLite& meta, absl::Duration limit) {
  CO_ASSIGN_OR_RETURN(const std::vector<uint8_t> frame, wire::EncodeFrame(type, meta));
  co_return co_await Write(frame, {}, limit);
}

FrameSocket::Awaitable<absl::Status> FrameSocket::ReadExactly(std::span<uint8_t> into) {
  while (!into.empty()) {
    const asio::mutable_buffer buffer(into.data(), into.size());
    size_t n_read = 0;
    CO_RETURN_IF_ERROR(co_await ReadSome(std::span(&buffer, 1), &n_read));
    into = into.subspan(n_read);
  }
  co_return absl::OkStatus();
}

FrameSocket::Awaitable<absl::Status> FrameSocket::ReadSome(
    std::span<const asio::mutable_buffer> buffers, size_t* n_read) {
  if (!interrupted_.ok()) co_return interrupted_;
  auto [error, n] = co_await socket_.async_read_some(buffers, kToTuple);
  bytes_read_ += n;
  *n_read = n;
  if (arrivals_ && !error) {
    const Arrivals::Clock::time_point now = Arrivals::Clock::now();
    arrivals_->Add(n, n < asio::buffer_size(buffers) || available() == 0, now);
  }
  co_return error ? Fail(error) : absl::OkStatus();
}

absl::Status FrameSocket::Fail(const boost::system::error_code& error) {
  if (!interrupted_.ok()) return interrupted_;
  // The operation alone was cancelled, by the coroutine that runs beside it.
  if (error == asio::error::operation_aborted && !lost_) return absl::CancelledError();
  lost_ = true;
  return absl::UnavailableError(
      absl::StrCat("connection with ", peer_, " lost: ", error.message()));
}

void FrameSocket::Interrupt(absl::Status reason) {
  if (!interrupted_.ok()) return;
  interrupted_ = std::move(reason);
  boost::system::error_code ignored;
  socket_.cancel(ignored);
}

FrameSocket::Awaitable<void> FrameSocket::Abort(absl::Status reason) {
  const auto self = shared_from_this();
  if (lost_ || mid_frame_) {
    Close();
    co_return;
  }
  interrupted_ = absl::OkStatus();
  if ((co_await WriteFrame(v1::FRAME_TYPE_ABORT, wire::ToAbort(reason), kAbortLimit)).ok()) {
    boost::system::error_code ignored;
    socket_.shutdown(Tcp::socket::shutdown_send, ignored);
    // Closing with unread bytes would reset the connection, which may overtake the ABORT.
    Deadline deadline(*this, read_deadline_, kAbortLimit);
    std::vector<uint8_t> scratch(65536);
    const asio::mutable_buffer buffer(scratch.data(), scratch.size());
    size_t n_read = 0;
    while ((co_await ReadSome(std::span(&buffer, 1), &n_read)).ok()) {
    }
  }
  Close();
}

void FrameSocket::Close() {
  lost_ = true;
  if (interrupted_.ok()) interrupted_ = absl::UnavailableError("connection closed");
  boost::system::error_code ignored;
  socket_.close(ignored);
  timer_.cancel();
}

void FrameSocket::WatchIdle(std::function<void()> gone) {
  socket_.async_wait(Tcp::socket::wait_read,
                     [gone = std::move(gone)](const boost::system::error_code& error) {
                       if (!error) gone();
                     });
}

void FrameSocket::StopWatching() {
  boost::system::error_code ignored;
  socket_.cancel(ignored);
}

void FrameSocket::ArmTimer() {
  const Clock::time_point next = std::min(read_deadline_, write_deadline_);
  if (next >= timer_set_to_) return;
  timer_set_to_ = next;
  timer_.expires_at(next);
  timer_.async_wait([weak = weak_from_this()](const boost::system::error_code& error) {
    if (error) return;
    if (auto self = weak.lock()) self->OnTimer();
  });
}

void FrameSocket::OnTimer() {
  timer_set_to_ = Clock::time_point::max();
  if (Clock::now() >= std::min(read_deadline_, write_deadline_)) {
    Interrupt(absl::UnavailableError(absl::StrCat(peer_, " did not answer in time")));
  } else {
    ArmTimer();
  }
}

}  // namespace tandem::kvstore
