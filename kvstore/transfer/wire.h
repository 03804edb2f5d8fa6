// The data plane's frames as bytes: encoding, decoding, checksum, and the rule that positions
// have no gaps. Pure functions without sockets or threads, used by both ends and by the fuzzer.
// The format is described in proto/tandem/v1/transfer.proto.
#pragma once

#include <google/protobuf/message_lite.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kvstore/kv_layout.h"
#include "tandem/v1/transfer.pb.h"

struct XXH3_state_s;

namespace tandem::kvstore::wire {

inline constexpr size_t kHeaderBytes = 32;
/// The header's last field; the checksum covers what is before it.
inline constexpr size_t kChecksumOffset = 24;
inline constexpr uint16_t kVersion = 2;
inline constexpr uint32_t kMaxMetaBytes = 65536;
/// Far above any sequence's KV; a length beyond it is damage.
inline constexpr uint64_t kMaxBodyBytes = uint64_t{1} << 36;
/// The body of a FILL.
inline constexpr uint64_t kFillBytes = 16384;

using Bytes = std::span<const uint8_t>;

/// A header whose fields are within their limits. Its checksum has not been verified.
struct FrameHeader {
  v1::FrameType type = v1::FRAME_TYPE_UNSPECIFIED;
  uint32_t meta_bytes = 0;
  uint64_t body_bytes = 0;
  uint64_t checksum = 0;
};

/// Reads a header.
///   FAILED_PRECONDITION  the peer speaks another protocol or another version of this one
///   DATA_LOSS            an unknown type, a length over its limit, a body where none belongs
absl::StatusOr<FrameHeader> DecodeHeader(std::span<const uint8_t, kHeaderBytes> bytes);

/// Header and protobuf of a frame, ready to be followed by `body`, which the checksum covers.
/// INVALID_ARGUMENT when the protobuf is longer than kMaxMetaBytes.
absl::StatusOr<std::vector<uint8_t>> EncodeFrame(v1::FrameType type,
                                                 const google::protobuf::MessageLite& meta,
                                                 Bytes body = {});

/// Parses a frame's protobuf into `message`. DATA_LOSS when it is none.
absl::Status DecodeMeta(Bytes meta, google::protobuf::MessageLite& message);

/// What an error says of a frame that may not come `when` ("during a pull").
std::string UnexpectedFrame(v1::FrameType type, absl::string_view when);

/// The frame's checksum, XXH3-64, fed piece by piece. Not thread-safe; reusable after Reset.
class Checksum {
 public:
  Checksum();
  void Reset();
  void Update(Bytes bytes);
  uint64_t Digest() const;

 private:
  struct Free {
    void operator()(XXH3_state_s* state) const;
  };
  std::unique_ptr<XXH3_state_s, Free> state_;
};

/// The positions of one sequence's KV as its chunks come. Both ends enforce them.
class ChunkSequence {
 public:
  /// DATA_LOSS unless the chunk begins where the last one ended and has at least one token.
  absl::Status Add(uint32_t first_position, uint32_t n_tokens);
  /// DATA_LOSS unless exactly `n_tokens` positions have come.
  absl::Status End(uint32_t n_tokens) const;
  /// The position that must come next.
  uint32_t next() const { return next_; }

 private:
  uint32_t next_ = 0;
};

/// An identity as the handshake's message, and back. A name that comes twice keeps its first value.
v1::Hello ToHello(const Identity& identity);
Identity FromHello(const v1::Hello& hello);

/// A reason as an ABORT's message (cut to what fits a frame), and back. What comes back is never
/// OK: a code that means nothing here is UNKNOWN.
v1::Abort ToAbort(const absl::Status& reason);
absl::Status FromAbort(const v1::Abort& abort);

}  // namespace tandem::kvstore::wire
