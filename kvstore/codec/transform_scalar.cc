// The reference of every kernel: what the others must reproduce bit for bit. Compiled without
// fused operations (-ffp-contract=off).
#include <algorithm>
#include <cstring>

#include "kvstore/codec/half.h"
#include "kvstore/codec/transform.h"

namespace tandem::kvstore::codec {
namespace {

void Inverse(const InverseBlock& block, const uint8_t* symbols, size_t symbol_stride,
             const int32_t* corrections, float* values) {
  for (size_t c = 0; c < block.n_channels; ++c) {
    int32_t sums[kTileTokens];
    for (size_t t = 0; t < kTileTokens; ++t) {
      sums[t] = block.bias[c] + (corrections ? corrections[c * kTileTokens + t] : 0);
    }
    const int8_t* basis = block.basis + c * block.basis_stride;
    for (size_t j = 0; j < 4 * block.n_quads; ++j) {
      const uint8_t* row = symbols + j * symbol_stride;
      for (size_t t = 0; t < kTileTokens; ++t) sums[t] += basis[j] * row[t];
    }
    for (size_t t = 0; t < kTileTokens; ++t) {
      values[c * kTileTokens + t] = static_cast<float>(sums[t]) * block.scale[c] + block.mean[c];
    }
  }
}

template <int kSign>
void Turn(const TileRotation& rotation, float* values) {
  const size_t pairs = rotation.n_rot / 2;
  const size_t first_step = rotation.interleaved ? 2 : 1;
  const size_t second = rotation.interleaved ? 1 : pairs;
  for (size_t head = 0; head < rotation.n_heads; ++head) {
    for (size_t pair = 0; pair < pairs; ++pair) {
      float* a = values + (head * rotation.head_dim + pair * first_step) * kTileTokens;
      float* b = a + second * kTileTokens;
      const float* cosines = rotation.cosines + pair * rotation.stride;
      const float* sines = rotation.sines + pair * rotation.stride;
      for (size_t t = 0; t < kTileTokens; ++t) {
        const float x = a[t], y = b[t], cosine = cosines[t], sine = sines[t];
        if constexpr (kSign > 0) {
          a[t] = x * cosine - y * sine;
          b[t] = x * sine + y * cosine;
        } else {
          a[t] = x * cosine + y * sine;
          b[t] = y * cosine - x * sine;
        }
      }
    }
  }
}

template <typename Convert>
void StoreWith(const float* values, uint32_t n_channels, const TilePlace& place, uint8_t* base,
               const Convert& convert) {
  for (size_t c = 0; c < n_channels; ++c) {
    for (size_t t = 0; t < place.n_tokens; ++t) {
      const auto element = convert(values[c * kTileTokens + t]);
      std::memcpy(base + c * place.channel_stride + t * place.token_stride, &element,
                  sizeof element);
    }
  }
}

void Store(const float* values, uint32_t n_channels, const TilePlace& place, uint8_t* base) {
  switch (place.type) {
    case ElementType::kF16:
      return StoreWith(values, n_channels, place, base, FloatToHalf);
    case ElementType::kBf16:
      return StoreWith(values, n_channels, place, base, FloatToBf16);
    case ElementType::kF32:
      return StoreWith(values, n_channels, place, base, [](float value) { return value; });
  }
}

template <typename Element, typename Convert>
void LoadWith(float* values, uint32_t n_channels, const TilePlace& place, const uint8_t* base,
              const Convert& convert) {
  for (size_t c = 0; c < n_channels; ++c) {
    for (size_t t = 0; t < kTileTokens; ++t) {
      Element element = 0;
      if (t < place.n_tokens) {
        std::memcpy(&element, base + c * place.channel_stride + t * place.token_stride,
                    sizeof element);
      }
      values[c * kTileTokens + t] = convert(element);
    }
  }
}

void Load(float* values, uint32_t n_channels, const TilePlace& place, const uint8_t* base) {
  switch (place.type) {
    case ElementType::kF16:
      return LoadWith<uint16_t>(values, n_channels, place, base, HalfToFloat);
    case ElementType::kBf16:
      return LoadWith<uint16_t>(values, n_channels, place, base, Bf16ToFloat);
    case ElementType::kF32:
      return LoadWith<float>(values, n_channels, place, base, [](float value) { return value; });
  }
}

// To the nearest, ties to even, as vector units convert.
int32_t ToFixed(float value) {
  const float limited = std::clamp(value, -32767.0f, 32767.0f);
  const float magic = 12582912.0f;  // 1.5 × 2^23: the sum's last bit is worth 1
  return static_cast<int32_t>((limited + magic) - magic);
}

void Forward(const ForwardBlock& block, const float* values, int16_t* integers) {
  int32_t fixed[kMaxTileChannels * kTileTokens];
  for (size_t c = 0; c < block.n_channels; ++c) {
    for (size_t t = 0; t < kTileTokens; ++t) {
      fixed[c * kTileTokens + t] =
          ToFixed((values[c * kTileTokens + t] - block.mean[c]) * block.to_fixed[c]);
    }
  }
  for (size_t j = 0; j < block.n_components; ++j) {
    int32_t sums[kTileTokens] = {};
    for (size_t c = 0; c < block.n_channels; ++c) {
      const int32_t weight = block.weights[j * block.n_channels + c];
      for (size_t t = 0; t < kTileTokens; ++t) sums[t] += weight * fixed[c * kTileTokens + t];
    }
    for (size_t t = 0; t < kTileTokens; ++t) {
      const float magnitude = std::min(
          static_cast<float>(std::abs(sums[t])) * block.to_steps[j] + block.rounding, 32767.0f);
      const int32_t integer = static_cast<int32_t>(magnitude);
      integers[j * kTileTokens + t] = static_cast<int16_t>(sums[t] < 0 ? -integer : integer);
    }
  }
}

}  // namespace

const TransformKernels kTransformScalar = {
    .inverse = Inverse,
    .rotate = Turn<1>,
    .unrotate = Turn<-1>,
    .store = Store,
    .load = Load,
    .forward = Forward,
};

}  // namespace tandem::kvstore::codec
