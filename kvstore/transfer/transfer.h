// The data plane's two ends: a HandoffServer publishes sequences' KV on a prefill worker, a
// HandoffClient pulls it on a decode worker. Frames: proto/tandem/v1/transfer.proto.
//
// Threads: both run on the io_context that they are given, which one thread runs (the worker's
// data-plane thread). All public members are thread-safe and, but for Stop, never block; callbacks
// run on the io_context's thread and must not block.
#pragma once

#include <array>
#include <boost/asio/io_context.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/request_context.h"
#include "kvstore/codec/level.h"
#include "kvstore/kv_layout.h"
#include "kvstore/transfer/link_table.h"

namespace tandem::kvstore {

class Store;

/// How a chunk's body is encoded on the wire: 0 as it lies in the cache, else codec::Level + 1.
inline constexpr size_t kEncodings = codec::kAllLevels.size() + 1;
inline constexpr size_t EncodingOf(codec::Level level) { return static_cast<size_t>(level) + 1; }

/// Encodes and decodes KV, on threads of its own. Thread-safe.
class ChunkCoder {
 public:
  virtual ~ChunkCoder() = default;
  /// Bit i: encoding i is possible.
  virtual uint32_t encodings() const = 0;
  /// codec::Profile::id, 0 for none.
  virtual uint64_t profile_id() const = 0;
  /// Encoded bytes by raw bytes, as measured so far.
  virtual double SizeRatio(codec::Level level) const = 0;
  /// `done` runs on a thread of the coder's and must not block.
  virtual void Encode(std::shared_ptr<const KvChunk> chunk, codec::Level level,
                      std::function<void(absl::StatusOr<std::vector<uint8_t>>)> done) = 0;
  /// Decodes the KV of `n_tokens` from `first_position` into `planes`, which must live until `done`
  /// has run. Errors of codec::Codec::Decode; DATA_LOSS when it is another chunk's.
  virtual void Decode(std::vector<uint8_t> bytes, uint32_t first_position, uint32_t n_tokens,
                      std::vector<std::span<uint8_t>> planes,
                      std::function<void(absl::Status)> done) = 0;
};

/// What a handoff has moved.
struct HandoffStats {
  uint64_t bytes = 0;
  uint32_t chunks = 0;
  /// Of these, by encoding.
  std::array<uint32_t, kEncodings> encodings{};
  /// Pull sent to end received.
  absl::Duration duration;
};

/// What the sender goes by when it chooses encodings: the finest with which the last chunk arrives
/// soon after it is computed.
struct HandoffPlan {
  /// The coarsest level that may be used.
  codec::Level floor = codec::Level::kLossless;
  /// Tokens in all.
  uint32_t n_tokens = 0;
  uint32_t chunk_tokens = 0;
  /// Seconds to compute a token; 0: not known.
  double seconds_per_token = 0;
};

/// What ends a sequence's KV: sent to the puller after the last chunk.
struct HandoffEnd {
  /// The prompt's length; must equal the positions appended.
  uint32_t n_tokens = 0;
  /// The token that the prefill worker sampled.
  int32_t first_token = 0;
};

/// A sequence's KV on offer. States:
///
///   open     ── Append* ──> open ── Finish ──> finished ── pulled (DONE) ──> released(OK)
///   open     ── Abort / connection to its puller lost ──> released(error)
///   finished ── Abort / puller lost / lease expired (not being pulled for `lease`) ──>
///   released(error)
///
/// On entering `released` its memory is dropped and `on_released` runs, exactly once. A pull in
/// progress sends what is appended as it is appended; Append never waits (it computes the chunk's
/// checksum in the caller's thread, at tens of GB/s).
///
/// Also released with an error: by chunks that leave a hole or overlap, by Finish with another
/// number of tokens (DATA_LOSS), by the cancellation of the request's context (its reason), and
/// by dropping the last reference to an open one (ABORTED).
class Publication {
 public:
  virtual ~Publication() = default;
  /// Adds the next chunk: first_position must continue. Ignored after release. Thread-safe, but
  /// the order of calls is the order of chunks.
  virtual void Append(std::shared_ptr<const KvChunk> chunk) = 0;
  void Append(KvChunk chunk) { Append(std::make_shared<const KvChunk>(std::move(chunk))); }
  /// No more chunks; the lease runs from now.
  virtual void Finish(HandoffEnd end) = 0;
  /// Drops the KV and sends `reason` to the puller, if there is one. Ignored after release.
  virtual void Abort(absl::Status reason) = 0;
};

/// Offers KV for pulling.
class HandoffServer {
 public:
  struct Options {
    /// host:port to listen on; port 0 chooses a free one.
    std::string listen;
    Identity identity;
    /// Serves its chunks besides; null: none. Must outlive the server.
    Store* chunks = nullptr;
    /// Null: KV is sent as it lies in the cache. Must outlive the server.
    ChunkCoder* coder = nullptr;
    /// Told what peers that probe have measured in the other direction; null: nobody. Must outlive
    /// the server.
    LinkTable* links = nullptr;
    /// Of the time that the port may be busy with answering probes.
    double probe_share = 0.01;
    /// How long finished KV waits for its puller, and how long a stalled one is waited for.
    absl::Duration lease = absl::Seconds(30);
    /// More are refused with RESOURCE_EXHAUSTED.
    uint32_t max_connections = 1024;
    /// A connection that says nothing is closed: before its HELLO, and between pulls.
    absl::Duration handshake_timeout = absl::Seconds(10);
    absl::Duration idle_timeout = absl::Minutes(5);
  };
  /// Starts listening. INVALID_ARGUMENT for a bad address or an identity too long for a frame,
  /// UNAVAILABLE when the address cannot be bound.
  static absl::StatusOr<std::unique_ptr<HandoffServer>> Start(boost::asio::io_context& io,
                                                              Options options);
  virtual ~HandoffServer() = default;

  /// Called with the outcome when a publication is released. `stats` counts what was sent.
  using ReleaseCallback = std::function<void(absl::Status outcome, HandoffStats stats)>;
  /// Puts a sequence on offer under `handoff_id`, for one pull.
  ///   ALREADY_EXISTS    the id is taken
  ///   INVALID_ARGUMENT  the id does not have 16 bytes
  ///   UNAVAILABLE       the server was stopped
  virtual absl::StatusOr<std::shared_ptr<Publication>> Publish(std::string handoff_id,
                                                               RequestContextPtr context,
                                                               HandoffPlan plan,
                                                               ReleaseCallback on_released) = 0;
  /// The port it listens on.
  virtual uint16_t port() const = 0;
  /// Publications not yet released, their bytes, and open connections.
  virtual size_t publications() const = 0;
  virtual uint64_t held_bytes() const = 0;
  virtual size_t connections() const = 0;
  /// Closes the listener and every connection, aborts every publication with UNAVAILABLE, and
  /// waits until the io_context has run all callbacks and has nothing of this object to run any
  /// more. Called on the io_context's own thread it does not wait. The destructor calls it.
  /// REQUIRES: another thread runs the io_context, or it was stopped; the caller holds no lock
  /// that a callback takes.
  virtual void Stop() = 0;
};

/// Pulls KV. Keeps a few idle connections per peer for the next pull.
class HandoffClient {
 public:
  struct Options {
    Identity identity;
    /// Null: KV comes as it lies in the cache. Must outlive the client.
    ChunkCoder* coder = nullptr;
    /// KvLayout::BytesPerToken; used with a coder only.
    uint64_t raw_bytes_per_token = 0;
    /// Told what pulls show of their links: bytes/s while a chunk arrives (not while it is
    /// computed), and TCP's least round-trip time. Null: nobody. Must outlive the client.
    LinkTable* links = nullptr;
    absl::Duration connect_timeout = absl::Seconds(5);
    /// Longest silence of the peer during a pull; it says WAIT every second while it computes.
    absl::Duration silence_timeout = absl::Seconds(10);
    uint32_t max_idle_connections_per_peer = 4;
  };
  static std::unique_ptr<HandoffClient> Create(boost::asio::io_context& io, Options options);
  virtual ~HandoffClient() = default;

  struct Result {
    HandoffEnd end;
    HandoffStats stats;
  };
  using PullCallback = std::function<void(absl::StatusOr<Result> result)>;
  /// Pulls `handoff_id` from the server at `address` (host:port) into `sink`, which must live
  /// until `done` has run, exactly once. Cancelling the request's context aborts the pull and
  /// tells the server.
  ///   UNAVAILABLE          the peer cannot be reached, went away or fell silent
  ///   NOT_FOUND            the peer does not offer this id (any more)
  ///   DATA_LOSS            a checksum or the sequence of positions was wrong
  ///   FAILED_PRECONDITION  the peer's identity or protocol version differs
  ///   ALREADY_EXISTS       somebody else is pulling it
  ///   RESOURCE_EXHAUSTED   the peer has its limit of connections
  ///   DEADLINE_EXCEEDED    the request's deadline has passed
  ///   otherwise            the reason given to Abort or to the context's Cancel
  virtual void Pull(RequestContextPtr context, std::string address, std::string handoff_id,
                    KvSink* sink, PullCallback done) = 0;
  virtual size_t idle_connections() const = 0;
  /// Aborts what runs with UNAVAILABLE, closes every connection, and waits like
  /// HandoffServer::Stop. Pulls that come later fail with UNAVAILABLE.
  virtual void Stop() = 0;
};

}  // namespace tandem::kvstore
