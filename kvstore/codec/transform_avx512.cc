// The kernels for AVX-512 with VNNI: a row of 16 tokens is one vector, and one instruction adds up
// the four products of a quad.
#include <immintrin.h>

#include "kvstore/codec/transform_x86.h"

namespace tandem::kvstore::codec {
namespace {

constexpr uint32_t kMaxQuads = kMaxTileChannels / 4;

// Where a group of `size` begins, of `all` in groups: the last one reaches back, because doing some
// twice is faster than doing those left over one at a time. REQUIRES: size <= all.
size_t FirstOf(size_t group, size_t size, size_t all) {
  return group + size <= all ? group : all - size;
}

__m128i LoadRow(const void* from) { return _mm_loadu_si128(static_cast<const __m128i*>(from)); }

// Sums of products of bytes (four a lane) and of 16-bit numbers (two a lane); every lane gets the
// same four bytes from `from`. In assembly because g++ 12 copies the sums about when it is left to
// the intrinsics, which costs half of the speed.
[[gnu::always_inline]] inline __m512i AddQuad(__m512i sums, __m512i symbols, const void* from) {
  asm("vpdpbusd %2%{1to16%}, %1, %0"
      : "+v"(sums)
      : "v"(symbols), "m"(*static_cast<const char(*)[4]>(from)));
  return sums;
}
[[gnu::always_inline]] inline __m512i AddPair(__m512i sums, __m512i values, const void* from) {
  asm("vpdpwssd %2%{1to16%}, %1, %0"
      : "+v"(sums)
      : "v"(values), "m"(*static_cast<const char(*)[4]>(from)));
  return sums;
}

// Four rows of 16 symbols to [token][4].
__m512i InterleaveQuad(const uint8_t* rows, size_t stride) {
  // Byte 4 t + i comes from byte t of row i.
  const __m512i first = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i order = _mm512_add_epi32(_mm512_mullo_epi32(first, _mm512_set1_epi32(0x01010101)),
                                         _mm512_set1_epi32(0x30201000));
  __m512i all = _mm512_castsi128_si512(LoadRow(rows));
  all = _mm512_inserti32x4(all, LoadRow(rows + stride), 1);
  all = _mm512_inserti32x4(all, LoadRow(rows + 2 * stride), 2);
  all = _mm512_inserti32x4(all, LoadRow(rows + 3 * stride), 3);
  return _mm512_permutexvar_epi8(order, all);
}

template <int kChannels>
void InverseChannels(const InverseBlock& block, const uint8_t* quads, size_t first,
                     const int32_t* corrections, float* values) {
  __m512i sums[kChannels];
  for (int i = 0; i < kChannels; ++i) {
    sums[i] = _mm512_set1_epi32(block.bias[first + i]);
    if (corrections) {
      sums[i] =
          _mm512_add_epi32(sums[i], _mm512_loadu_si512(corrections + (first + i) * kTileTokens));
    }
  }
  const int8_t* const basis = block.basis + first * block.basis_stride;
  for (size_t q = 0; q < block.n_quads; ++q) {
    const __m512i s = _mm512_load_si512(quads + 64 * q);
    for (int i = 0; i < kChannels; ++i) {
      sums[i] = AddQuad(sums[i], s, basis + i * block.basis_stride + 4 * q);
    }
  }
  for (int i = 0; i < kChannels; ++i) {
    const __m512 scaled =
        _mm512_mul_ps(_mm512_cvtepi32_ps(sums[i]), _mm512_set1_ps(block.scale[first + i]));
    _mm512_storeu_ps(values + (first + i) * kTileTokens,
                     _mm512_add_ps(scaled, _mm512_set1_ps(block.mean[first + i])));
  }
}

void Inverse(const InverseBlock& block, const uint8_t* symbols, size_t symbol_stride,
             const int32_t* corrections, float* values) {
  alignas(64) uint8_t quads[kMaxQuads * 64];
  for (size_t q = 0; q < block.n_quads; ++q) {
    _mm512_store_si512(quads + 64 * q,
                       InterleaveQuad(symbols + 4 * q * symbol_stride, symbol_stride));
  }
  const size_t n = block.n_channels;
  if (n < 8) {
    for (size_t c = 0; c < n; ++c) InverseChannels<1>(block, quads, c, corrections, values);
  } else {
    for (size_t c = 0; c < n; c += 8) {
      InverseChannels<8>(block, quads, FirstOf(c, 8, n), corrections, values);
    }
  }
}

// 16 values of a channel in fixed point.
__m512i ToFixed(const ForwardBlock& block, const float* values, size_t c) {
  const __m512 centred =
      _mm512_sub_ps(_mm512_loadu_ps(values + c * kTileTokens), _mm512_set1_ps(block.mean[c]));
  const __m512 scaled = _mm512_mul_ps(centred, _mm512_set1_ps(block.to_fixed[c]));
  return _mm512_cvtps_epi32(
      _mm512_max_ps(_mm512_min_ps(scaled, _mm512_set1_ps(32767.0f)), _mm512_set1_ps(-32767.0f)));
}

template <int kComponents>
void ForwardComponents(const ForwardBlock& block, const uint8_t* pairs, size_t first,
                       int16_t* integers) {
  __m512i sums[kComponents];
  for (int i = 0; i < kComponents; ++i) sums[i] = _mm512_setzero_si512();
  const size_t n = block.n_channels;
  const int16_t* const weights = block.weights + first * n;
  for (size_t c = 0; c < n; c += 2) {
    const __m512i v = _mm512_load_si512(pairs + 32 * c);
    for (int i = 0; i < kComponents; ++i) {
      sums[i] = AddPair(sums[i], v, weights + i * n + c);
    }
  }
  for (int i = 0; i < kComponents; ++i) {
    const __m512 magnitude =
        _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_abs_epi32(sums[i])),
                                    _mm512_set1_ps(block.to_steps[first + i])),
                      _mm512_set1_ps(block.rounding));
    const __m512i integer = _mm512_cvttps_epi32(_mm512_min_ps(magnitude, _mm512_set1_ps(32767.0f)));
    const __m512i with_sign = _mm512_mask_sub_epi32(integer, _mm512_movepi32_mask(sums[i]),
                                                    _mm512_setzero_si512(), integer);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(integers + (first + i) * kTileTokens),
                        _mm512_cvtepi32_epi16(with_sign));
  }
}

void Forward(const ForwardBlock& block, const float* values, int16_t* integers) {
  // Two channels as 16-bit [token][2].
  alignas(64) uint8_t pairs[kMaxTileChannels / 2 * 64];
  for (size_t c = 0; c < block.n_channels; c += 2) {
    const __m512i odd = _mm512_slli_epi32(ToFixed(block, values, c + 1), 16);
    _mm512_store_si512(pairs + 32 * c,
                       _mm512_mask_mov_epi16(odd, 0x55555555, ToFixed(block, values, c)));
  }
  const size_t n = block.n_components;
  if (n < 8) {
    for (size_t j = 0; j < n; ++j) ForwardComponents<1>(block, pairs, j, integers);
  } else {
    for (size_t j = 0; j < n; j += 8) {
      ForwardComponents<8>(block, pairs, FirstOf(j, 8, n), integers);
    }
  }
}

}  // namespace

const TransformKernels kTransformAvx512 = {
    .inverse = Inverse,
    .rotate = avx2::Rotate,
    .unrotate = avx2::Unrotate,
    .store = avx2::Store,
    .load = avx2::Load,
    .forward = Forward,
};

}  // namespace tandem::kvstore::codec
