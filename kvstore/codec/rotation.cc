// Compiled without fused operations, like the kernels: encoder and decoder must see the same bits.
#include "kvstore/codec/rotation.h"

#include <cmath>

#include "kvstore/codec/transform.h"

namespace tandem::kvstore::codec {

Rotations::Rotations(const Rope& rope) : radians_(rope.radians_per_position) {
  for (const float radians : radians_) {
    for (uint32_t offset = 0; offset < kOffsets; ++offset) {
      const double angle = static_cast<double>(radians) * offset;
      cosines_.push_back(static_cast<float>(std::cos(angle)));
      sines_.push_back(static_cast<float>(std::sin(angle)));
    }
  }
}

ChunkAngles Rotations::At(uint32_t first_position, uint32_t n_tokens) const {
  ChunkAngles angles;
  angles.pairs = radians_.size();
  const size_t tiles = (n_tokens + kTileTokens - 1) / kTileTokens;
  angles.cosines.resize(tiles * angles.pairs * kTileTokens);
  angles.sines.resize(tiles * angles.pairs * kTileTokens);
  constexpr size_t kTiles = kOffsets / kTileTokens;  // that share a base
  for (size_t pair = 0; pair < angles.pairs; ++pair) {
    float c = 0, s = 0;
    for (size_t tile = 0; tile < tiles; ++tile) {
      const size_t offset = tile % kTiles * kTileTokens;
      if (offset == 0) {
        const double base =
            static_cast<double>(radians_[pair]) *
            (static_cast<double>(first_position) + static_cast<double>(tile * kTileTokens));
        c = static_cast<float>(std::cos(base));
        s = static_cast<float>(std::sin(base));
      }
      const float* offset_cosines = cosines_.data() + pair * kOffsets + offset;
      const float* offset_sines = sines_.data() + pair * kOffsets + offset;
      float* cosines = angles.cosines.data() + (tile * angles.pairs + pair) * kTileTokens;
      float* sines = angles.sines.data() + (tile * angles.pairs + pair) * kTileTokens;
      for (size_t i = 0; i < kTileTokens; ++i) {
        cosines[i] = c * offset_cosines[i] - s * offset_sines[i];
        sines[i] = s * offset_cosines[i] + c * offset_sines[i];
      }
    }
  }
  return angles;
}

}  // namespace tandem::kvstore::codec
