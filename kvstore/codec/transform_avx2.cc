// The kernels for AVX2: a row of 16 tokens is two vectors. What is rare (tiles of fewer tokens or
// channels, 32-bit floats) is left to the scalar kernels.
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

__m256i LoadBits(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
void StoreBits(void* to, __m256i bits) { _mm256_storeu_si256(static_cast<__m256i*>(to), bits); }
__m128i LoadHalf(const void* from) { return _mm_loadu_si128(static_cast<const __m128i*>(from)); }
__m256i Join(__m128i low, __m128i high) { return _mm256_set_m128i(high, low); }
// Four bytes or two 16-bit numbers, which every lane gets.
__m256i Broadcast(const void* from) {
  return _mm256_castps_si256(_mm256_broadcast_ss(static_cast<const float*>(from)));
}

// Four rows of 16 symbols to [token][4].
void InterleaveQuad(const uint8_t* rows, size_t stride, uint8_t* quad) {
  const __m128i r0 = LoadHalf(rows), r1 = LoadHalf(rows + stride);
  const __m128i r2 = LoadHalf(rows + 2 * stride), r3 = LoadHalf(rows + 3 * stride);
  const __m128i low01 = _mm_unpacklo_epi8(r0, r1), high01 = _mm_unpackhi_epi8(r0, r1);
  const __m128i low23 = _mm_unpacklo_epi8(r2, r3), high23 = _mm_unpackhi_epi8(r2, r3);
  StoreBits(quad, Join(_mm_unpacklo_epi16(low01, low23), _mm_unpackhi_epi16(low01, low23)));
  StoreBits(quad + 32,
            Join(_mm_unpacklo_epi16(high01, high23), _mm_unpackhi_epi16(high01, high23)));
}

// Keeps g++ from making a tree of a chain of sums, and from copying them about: it runs out of
// registers then, and the loop takes twice as long.
[[gnu::always_inline]] inline __m256i Pin(__m256i sums) {
  asm("" : "+x"(sums));
  return sums;
}

template <int kChannels>
[[gnu::always_inline]] inline void AddWideQuad(const int8_t* basis, size_t stride,
                                               const uint8_t* quad, __m256i (&sums)[kChannels][2]) {
  const __m256i ones = _mm256_set1_epi16(1);
  const __m256i s0 = LoadBits(quad), s1 = LoadBits(quad + 32);
  for (int i = 0; i < kChannels; ++i) {
    const __m256i b = Broadcast(basis + i * stride);
    const __m256i p0 = _mm256_maddubs_epi16(s0, b), p1 = _mm256_maddubs_epi16(s1, b);
    sums[i][0] = Pin(_mm256_add_epi32(sums[i][0], _mm256_madd_epi16(p0, ones)));
    sums[i][1] = Pin(_mm256_add_epi32(sums[i][1], _mm256_madd_epi16(p1, ones)));
  }
}

// As many quads as fit 16 bits, or fewer: 8 × 2 × 63 × 31 < 2^15.
template <int kQuads, int kChannels>
[[gnu::always_inline]] inline void AddNarrowQuads(const int8_t* basis, size_t stride,
                                                  const uint8_t* quads,
                                                  __m256i (&sums)[kChannels][2]) {
  static_assert(kQuads <= 8);
  __m256i narrow[kChannels][2];
#pragma GCC unroll 8
  for (int q = 0; q < kQuads; ++q) {
    const __m256i s0 = LoadBits(quads + 64 * q), s1 = LoadBits(quads + 64 * q + 32);
#pragma GCC unroll 8
    for (int i = 0; i < kChannels; ++i) {
      const __m256i b = Broadcast(basis + i * stride + 4 * q);
      const __m256i p0 = _mm256_maddubs_epi16(s0, b), p1 = _mm256_maddubs_epi16(s1, b);
      narrow[i][0] = Pin(q == 0 ? p0 : _mm256_add_epi16(narrow[i][0], p0));
      narrow[i][1] = Pin(q == 0 ? p1 : _mm256_add_epi16(narrow[i][1], p1));
    }
  }
  const __m256i ones = _mm256_set1_epi16(1);
  for (int i = 0; i < kChannels; ++i) {
    sums[i][0] = _mm256_add_epi32(sums[i][0], _mm256_madd_epi16(narrow[i][0], ones));
    sums[i][1] = _mm256_add_epi32(sums[i][1], _mm256_madd_epi16(narrow[i][1], ones));
  }
}

template <int kChannels>
void InverseChannels(const InverseBlock& block, const uint8_t* quads, size_t first,
                     const int32_t* corrections, float* values) {
  __m256i sums[kChannels][2];
  for (int i = 0; i < kChannels; ++i) {
    for (int h = 0; h < 2; ++h) {
      sums[i][h] = _mm256_set1_epi32(block.bias[first + i]);
      if (corrections) {
        sums[i][h] =
            _mm256_add_epi32(sums[i][h], LoadBits(corrections + (first + i) * kTileTokens + 8 * h));
      }
    }
  }
  const size_t stride = block.basis_stride;
  const int8_t* basis = block.basis + first * stride;
  const uint8_t* const end_wide = quads + 64 * block.n_wide_quads;
  for (; quads != end_wide; quads += 64, basis += 4) AddWideQuad(basis, stride, quads, sums);
  uint32_t rest = block.n_quads - block.n_wide_quads;
  for (; rest >= 8; rest -= 8, quads += 8 * 64, basis += 8 * 4) {
    AddNarrowQuads<8>(basis, stride, quads, sums);
  }
  if (rest & 4) {
    AddNarrowQuads<4>(basis, stride, quads, sums);
    quads += 4 * 64, basis += 4 * 4;
  }
  if (rest & 2) {
    AddNarrowQuads<2>(basis, stride, quads, sums);
    quads += 2 * 64, basis += 2 * 4;
  }
  if (rest & 1) AddNarrowQuads<1>(basis, stride, quads, sums);
  for (int i = 0; i < kChannels; ++i) {
    const __m256 scale = _mm256_broadcast_ss(block.scale + first + i);
    const __m256 mean = _mm256_broadcast_ss(block.mean + first + i);
    for (int h = 0; h < 2; ++h) {
      const __m256 scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(sums[i][h]), scale);
      _mm256_storeu_ps(values + (first + i) * kTileTokens + 8 * h, _mm256_add_ps(scaled, mean));
    }
  }
}

void Inverse(const InverseBlock& block, const uint8_t* symbols, size_t symbol_stride,
             const int32_t* corrections, float* values) {
  alignas(64) uint8_t quads[kMaxQuads * 64];
  for (size_t q = 0; q < block.n_quads; ++q) {
    InterleaveQuad(symbols + 4 * q * symbol_stride, symbol_stride, quads + 64 * q);
  }
  const size_t n = block.n_channels;
  if (n < 4) {
    for (size_t c = 0; c < n; ++c) InverseChannels<1>(block, quads, c, corrections, values);
  } else {
    for (size_t c = 0; c < n; c += 4) {
      InverseChannels<4>(block, quads, FirstOf(c, 4, n), corrections, values);
    }
  }
}

template <int kSign>
void Turn(const TileRotation& given, float* values) {
  const TileRotation rotation = given;  // the compiler thinks that values may lie in `given`
  const size_t pairs = rotation.n_rot / 2;
  const size_t step = (rotation.interleaved ? 2 : 1) * kTileTokens;
  const size_t second = (rotation.interleaved ? 1 : pairs) * kTileTokens;
  for (size_t head = 0; head < rotation.n_heads; ++head) {
    float* at = values + head * rotation.head_dim * kTileTokens;
    const float *cosines = rotation.cosines, *sines = rotation.sines;
    for (size_t pair = 0; pair < pairs; ++pair) {
      for (size_t t = 0; t < kTileTokens; t += 8) {
        const __m256 cosine = _mm256_loadu_ps(cosines + t), sine = _mm256_loadu_ps(sines + t);
        const __m256 a = _mm256_loadu_ps(at + t), b = _mm256_loadu_ps(at + second + t);
        const __m256 ac = _mm256_mul_ps(a, cosine), as = _mm256_mul_ps(a, sine);
        const __m256 bc = _mm256_mul_ps(b, cosine), bs = _mm256_mul_ps(b, sine);
        _mm256_storeu_ps(at + t, kSign > 0 ? _mm256_sub_ps(ac, bs) : _mm256_add_ps(ac, bs));
        _mm256_storeu_ps(at + second + t,
                         kSign > 0 ? _mm256_add_ps(as, bc) : _mm256_sub_ps(bc, as));
      }
      at += step;
      cosines += rotation.stride;
      sines += rotation.stride;
    }
  }
}

// Eight 16-bit elements from floats and back.
struct F16 {
  static __m128i From(__m256 values) { return _mm256_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT); }
  static __m256 To(__m128i elements) { return _mm256_cvtph_ps(elements); }
};
struct Bf16 {
  static __m128i From(__m256 values) {
    const __m256i bits = _mm256_castps_si256(values);
    const __m256i cut = _mm256_srli_epi32(bits, 16);
    const __m256i odd = _mm256_and_si256(cut, _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_srli_epi32(
        _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    const __m256i quiet = _mm256_or_si256(cut, _mm256_set1_epi32(0x40));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(values, values, _CMP_UNORD_Q));
    const __m256i chosen = _mm256_blendv_epi8(rounded, quiet, nan);
    return _mm_packus_epi32(_mm256_castsi256_si128(chosen), _mm256_extracti128_si256(chosen, 1));
  }
  static __m256 To(__m128i elements) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(elements), 16));
  }
};

// In either half of the vectors: 16-bit element i of v[j] and element j of v[i] change places.
[[gnu::always_inline]] inline void Transpose(__m256i v[8]) {
  __m256i a[8], b[8];
  for (int i = 0; i < 8; i += 2) {
    a[i] = _mm256_unpacklo_epi16(v[i], v[i + 1]);
    a[i + 1] = _mm256_unpackhi_epi16(v[i], v[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    for (int j = 0; j < 2; ++j) {
      b[i + 2 * j] = _mm256_unpacklo_epi32(a[i + j], a[i + j + 2]);
      b[i + 2 * j + 1] = _mm256_unpackhi_epi32(a[i + j], a[i + j + 2]);
    }
  }
  for (int i = 0; i < 4; ++i) {
    v[2 * i] = _mm256_unpacklo_epi64(b[i], b[i + 4]);
    v[2 * i + 1] = _mm256_unpackhi_epi64(b[i], b[i + 4]);
  }
}

// Whole tiles with a row a token: 16 channels × 8 tokens at a time. REQUIRES: n_channels >= 16.
template <typename Type>
void StoreRows(const float* values, uint32_t n_channels, size_t stride, uint8_t* base) {
  for (size_t t = 0; t < kTileTokens; t += 8) {
    for (size_t group = 0; group < n_channels; group += 16) {
      const size_t c = FirstOf(group, 16, n_channels);
      const float* from = values + c * kTileTokens + t;
      __m256i v[8];
      for (int i = 0; i < 8; ++i) {
        v[i] = Join(Type::From(_mm256_loadu_ps(from + i * kTileTokens)),
                    Type::From(_mm256_loadu_ps(from + (i + 8) * kTileTokens)));
      }
      Transpose(v);
      for (int i = 0; i < 8; ++i) StoreBits(base + (t + i) * stride + 2 * c, v[i]);
    }
  }
}
template <typename Type>
void LoadRows(float* values, uint32_t n_channels, size_t stride, const uint8_t* base) {
  for (size_t t = 0; t < kTileTokens; t += 8) {
    for (size_t group = 0; group < n_channels; group += 16) {
      const size_t c = FirstOf(group, 16, n_channels);
      float* to = values + c * kTileTokens + t;
      __m256i v[8];
      for (int i = 0; i < 8; ++i) v[i] = LoadBits(base + (t + i) * stride + 2 * c);
      Transpose(v);
      for (int i = 0; i < 8; ++i) {
        _mm256_storeu_ps(to + i * kTileTokens, Type::To(_mm256_castsi256_si128(v[i])));
        _mm256_storeu_ps(to + (i + 8) * kTileTokens, Type::To(_mm256_extracti128_si256(v[i], 1)));
      }
    }
  }
}

// Whole tiles with a row a channel.
template <typename Type>
void StoreColumns(const float* values, uint32_t n_channels, size_t stride, uint8_t* base) {
  for (size_t c = 0; c < n_channels; ++c) {
    const float* from = values + c * kTileTokens;
    StoreBits(base + c * stride,
              Join(Type::From(_mm256_loadu_ps(from)), Type::From(_mm256_loadu_ps(from + 8))));
  }
}
template <typename Type>
void LoadColumns(float* values, uint32_t n_channels, size_t stride, const uint8_t* base) {
  for (size_t c = 0; c < n_channels; ++c) {
    float* to = values + c * kTileTokens;
    _mm256_storeu_ps(to, Type::To(LoadHalf(base + c * stride)));
    _mm256_storeu_ps(to + 8, Type::To(LoadHalf(base + c * stride + 16)));
  }
}

template <typename Type>
void StoreAs(const float* values, uint32_t n_channels, const TilePlace& place, uint8_t* base) {
  if (place.channel_stride == 2) {
    StoreRows<Type>(values, n_channels, place.token_stride, base);
  } else {
    StoreColumns<Type>(values, n_channels, place.channel_stride, base);
  }
}
template <typename Type>
void LoadAs(float* values, uint32_t n_channels, const TilePlace& place, const uint8_t* base) {
  if (place.channel_stride == 2) {
    LoadRows<Type>(values, n_channels, place.token_stride, base);
  } else {
    LoadColumns<Type>(values, n_channels, place.channel_stride, base);
  }
}

bool Fast(const TilePlace& place, uint32_t n_channels) {
  return place.type != ElementType::kF32 && place.n_tokens == kTileTokens &&
         (place.channel_stride != 2 || n_channels >= 16);
}

// 16 values of a channel in fixed point.
__m256i ToFixed(const float* values, __m256 mean, __m256 to_fixed) {
  const __m256 limit = _mm256_set1_ps(32767.0f);
  const __m256 scaled = _mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(values), mean), to_fixed);
  return _mm256_cvtps_epi32(_mm256_max_ps(_mm256_min_ps(scaled, limit), _mm256_set1_ps(-32767.0f)));
}

// Two channels to 16-bit [token][2].
void FixPair(const ForwardBlock& block, const float* values, size_t c, uint8_t* pair) {
  for (int h = 0; h < 2; ++h) {
    const float* from = values + c * kTileTokens + 8 * h;
    const __m256i even =
        ToFixed(from, _mm256_broadcast_ss(block.mean + c), _mm256_broadcast_ss(block.to_fixed + c));
    const __m256i odd = ToFixed(from + kTileTokens, _mm256_broadcast_ss(block.mean + c + 1),
                                _mm256_broadcast_ss(block.to_fixed + c + 1));
    StoreBits(pair + 32 * h, _mm256_blend_epi16(even, _mm256_slli_epi32(odd, 16), 0xaa));
  }
}

// Eight sums to integers in units of the step.
__m256i ToSteps(__m256i sums, __m256 to_steps, __m256 rounding) {
  const __m256 magnitude =
      _mm256_add_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_abs_epi32(sums)), to_steps), rounding);
  const __m256i integer = _mm256_cvttps_epi32(_mm256_min_ps(magnitude, _mm256_set1_ps(32767.0f)));
  const __m256i sign = _mm256_srai_epi32(sums, 31);
  return _mm256_sub_epi32(_mm256_xor_si256(integer, sign), sign);
}

template <int kComponents>
void ForwardComponents(const ForwardBlock& block, const uint8_t* pairs, size_t first,
                       int16_t* integers) {
  __m256i sums[kComponents][2];
  for (int i = 0; i < kComponents; ++i) sums[i][0] = sums[i][1] = _mm256_setzero_si256();
  const size_t n = block.n_channels;
  const int16_t* const weights = block.weights + first * n;
  for (size_t c = 0; c < n; c += 2) {
    const __m256i v0 = LoadBits(pairs + 32 * c), v1 = LoadBits(pairs + 32 * c + 32);
    for (int i = 0; i < kComponents; ++i) {
      const __m256i w = Broadcast(weights + i * n + c);
      sums[i][0] = Pin(_mm256_add_epi32(sums[i][0], _mm256_madd_epi16(v0, w)));
      sums[i][1] = Pin(_mm256_add_epi32(sums[i][1], _mm256_madd_epi16(v1, w)));
    }
  }
  for (int i = 0; i < kComponents; ++i) {
    const __m256 to_steps = _mm256_broadcast_ss(block.to_steps + first + i);
    const __m256 rounding = _mm256_broadcast_ss(&block.rounding);
    const __m256i packed = _mm256_packs_epi32(ToSteps(sums[i][0], to_steps, rounding),
                                              ToSteps(sums[i][1], to_steps, rounding));
    StoreBits(integers + (first + i) * kTileTokens, _mm256_permute4x64_epi64(packed, 0xd8));
  }
}

void Forward(const ForwardBlock& block, const float* values, int16_t* integers) {
  alignas(64) uint8_t pairs[kMaxTileChannels / 2 * 64];
  for (size_t c = 0; c < block.n_channels; c += 2) FixPair(block, values, c, pairs + 32 * c);
  const size_t n = block.n_components;
  if (n < 4) {
    for (size_t j = 0; j < n; ++j) ForwardComponents<1>(block, pairs, j, integers);
  } else {
    for (size_t j = 0; j < n; j += 4) {
      ForwardComponents<4>(block, pairs, FirstOf(j, 4, n), integers);
    }
  }
}

}  // namespace

namespace avx2 {

void Rotate(const TileRotation& rotation, float* values) { Turn<1>(rotation, values); }
void Unrotate(const TileRotation& rotation, float* values) { Turn<-1>(rotation, values); }

void Store(const float* values, uint32_t n_channels, const TilePlace& place, uint8_t* base) {
  if (!Fast(place, n_channels)) return kTransformScalar.store(values, n_channels, place, base);
  if (place.type == ElementType::kF16) return StoreAs<F16>(values, n_channels, place, base);
  StoreAs<Bf16>(values, n_channels, place, base);
}

void Load(float* values, uint32_t n_channels, const TilePlace& place, const uint8_t* base) {
  if (!Fast(place, n_channels)) return kTransformScalar.load(values, n_channels, place, base);
  if (place.type == ElementType::kF16) return LoadAs<F16>(values, n_channels, place, base);
  LoadAs<Bf16>(values, n_channels, place, base);
}

}  // namespace avx2

const TransformKernels kTransformAvx2 = {
    .inverse = Inverse,
    .rotate = avx2::Rotate,
    .unrotate = avx2::Unrotate,
    .store = avx2::Store,
    .load = avx2::Load,
    .forward = Forward,
};

}  // namespace tandem::kvstore::codec
