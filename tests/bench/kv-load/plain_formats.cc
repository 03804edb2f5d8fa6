#include "tests/bench/kv-load/plain_formats.h"

#include <zstd.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kvstore/codec/half.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tandem::bench {
namespace {

using kvstore::codec::FloatToHalf;
using kvstore::codec::HalfToFloat;

void DequantizeScalar(const int8_t* from, size_t n, float scale, uint8_t* to) {
  for (size_t i = 0; i < n; ++i) {
    const uint16_t half = FloatToHalf(static_cast<float>(from[i]) * scale);
    std::memcpy(to + 2 * i, &half, sizeof half);
  }
}

#if defined(__x86_64__)
__attribute__((target("avx2,f16c"))) void DequantizeAvx2(const int8_t* from, size_t n, float scale,
                                                         uint8_t* to) {
  const __m256 factor = _mm256_set1_ps(scale);
  for (; n >= 8; n -= 8, from += 8, to += 16) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
    const __m256 values = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                     _mm256_cvtps_ph(_mm256_mul_ps(values, factor), _MM_FROUND_TO_NEAREST_INT));
  }
  DequantizeScalar(from, n, scale, to);
}
#endif

/// As fast as the machine can: the opponent gets a fair chance.
void Dequantize(const int8_t* from, size_t n, float scale, uint8_t* to) {
#if defined(__x86_64__)
  static const bool vectors = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
  if (vectors) return DequantizeAvx2(from, n, scale, to);
#endif
  DequantizeScalar(from, n, scale, to);
}

void EncodeVector(const uint8_t* halves, size_t n, std::vector<uint8_t>& out) {
  std::vector<float> values(n);
  float largest = 0;
  for (size_t i = 0; i < n; ++i) {
    uint16_t half;
    std::memcpy(&half, halves + 2 * i, sizeof half);
    values[i] = HalfToFloat(half);
    largest = std::max(largest, std::fabs(values[i]));
  }
  const uint16_t scale = FloatToHalf(largest / 127);
  const float step = HalfToFloat(scale);
  out.push_back(static_cast<uint8_t>(scale));
  out.push_back(static_cast<uint8_t>(scale >> 8));
  for (const float value : values) {
    const float level = step > 0 ? std::clamp(std::nearbyint(value / step), -127.f, 127.f) : 0;
    out.push_back(static_cast<uint8_t>(static_cast<int8_t>(level)));
  }
}

absl::Status DoesNotFit() { return absl::DataLossError("a chunk does not have its planes' size"); }

absl::Status DecodeInt8(std::span<const uint8_t> bytes, std::span<const std::span<uint8_t>> planes,
                        std::span<const uint32_t> head_dims) {
  for (size_t p = 0; p < planes.size(); ++p) {
    const size_t n = head_dims[p];
    for (size_t at = 0; at < planes[p].size(); at += 2 * n) {
      if (bytes.size() < 2 + n) return DoesNotFit();
      const auto scale = static_cast<uint16_t>(bytes[0] | bytes[1] << 8);
      Dequantize(reinterpret_cast<const int8_t*>(bytes.data()) + 2, n, HalfToFloat(scale),
                 planes[p].data() + at);
      bytes = bytes.subspan(2 + n);
    }
  }
  return bytes.empty() ? absl::OkStatus() : DoesNotFit();
}

/// The planes of a sink need not lie side by side.
absl::Status Scatter(std::span<const uint8_t> bytes, std::span<const std::span<uint8_t>> planes) {
  for (const std::span<uint8_t> plane : planes) {
    if (bytes.size() < plane.size()) return DoesNotFit();
    std::memcpy(plane.data(), bytes.data(), plane.size());
    bytes = bytes.subspan(plane.size());
  }
  return bytes.empty() ? absl::OkStatus() : DoesNotFit();
}

}  // namespace

PlainCodec::PlainCodec(kvstore::KvLayout layout, const kvstore::KvGeometry& geometry)
    : layout_(std::move(layout)) {
  for (const auto& layer : geometry.layers) head_dims_.push_back(layer.k_head_dim);
  for (const auto& layer : geometry.layers) head_dims_.push_back(layer.v_head_dim);
}

std::vector<uint8_t> PlainCodec::Encode(Format format, const kvstore::KvChunk& chunk) const {
  if (format == Format::kRaw) return chunk.bytes;
  std::vector<uint8_t> out;
  if (format == Format::kZstd) {
    out.resize(ZSTD_compressBound(chunk.bytes.size()));
    out.resize(
        ZSTD_compress(out.data(), out.size(), chunk.bytes.data(), chunk.bytes.size(), /*level=*/1));
    return out;
  }
  const auto planes = kvstore::PlanesOf(layout_, chunk);
  for (size_t p = 0; p < planes.size(); ++p) {
    for (size_t at = 0; at < planes[p].size(); at += 2 * head_dims_[p]) {
      EncodeVector(planes[p].data() + at, head_dims_[p], out);
    }
  }
  return out;
}

absl::Status PlainCodec::Decode(Format format, std::span<const uint8_t> bytes,
                                std::span<const std::span<uint8_t>> planes) const {
  if (format == Format::kRaw) return Scatter(bytes, planes);
  if (format == Format::kInt8) return DecodeInt8(bytes, planes, head_dims_);
  size_t size = 0;
  for (const auto& plane : planes) size += plane.size();
  std::vector<uint8_t> raw(size);
  if (ZSTD_decompress(raw.data(), raw.size(), bytes.data(), bytes.size()) != size) {
    return DoesNotFit();
  }
  return Scatter(raw, planes);
}

}  // namespace tandem::bench
