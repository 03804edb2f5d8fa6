// How a sequence's KV cache looks as bytes, on the wire and in every tier. Written by the engine,
// read by transfer and codec; none of them knows libllama's own format.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace tandem::kvstore {

/// Everything that must be equal on two workers for KV to mean the same on both; name to value,
/// in readable form. Compared property by property in the data plane's handshake.
using Identity = std::map<std::string, std::string>;

/// OK, or FAILED_PRECONDITION naming every property that differs with both values.
absl::Status CompareIdentity(const Identity& ours, const Identity& theirs);

/// One plane: the K or the V rows of one layer.
struct PlaneLayout {
  /// ggml's element type, e.g. "f16", "q8_0".
  std::string type;
  /// Bytes of one token's row. REQUIRES: > 0.
  uint64_t row_bytes = 0;
  /// Channel-major: the plane holds, channel after channel, `element_bytes` for each token (V
  /// without flash attention). 0 for the usual token-major rows.
  uint32_t element_bytes = 0;
  bool operator==(const PlaneLayout&) const = default;
};

/// A sequence's KV: planes in a fixed order (K of every layer, then V of every layer), or one
/// opaque blob for models whose memory is not a plain per-token cache.
struct KvLayout {
  /// True: no planes; the state of a whole sequence is one blob that cannot be cut by tokens.
  bool opaque = false;
  std::vector<PlaneLayout> planes;

  /// Bytes of KV per token over all planes; 0 when opaque.
  uint64_t BytesPerToken() const;
  bool operator==(const KvLayout&) const = default;
};

/// KV of `n_tokens` consecutive positions from `first_position`: for every plane of the layout in
/// order, its bytes for these tokens (token-major: n_tokens rows; channel-major: for each channel
/// n_tokens elements). When the layout is opaque: the blob of a whole sequence, first_position 0.
struct KvChunk {
  uint32_t first_position = 0;
  uint32_t n_tokens = 0;
  std::vector<uint8_t> bytes;
};

/// `bytes` of `n_tokens` tokens, plane by plane in the layout's order; one span of all when it is
/// opaque. REQUIRES: they have the layout's size.
template <typename Byte>
std::vector<std::span<Byte>> PlanesOf(const KvLayout& layout, uint32_t n_tokens,
                                      std::span<Byte> bytes) {
  if (layout.opaque) return {bytes};
  std::vector<std::span<Byte>> planes;
  for (const PlaneLayout& plane : layout.planes) {
    planes.push_back(bytes.first(plane.row_bytes * n_tokens));
    bytes = bytes.subspan(planes.back().size());
  }
  return planes;
}
inline std::vector<std::span<const uint8_t>> PlanesOf(const KvLayout& layout,
                                                      const KvChunk& chunk) {
  return PlanesOf(layout, chunk.n_tokens, std::span<const uint8_t>(chunk.bytes));
}
inline std::vector<std::span<uint8_t>> PlanesOf(const KvLayout& layout, KvChunk& chunk) {
  return PlanesOf(layout, chunk.n_tokens, std::span<uint8_t>(chunk.bytes));
}

/// Receives one sequence's KV, chunk after chunk, in memory of the receiver's own choosing, so
/// that the socket writes to the final place. Not thread-safe; one sequence each.
class KvSink {
 public:
  virtual ~KvSink() = default;
  /// Memory for a chunk of `body_bytes`, as spans to be filled in order; their sizes sum up to
  /// body_bytes. Valid until the next call of a member.
  /// INVALID_ARGUMENT when the chunk leaves a hole, overlaps, passes the expected end, or has
  /// the wrong size for its tokens.
  virtual absl::StatusOr<std::vector<std::span<uint8_t>>> Prepare(uint32_t first_position,
                                                                  uint32_t n_tokens,
                                                                  uint64_t body_bytes) = 0;
  /// The chunk prepared last has arrived whole and its checksum was right.
  virtual void Commit() = 0;
};

}  // namespace tandem::kvstore
