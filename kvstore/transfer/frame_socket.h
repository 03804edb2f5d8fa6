// A TCP socket that carries the data plane's frames: reads, writes, time limits and the ways to
// end. Used by both ends, one frame at a time in each direction.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/system/error_code.hpp>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kvstore/transfer/arrivals.h"
#include "kvstore/transfer/send_state.h"
#include "kvstore/transfer/wire.h"

namespace tandem::kvstore {

/// A frame but for its body.
struct Frame {
  wire::FrameHeader header;
  std::vector<uint8_t> meta;
};

/// Not thread-safe: the io thread alone uses it. One read and one write may run at once.
class FrameSocket : public std::enable_shared_from_this<FrameSocket> {
 public:
  using Tcp = boost::asio::ip::tcp;
  template <typename T>
  using Awaitable = boost::asio::awaitable<T>;

  /// For a peer to connect to.
  explicit FrameSocket(boost::asio::io_context& io);
  /// For a peer that has connected. `user_timeout`: see Configure.
  FrameSocket(Tcp::socket socket, absl::Duration user_timeout);

  /// UNAVAILABLE when none of `endpoints` answers within `limit`.
  Awaitable<absl::Status> Connect(const std::vector<Tcp::endpoint>& endpoints, absl::Duration limit,
                                  absl::Duration user_timeout);

  /// The next frame, which must be whole within `limit`. When it has no body its checksum was
  /// right; else ReadBody must be next.
  ///   UNAVAILABLE          the peer went away or fell silent
  ///   DATA_LOSS            not a frame, or damaged
  ///   FAILED_PRECONDITION  the first frame shows another protocol or version
  ///   otherwise            the reason in the peer's ABORT
  Awaitable<absl::StatusOr<Frame>> ReadFrame(absl::Duration limit);
  /// Reads the body of the frame read last into `spans`, which hold exactly its bytes; the peer
  /// may not be silent for longer than `limit`. DATA_LOSS when the checksum is wrong.
  Awaitable<absl::Status> ReadBody(std::vector<std::span<uint8_t>> spans, absl::Duration limit);
  /// Sends `head`, then `body`. UNAVAILABLE when the peer went away or took nothing for `limit`.
  Awaitable<absl::Status> Write(wire::Bytes head, wire::Bytes body, absl::Duration limit);
  /// Encodes and sends a frame without a body.
  Awaitable<absl::Status> WriteFrame(v1::FrameType type, const google::protobuf::MessageLite& meta,
                                     absl::Duration limit);

  /// Ends what is in progress, and every later operation, with `reason`.
  void Interrupt(absl::Status reason);
  /// Tells the peer why, unless that cannot reach it, and closes. Takes a second at most.
  Awaitable<void> Abort(absl::Status reason);
  /// Closes at once; what is in progress ends with UNAVAILABLE.
  void Close();

  /// Runs `gone` when an idle peer closes or says something. Ends with StopWatching.
  void WatchIdle(std::function<void()> gone);
  void StopWatching();

  /// There is no connection, or it failed, or the peer has said its last word.
  bool lost() const { return lost_; }
  /// Bytes received since the connection was made.
  uint64_t bytes_read() const { return bytes_read_; }
  /// Takes note from now on of when bytes arrive, and ends that: see Arrivals::Tail.
  void StartTiming() { arrivals_.emplace(); }
  Timed StopTiming() {
    if (!arrivals_) return {};
    arrivals_->End(Clock::now());
    const Timed tail = arrivals_->Tail();
    arrivals_.reset();
    return tail;
  }
  /// Bytes that have arrived and were not read yet.
  size_t available() const {
    boost::system::error_code ignored;
    return socket_.available(ignored);
  }
  /// With the rate that is to be believed.
  SendState send_state() {
    SendState state = ReadSendState(socket_.native_handle());
    state.bytes_per_s = rate_.Update(state);
    return state;
  }
  /// The peer's address and port, and our own.
  const std::string& peer() const { return peer_; }
  std::string local() const;

 private:
  using Clock = std::chrono::steady_clock;
  class Deadline;

  /// `user_timeout`: how long the network may leave sent data unacknowledged, or the peer may
  /// refuse to take any, before the kernel gives the connection up.
  void Configure(absl::Duration user_timeout);
  void SetPeer(const Tcp::endpoint& peer) { peer_ = TextOf(peer); }
  static std::string TextOf(const Tcp::endpoint& endpoint);
  absl::Status Fail(const boost::system::error_code& error);
  Awaitable<absl::Status> ReadExactly(std::span<uint8_t> into);
  Awaitable<absl::Status> ReadSome(std::span<const boost::asio::mutable_buffer> buffers,
                                   size_t* n_read);
  /// Sees to it that the timer fires at the earlier deadline, or before.
  void ArmTimer();
  void OnTimer();

  Tcp::socket socket_;
  boost::asio::steady_timer timer_;
  BelievedRate rate_;
  std::string peer_;
  Clock::time_point read_deadline_ = Clock::time_point::max();
  Clock::time_point write_deadline_ = Clock::time_point::max();
  Clock::time_point timer_set_to_ = Clock::time_point::max();
  absl::Status interrupted_;
  bool lost_ = false;
  /// A frame was sent in part: nothing that follows would be understood.
  bool mid_frame_ = false;
  uint64_t bytes_read_ = 0;
  std::optional<Arrivals> arrivals_;
  uint64_t frames_read_ = 0;
  wire::FrameHeader header_;
  wire::Checksum checksum_;
};

}  // namespace tandem::kvstore
