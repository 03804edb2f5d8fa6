// A peer that a test plays itself, byte by byte, over a blocking socket.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/write.hpp>
#include <memory>
#include <optional>
#include <vector>

#include "kvstore/transfer/frame_socket.h"
#include "kvstore/transfer/wire.h"

namespace tandem::kvstore {

/// A whole frame as bytes.
inline std::vector<uint8_t> FrameOf(v1::FrameType type, const google::protobuf::MessageLite& meta,
                                    const std::vector<uint8_t>& body = {}) {
  std::vector<uint8_t> frame = *wire::EncodeFrame(type, meta, body);
  frame.insert(frame.end(), body.begin(), body.end());
  return frame;
}

class RawPeer {
 public:
  using Tcp = boost::asio::ip::tcp;

  static RawPeer Connect(uint16_t port) {
    RawPeer peer;
    peer.socket_.connect(Tcp::endpoint(boost::asio::ip::address_v4::loopback(), port));
    return peer;
  }
  static RawPeer Accept(Tcp::acceptor& acceptor) {
    RawPeer peer;
    acceptor.accept(peer.socket_);
    return peer;
  }

  /// Sends what the other side takes; that it may have closed is part of the game.
  void Send(const std::vector<uint8_t>& bytes) {
    boost::system::error_code ignored;
    boost::asio::write(socket_, boost::asio::buffer(bytes), ignored);
  }
  void FinishSending() {
    boost::system::error_code ignored;
    socket_.shutdown(Tcp::socket::shutdown_send, ignored);
  }
  void Close() { socket_.close(); }

  /// Nothing when the connection ended before.
  std::optional<std::vector<uint8_t>> ReadBytes(size_t n) {
    std::vector<uint8_t> bytes(n);
    boost::system::error_code error;
    boost::asio::read(socket_, boost::asio::buffer(bytes), error);
    if (error) return std::nullopt;
    return bytes;
  }
  /// The next frame, with its body passed over. Nothing at the end of the connection.
  std::optional<Frame> ReadFrame() {
    const auto bytes = ReadBytes(wire::kHeaderBytes);
    if (!bytes) return std::nullopt;
    Frame frame;
    frame.header = *wire::DecodeHeader(std::span<const uint8_t, wire::kHeaderBytes>(*bytes));
    frame.meta = ReadBytes(frame.header.meta_bytes).value();
    if (!ReadBytes(frame.header.body_bytes)) return std::nullopt;
    return frame;
  }
  /// The reason in the ABORT that comes next (after any WAIT); OK when something else does.
  absl::Status ReadAbort() {
    auto frame = ReadFrame();
    while (frame && frame->header.type == v1::FRAME_TYPE_WAIT) frame = ReadFrame();
    if (!frame || frame->header.type != v1::FRAME_TYPE_ABORT) return absl::OkStatus();
    v1::Abort abort;
    if (!wire::DecodeMeta(frame->meta, abort).ok()) return absl::OkStatus();
    return wire::FromAbort(abort);
  }
  bool AtEnd() { return !ReadBytes(1).has_value(); }

 private:
  RawPeer() : io_(std::make_unique<boost::asio::io_context>()), socket_(*io_) {}

  std::unique_ptr<boost::asio::io_context> io_;
  Tcp::socket socket_;
};

}  // namespace tandem::kvstore
