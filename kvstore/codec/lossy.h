// Lossy coding of one stream: K and V of a few consecutive layers of a chunk. For codec.cc. The
// stream's format is specified in docs/kv-bitstream.md.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "kvstore/codec/codec.h"
#include "kvstore/codec/prepared.h"

namespace tandem::kvstore::codec {

/// What of a chunk a stream codes. `planes` are indices into PreparedModel::planes, in the order of
/// coding.
struct StreamPart {
  std::vector<size_t> planes;
  uint32_t first_position = 0;
  uint32_t n_tokens = 0;
  Level level = Level::kQ1;
};

/// Where a plane's element (channel, token) lies.
TilePlace PlaceOf(const PlaneInfo& plane, uint32_t n_tokens);

/// `sources`: all planes of the chunk. `keep_exact`: by token, whether it is kept exact. Appends to
/// `out`.
void EncodeLossyStream(const PreparedModel& model, const StreamPart& part,
                       const ChunkAngles& angles, std::span<const std::span<const uint8_t>> sources,
                       const std::vector<bool>& keep_exact, std::vector<uint8_t>& out);

/// `destinations`: all planes of the chunk. DATA_LOSS for what no encoder makes.
absl::Status DecodeLossyStream(const PreparedModel& model, const StreamPart& part,
                               const ChunkAngles& angles, std::span<const uint8_t> bytes,
                               std::span<const std::span<uint8_t>> destinations);

// Shared by the two files.

/// Consecutive planes of a stream whose exact rows are coded together: [plane][token] rows.
struct ExactGroup {
  ByteShape shape;
  std::vector<size_t> planes;
  /// Of one token over all of them.
  size_t row_bytes = 0;
};
std::vector<ExactGroup> ExactGroups(const PreparedModel& model, const StreamPart& part);

/// Tokens rounded up to whole tiles and groups of symbols.
constexpr size_t PaddedTokens(uint32_t n_tokens) { return (n_tokens + 31) / 32 * 32; }

/// Sets of rANS states of a stream: two are faster, and 96 bytes dearer.
size_t LossySets(const PreparedModel& model, const StreamPart& part);

/// The rotation of a tile that begins at token `first` of the chunk.
TileRotation RotationOf(const PreparedModel& model, const PlaneInfo& plane, uint32_t n_heads,
                        const ChunkAngles& angles, size_t first);

/// Reads a tile of a plane's channels from `source`, the plane's bytes of the whole chunk: keys are
/// unrotated. REQUIRES: the channels are a block of BlockLayout.
void LoadTile(const PreparedModel& model, const PlaneInfo& plane, std::span<const uint8_t> source,
              const ChunkAngles& angles, uint32_t n_tokens, uint32_t first_channel,
              uint32_t n_channels, uint32_t first, float* values);

/// Tokens per group of Prediction::kAnchor.
inline constexpr uint32_t kAnchorGroup = 10;

/// The token that token `t` is predicted from; `t` itself when from none.
constexpr uint32_t PredictedFrom(Prediction prediction, uint32_t t) {
  if (prediction == Prediction::kPrevious) return t == 0 ? 0 : t - 1;
  if (prediction == Prediction::kAnchor) return t / kAnchorGroup * kAnchorGroup;
  return t;
}

}  // namespace tandem::kvstore::codec
