// Cosines and sines of a chunk's positions, for the rotation of keys. The same for all layers and
// heads of a model, so they are made once a chunk.
#pragma once

#include <cstdint>
#include <vector>

#include "kvstore/codec/aligned.h"
#include "kvstore/codec/geometry.h"

namespace tandem::kvstore::codec {

/// Angles of n_tokens consecutive positions, in whole tiles.
struct ChunkAngles {
  /// [tile][pair][kTileTokens].
  AlignedVector<float> cosines, sines;
  /// n_rot / 2.
  size_t pairs = 0;
};

/// Makes angles: cos(a + b) from tables of a (a chunk's first position) and b (offsets), because
/// half a million calls of the mathematical library would cost more than decoding. Immutable.
class Rotations {
 public:
  Rotations() = default;
  explicit Rotations(const Rope& rope);

  ChunkAngles At(uint32_t first_position, uint32_t n_tokens) const;

 private:
  static constexpr uint32_t kOffsets = 256;
  std::vector<float> radians_;
  /// [pair][kOffsets].
  std::vector<float> cosines_, sines_;
};

}  // namespace tandem::kvstore::codec
