#include "kvstore/codec/geometry.h"

#include <cmath>

namespace tandem::kvstore {

void Rotate(const Rope& rope, std::span<float> head, double position, int sign) {
  if (rope.style == Rope::Style::kNone) return;
  const bool interleaved = rope.style == Rope::Style::kInterleaved;
  const uint32_t half = rope.n_rot / 2;
  for (uint32_t i = 0; i < half; ++i) {
    float& a = head[interleaved ? 2 * i : i];
    float& b = head[interleaved ? 2 * i + 1 : i + half];
    const double angle = sign * position * rope.radians_per_position[i];
    const double cosine = std::cos(angle), sine = std::sin(angle);
    const double x = a, y = b;
    a = static_cast<float>(x * cosine - y * sine);
    b = static_cast<float>(x * sine + y * cosine);
  }
}

}  // namespace tandem::kvstore
