// What the codec needs to know of a model: heads, their widths, and how keys were rotated. Found by
// workers/engine/geometry, used by codec and profile. Plain data; knows nothing of libllama.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace tandem::kvstore {

/// Rotary position embedding: at position p, the i-th pair of a key's channels is turned by
/// p × radians_per_position[i].
struct Rope {
  enum class Style {
    /// Keys are coded as they are: the model does not rotate them, or not in a way known here.
    kNone,
    /// Pairs (2i, 2i + 1).
    kInterleaved,
    /// Pairs (i, i + n_rot / 2).
    kHalves,
  };
  Style style = Style::kNone;
  /// Channels of a head, from the first, that are rotated; even, at most the head's width.
  uint32_t n_rot = 0;
  /// n_rot / 2 angles, after frequency factors, linear scaling and YaRN.
  std::vector<float> radians_per_position;
  bool operator==(const Rope&) const = default;
};

/// A model's KV cache, layer by layer. No layers when it is opaque.
struct KvGeometry {
  struct Layer {
    uint32_t n_kv_heads = 0;
    /// Channels of one head. A V of 0 is not cached (MLA).
    uint32_t k_head_dim = 0, v_head_dim = 0;
    bool operator==(const Layer&) const = default;
  };
  std::vector<Layer> layers;
  /// The same for all layers.
  Rope rope;
  bool operator==(const KvGeometry&) const = default;
};

/// Turns one head's key by `sign` × `position` × radians, in place, in double precision: the
/// reference that faster code is compared with. Does nothing for Style::kNone.
/// REQUIRES: head.size() >= rope.n_rot, radians_per_position.size() == n_rot / 2.
void Rotate(const Rope& rope, std::span<float> head, double position, int sign);

}  // namespace tandem::kvstore
