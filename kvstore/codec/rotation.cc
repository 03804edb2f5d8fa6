// Compiled without fused operations, like the kernels: encoder and decoder must see the same bits.
#include "kvstore/codec/rotation.h"

#include <algorithm>
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
  angles.stride = (n_tokens + kTileTokens - 1) / kTileTokens * kTileTokens;
  angles.cosines.resize(radians_.size() * angles.stride);
  angles.sines.resize(radians_.size() * angles.stride);
  for (size_t pair = 0; pair < radians_.size(); ++pair) {
    for (size_t start = 0; start < angles.stride; start += kOffsets) {
      const double base =
          static_cast<double>(radians_[pair]) * (static_cast<double>(first_position) + start);
      const float c = static_cast<float>(std::cos(base)), s = static_cast<float>(std::sin(base));
      const size_t n = std::min<size_t>(kOffsets, angles.stride - start);
      float* cosines = angles.cosines.data() + pair * angles.stride + start;
      float* sines = angles.sines.data() + pair * angles.stride + start;
      const float* offset_cosines = cosines_.data() + pair * kOffsets;
      const float* offset_sines = sines_.data() + pair * kOffsets;
      for (size_t i = 0; i < n; ++i) {
        cosines[i] = c * offset_cosines[i] - s * offset_sines[i];
        sines[i] = s * offset_cosines[i] + c * offset_sines[i];
      }
    }
  }
  return angles;
}

}  // namespace tandem::kvstore::codec
