// Exact coding of a plane's bytes: those that carry exponents are entropy-coded, those that look
// random are copied. For the level `lossless` and for the tokens that lossy levels keep exact.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "kvstore/codec/cpu.h"

namespace tandem::kvstore::codec {

/// Which bytes of a plane are alike: byte i is of class i mod period, and classes that hold the
/// same part of an element (sign and exponent, low mantissa, a quantised block's scale, its
/// integers) share a group.
struct ByteShape {
  uint32_t period = 1;
  uint32_t n_groups = 1;
  /// Of each class, below n_groups.
  std::vector<uint8_t> group_of_class = {0};
  bool operator==(const ByteShape&) const = default;
};

/// The shape of rows of a ggml type ("f16", "bf16", "f32", "q8_0", …); one group for a type that is
/// not known.
ByteShape ShapeOfType(std::string_view type);

/// Appends the coded form of `bytes` to `out`; never more than a few bytes longer than `bytes`.
/// Deterministic, the same for every `isa`.
void EncodeLossless(std::span<const uint8_t> bytes, const ByteShape& shape, Isa isa,
                    std::vector<uint8_t>& out);

/// Decodes exactly `encoded` into exactly `out`. DATA_LOSS when that cannot be; `encoded` may be
/// anything.
absl::Status DecodeLossless(std::span<const uint8_t> encoded, const ByteShape& shape, Isa isa,
                            std::span<uint8_t> out);

}  // namespace tandem::kvstore::codec
