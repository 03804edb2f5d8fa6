// The kernels for AArch64's base instruction set: a row of 16 tokens is two vectors of 16-bit
// numbers, or four of 32-bit ones. What is rare (tiles of fewer tokens or channels, bf16, 32-bit
// floats) is left to the scalar kernels.
#include <arm_neon.h>

#include "kvstore/codec/transform.h"

namespace tandem::kvstore::codec {
namespace {

// So many quads of narrow symbols fit 16 bits: 4 × 4 × 63 × 31 < 2^15.
constexpr uint32_t kNarrowQuads = 4;

// Where a group of `size` begins, of `all` in groups: the last one reaches back, because doing some
// twice is faster than doing those left over one at a time. REQUIRES: size <= all.
size_t FirstOf(size_t group, size_t size, size_t all) {
  return group + size <= all ? group : all - size;
}

// Four bytes as 16-bit numbers.
int16x4_t LoadQuad(const int8_t* from) {
  const int32x2_t bits = vld1_dup_s32(reinterpret_cast<const int32_t*>(from));
  return vget_low_s16(vmovl_s8(vreinterpret_s8_s32(bits)));
}

// Sums of 16 tokens.
struct Sums {
  int32x4_t v[4];
  template <int kLane>
  void Add(int16x8_t low, int16x8_t high, int16x4_t factors) {
    v[0] = vmlal_lane_s16(v[0], vget_low_s16(low), factors, kLane);
    v[1] = vmlal_high_lane_s16(v[1], low, factors, kLane);
    v[2] = vmlal_lane_s16(v[2], vget_low_s16(high), factors, kLane);
    v[3] = vmlal_high_lane_s16(v[3], high, factors, kLane);
  }
  void Add(int16x8_t low, int16x8_t high) {
    v[0] = vaddw_s16(v[0], vget_low_s16(low));
    v[1] = vaddw_high_s16(v[1], low);
    v[2] = vaddw_s16(v[2], vget_low_s16(high));
    v[3] = vaddw_high_s16(v[3], high);
  }
};

template <int kLane, int kChannels>
void AddNarrowRow(const int16_t* row, const int16x4_t (&basis)[kChannels],
                  int16x8_t (&narrow)[kChannels][2]) {
  const int16x8_t low = vld1q_s16(row), high = vld1q_s16(row + 8);
  for (int i = 0; i < kChannels; ++i) {
    narrow[i][0] = vmlaq_lane_s16(narrow[i][0], low, basis[i], kLane);
    narrow[i][1] = vmlaq_lane_s16(narrow[i][1], high, basis[i], kLane);
  }
}

template <int kLane, int kChannels>
void AddWideRow(const int16_t* row, const int16x4_t (&basis)[kChannels], Sums (&sums)[kChannels]) {
  const int16x8_t low = vld1q_s16(row), high = vld1q_s16(row + 8);
  for (int i = 0; i < kChannels; ++i) sums[i].template Add<kLane>(low, high, basis[i]);
}

// `rows`: the symbols as [row][16].
template <int kChannels>
void InverseChannels(const InverseBlock& block, const int16_t* rows, size_t first,
                     const int32_t* corrections, float* values) {
  Sums sums[kChannels];
  for (int i = 0; i < kChannels; ++i) {
    for (int k = 0; k < 4; ++k) {
      sums[i].v[k] = vdupq_n_s32(block.bias[first + i]);
      if (corrections) {
        sums[i].v[k] =
            vaddq_s32(sums[i].v[k], vld1q_s32(corrections + (first + i) * kTileTokens + 4 * k));
      }
    }
  }
  uint32_t q = 0;
  int16x4_t basis[kChannels];
  const auto load_basis = [&] {
    for (int i = 0; i < kChannels; ++i) {
      basis[i] = LoadQuad(block.basis + (first + i) * block.basis_stride + 4 * q);
    }
  };
  for (; q < block.n_wide_quads; ++q, rows += 4 * kTileTokens) {
    load_basis();
    AddWideRow<0>(rows, basis, sums);
    AddWideRow<1>(rows + kTileTokens, basis, sums);
    AddWideRow<2>(rows + 2 * kTileTokens, basis, sums);
    AddWideRow<3>(rows + 3 * kTileTokens, basis, sums);
  }
  while (q < block.n_quads) {
    const uint32_t end = block.n_quads - q < kNarrowQuads ? block.n_quads : q + kNarrowQuads;
    int16x8_t narrow[kChannels][2];
    for (int i = 0; i < kChannels; ++i) narrow[i][0] = narrow[i][1] = vdupq_n_s16(0);
    for (; q < end; ++q, rows += 4 * kTileTokens) {
      load_basis();
      AddNarrowRow<0>(rows, basis, narrow);
      AddNarrowRow<1>(rows + kTileTokens, basis, narrow);
      AddNarrowRow<2>(rows + 2 * kTileTokens, basis, narrow);
      AddNarrowRow<3>(rows + 3 * kTileTokens, basis, narrow);
    }
    for (int i = 0; i < kChannels; ++i) sums[i].Add(narrow[i][0], narrow[i][1]);
  }
  for (int i = 0; i < kChannels; ++i) {
    const float32x4_t mean = vdupq_n_f32(block.mean[first + i]);
    for (int k = 0; k < 4; ++k) {
      const float32x4_t scaled = vmulq_n_f32(vcvtq_f32_s32(sums[i].v[k]), block.scale[first + i]);
      vst1q_f32(values + (first + i) * kTileTokens + 4 * k, vaddq_f32(scaled, mean));
    }
  }
}

void Inverse(const InverseBlock& block, const uint8_t* symbols, size_t symbol_stride,
             const int32_t* corrections, float* values) {
  int16_t rows[kMaxTileChannels * kTileTokens];
  for (size_t j = 0; j < 4 * block.n_quads; ++j) {
    const uint8x16_t bytes = vld1q_u8(symbols + j * symbol_stride);
    vst1q_s16(rows + j * kTileTokens, vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(bytes))));
    vst1q_s16(rows + j * kTileTokens + 8, vreinterpretq_s16_u16(vmovl_high_u8(bytes)));
  }
  const size_t n = block.n_channels;
  if (n < 4) {
    for (size_t c = 0; c < n; ++c) InverseChannels<1>(block, rows, c, corrections, values);
  } else {
    for (size_t c = 0; c < n; c += 4) {
      InverseChannels<4>(block, rows, FirstOf(c, 4, n), corrections, values);
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
      for (size_t t = 0; t < kTileTokens; t += 4) {
        const float32x4_t cosine = vld1q_f32(cosines + t), sine = vld1q_f32(sines + t);
        const float32x4_t a = vld1q_f32(at + t), b = vld1q_f32(at + second + t);
        const float32x4_t ac = vmulq_f32(a, cosine), as = vmulq_f32(a, sine);
        const float32x4_t bc = vmulq_f32(b, cosine), bs = vmulq_f32(b, sine);
        vst1q_f32(at + t, kSign > 0 ? vsubq_f32(ac, bs) : vaddq_f32(ac, bs));
        vst1q_f32(at + second + t, kSign > 0 ? vaddq_f32(as, bc) : vsubq_f32(bc, as));
      }
      at += step;
      cosines += rotation.stride;
      sines += rotation.stride;
    }
  }
}

// Eight 16-bit floats from 32-bit ones and back.
uint16x8_t ToHalves(const float* from) {
  const float16x4_t low = vcvt_f16_f32(vld1q_f32(from));
  return vreinterpretq_u16_f16(vcvt_high_f16_f32(low, vld1q_f32(from + 4)));
}
void FromHalves(uint16x8_t halves, float* to) {
  const float16x8_t values = vreinterpretq_f16_u16(halves);
  vst1q_f32(to, vcvt_f32_f16(vget_low_f16(values)));
  vst1q_f32(to + 4, vcvt_high_f32_f16(values));
}

// Element i of v[j] and element j of v[i] change places.
void Transpose(uint16x8_t v[8]) {
  uint32x4_t a[8];
  for (int i = 0; i < 8; i += 2) {
    a[i] = vreinterpretq_u32_u16(vzip1q_u16(v[i], v[i + 1]));
    a[i + 1] = vreinterpretq_u32_u16(vzip2q_u16(v[i], v[i + 1]));
  }
  uint64x2_t b[8];
  for (int i = 0; i < 8; i += 4) {
    for (int j = 0; j < 2; ++j) {
      b[i + 2 * j] = vreinterpretq_u64_u32(vzip1q_u32(a[i + j], a[i + j + 2]));
      b[i + 2 * j + 1] = vreinterpretq_u64_u32(vzip2q_u32(a[i + j], a[i + j + 2]));
    }
  }
  for (int i = 0; i < 4; ++i) {
    v[2 * i] = vreinterpretq_u16_u64(vzip1q_u64(b[i], b[i + 4]));
    v[2 * i + 1] = vreinterpretq_u16_u64(vzip2q_u64(b[i], b[i + 4]));
  }
}

// Whole tiles of f16 with a row a token: 8 × 8 elements at a time. REQUIRES: n_channels >= 8.
void StoreRows(const float* values, uint32_t n_channels, size_t stride, uint8_t* base) {
  for (size_t group = 0; group < n_channels; group += 8) {
    const size_t c = FirstOf(group, 8, n_channels);
    for (size_t t = 0; t < kTileTokens; t += 8) {
      uint16x8_t v[8];
      for (int i = 0; i < 8; ++i) v[i] = ToHalves(values + (c + i) * kTileTokens + t);
      Transpose(v);
      for (int i = 0; i < 8; ++i) {
        vst1q_u8(base + (t + i) * stride + 2 * c, vreinterpretq_u8_u16(v[i]));
      }
    }
  }
}
void LoadRows(float* values, uint32_t n_channels, size_t stride, const uint8_t* base) {
  for (size_t group = 0; group < n_channels; group += 8) {
    const size_t c = FirstOf(group, 8, n_channels);
    for (size_t t = 0; t < kTileTokens; t += 8) {
      uint16x8_t v[8];
      for (int i = 0; i < 8; ++i) {
        v[i] = vreinterpretq_u16_u8(vld1q_u8(base + (t + i) * stride + 2 * c));
      }
      Transpose(v);
      for (int i = 0; i < 8; ++i) FromHalves(v[i], values + (c + i) * kTileTokens + t);
    }
  }
}

// Whole tiles of f16 with a row a channel.
void StoreColumns(const float* values, uint32_t n_channels, size_t stride, uint8_t* base) {
  for (size_t c = 0; c < n_channels; ++c) {
    const float* from = values + c * kTileTokens;
    vst1q_u8(base + c * stride, vreinterpretq_u8_u16(ToHalves(from)));
    vst1q_u8(base + c * stride + 16, vreinterpretq_u8_u16(ToHalves(from + 8)));
  }
}
void LoadColumns(float* values, uint32_t n_channels, size_t stride, const uint8_t* base) {
  for (size_t c = 0; c < n_channels; ++c) {
    float* to = values + c * kTileTokens;
    FromHalves(vreinterpretq_u16_u8(vld1q_u8(base + c * stride)), to);
    FromHalves(vreinterpretq_u16_u8(vld1q_u8(base + c * stride + 16)), to + 8);
  }
}

bool Fast(const TilePlace& place, uint32_t n_channels) {
  return place.type == ElementType::kF16 && place.n_tokens == kTileTokens &&
         (place.channel_stride != 2 || n_channels >= 8);
}

void Store(const float* values, uint32_t n_channels, const TilePlace& place, uint8_t* base) {
  if (!Fast(place, n_channels)) return kTransformScalar.store(values, n_channels, place, base);
  if (place.channel_stride == 2) return StoreRows(values, n_channels, place.token_stride, base);
  StoreColumns(values, n_channels, place.channel_stride, base);
}

void Load(float* values, uint32_t n_channels, const TilePlace& place, const uint8_t* base) {
  if (!Fast(place, n_channels)) return kTransformScalar.load(values, n_channels, place, base);
  if (place.channel_stride == 2) return LoadRows(values, n_channels, place.token_stride, base);
  LoadColumns(values, n_channels, place.channel_stride, base);
}

// Four values of a channel in fixed point.
int16x4_t ToFixed(const float* values, float mean, float to_fixed) {
  const float32x4_t centred = vsubq_f32(vld1q_f32(values), vdupq_n_f32(mean));
  const float32x4_t scaled = vmulq_n_f32(centred, to_fixed);
  const float32x4_t limited =
      vmaxq_f32(vminq_f32(scaled, vdupq_n_f32(32767.0f)), vdupq_n_f32(-32767.0f));
  return vmovn_s32(vcvtnq_s32_f32(limited));
}

// Four sums to integers in units of the step.
int16x4_t ToSteps(int32x4_t sums, float to_steps, float rounding) {
  const float32x4_t magnitude =
      vaddq_f32(vmulq_n_f32(vcvtq_f32_s32(vabsq_s32(sums)), to_steps), vdupq_n_f32(rounding));
  const int32x4_t integer = vcvtq_s32_f32(vminq_f32(magnitude, vdupq_n_f32(32767.0f)));
  const int32x4_t sign = vshrq_n_s32(sums, 31);
  return vmovn_s32(vsubq_s32(veorq_s32(integer, sign), sign));
}

// `fixed`: the values as [channel][16].
template <int kComponents>
void ForwardComponents(const ForwardBlock& block, const int16_t* fixed, size_t first,
                       int16_t* integers) {
  Sums sums[kComponents];
  for (int i = 0; i < kComponents; ++i) {
    for (int k = 0; k < 4; ++k) sums[i].v[k] = vdupq_n_s32(0);
  }
  const int16_t* const weights = block.weights + first * block.n_channels;
  for (size_t c = 0; c < block.n_channels; c += 2) {
    const int16_t* const row = fixed + c * kTileTokens;
    const int16x8_t even_low = vld1q_s16(row), even_high = vld1q_s16(row + 8);
    const int16x8_t odd_low = vld1q_s16(row + 16), odd_high = vld1q_s16(row + 24);
    for (int i = 0; i < kComponents; ++i) {
      const int16_t* const pair = weights + i * block.n_channels + c;
      const int16x4_t w =
          vreinterpret_s16_s32(vld1_dup_s32(reinterpret_cast<const int32_t*>(pair)));
      sums[i].template Add<0>(even_low, even_high, w);
      sums[i].template Add<1>(odd_low, odd_high, w);
    }
  }
  for (int i = 0; i < kComponents; ++i) {
    for (int k = 0; k < 4; ++k) {
      vst1_s16(integers + (first + i) * kTileTokens + 4 * k,
               ToSteps(sums[i].v[k], block.to_steps[first + i], block.rounding));
    }
  }
}

void Forward(const ForwardBlock& block, const float* values, int16_t* integers) {
  int16_t fixed[kMaxTileChannels * kTileTokens];
  for (size_t c = 0; c < block.n_channels; ++c) {
    for (size_t t = 0; t < kTileTokens; t += 4) {
      vst1_s16(fixed + c * kTileTokens + t,
               ToFixed(values + c * kTileTokens + t, block.mean[c], block.to_fixed[c]));
    }
  }
  const size_t n = block.n_components;
  if (n < 4) {
    for (size_t j = 0; j < n; ++j) ForwardComponents<1>(block, fixed, j, integers);
  } else {
    for (size_t j = 0; j < n; j += 4) {
      ForwardComponents<4>(block, fixed, FirstOf(j, 4, n), integers);
    }
  }
}

}  // namespace

const TransformKernels kTransformNeon = {
    .inverse = Inverse,
    .rotate = Turn<1>,
    .unrotate = Turn<-1>,
    .store = Store,
    .load = Load,
    .forward = Forward,
};

}  // namespace tandem::kvstore::codec
