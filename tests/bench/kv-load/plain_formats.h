// The ways of storing KV that Tandem's is compared with.
#pragma once

#include <array>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kvstore/codec/geometry.h"
#include "kvstore/kv_layout.h"

namespace tandem::bench {

enum class Format : uint8_t {
  kRaw,   // f16 as it is
  kInt8,  // each token's and head's vector: 8-bit integers and an f16 scale
  kZstd,  // zstd -1 of kRaw
};
inline constexpr std::array kAllFormats = {Format::kRaw, Format::kInt8, Format::kZstd};

/// The KV of one model, which must be f16 and token-major.
class PlainCodec {
 public:
  PlainCodec(kvstore::KvLayout layout, const kvstore::KvGeometry& geometry);

  std::vector<uint8_t> Encode(Format format, const kvstore::KvChunk& chunk) const;
  /// Decodes into the chunk's planes. DATA_LOSS when `bytes` do not fit them.
  absl::Status Decode(Format format, std::span<const uint8_t> bytes,
                      std::span<const std::span<uint8_t>> planes) const;

 private:
  const kvstore::KvLayout layout_;
  /// Of each plane.
  std::vector<uint32_t> head_dims_;
};

}  // namespace tandem::bench
