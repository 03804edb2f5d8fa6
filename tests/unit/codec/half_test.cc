// 16-bit floats against their definition, and against the vector units' conversions (through the
// kernels' loads and stores).
#include "kvstore/codec/half.h"

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "kvstore/codec/aligned.h"
#include "kvstore/codec/transform.h"

namespace tandem::kvstore::codec {
namespace {

constexpr uint32_t kHalves = 1 << 16;
constexpr uint16_t kInfinity = 0x7c00;

double ValueOf(uint16_t half) {
  const int exponent = half >> 10 & 31, fraction = half & 0x3ff;
  const double magnitude =
      exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
  return half & 0x8000 ? -magnitude : magnitude;
}

uint32_t BitsOf(float value) { return std::bit_cast<uint32_t>(value); }

TEST(Half, EveryHalfHasItsValueAndComesBack) {
  for (uint32_t h = 0; h < kHalves; ++h) {
    const uint16_t half = static_cast<uint16_t>(h);
    const float value = HalfToFloat(half);
    if ((half & 0x7fff) < kInfinity) {
      ASSERT_EQ(BitsOf(value), BitsOf(static_cast<float>(ValueOf(half)))) << h;
      ASSERT_EQ(FloatToHalf(value), half);
    } else if ((half & 0x7fff) == kInfinity) {
      ASSERT_EQ(std::abs(value), std::numeric_limits<float>::infinity());
      ASSERT_EQ(FloatToHalf(value), half);
    } else {
      ASSERT_TRUE(std::isnan(value));
      ASSERT_EQ(FloatToHalf(value), half | 0x200);
    }
  }
}

TEST(Half, RoundsToTheNearestTiesToEven) {
  for (uint16_t half = 0; half < kInfinity; ++half) {
    // Infinity stands for 2^16 in rounding.
    const double low = ValueOf(half), high = half + 1 < kInfinity ? ValueOf(half + 1) : 65536.0;
    const float middle = static_cast<float>((low + high) / 2);
    const uint16_t next = half + 1, even = half & 1 ? next : half;
    for (const uint16_t sign : {0, 0x8000}) {
      const float side = sign ? -1.0f : 1.0f;
      ASSERT_EQ(FloatToHalf(side * middle), sign | even);
      ASSERT_EQ(FloatToHalf(side * std::nextafter(middle, 0.0f)), sign | half);
      ASSERT_EQ(FloatToHalf(side * std::nextafter(middle, 1e9f)), sign | next);
    }
  }
  EXPECT_EQ(FloatToHalf(std::numeric_limits<float>::max()), kInfinity);
  EXPECT_EQ(FloatToHalf(-std::numeric_limits<float>::denorm_min()), 0x8000);
}

TEST(Bf16, RoundsToTheNearestTiesToEven) {
  for (uint32_t h = 0; h < kHalves; ++h) {
    const uint16_t bf16 = static_cast<uint16_t>(h);
    const float value = Bf16ToFloat(bf16);
    ASSERT_EQ(BitsOf(value), h << 16);
    if (std::isnan(value)) {
      ASSERT_EQ(FloatToBf16(value), bf16 | 0x40);
      continue;
    }
    ASSERT_EQ(FloatToBf16(value), bf16);
    if (std::isinf(value)) continue;
    const auto from_bits = [&](uint32_t low) { return std::bit_cast<float>(h << 16 | low); };
    ASSERT_EQ(FloatToBf16(from_bits(0x7fff)), bf16);
    ASSERT_EQ(FloatToBf16(from_bits(0x8000)), bf16 + (bf16 & 1));
    ASSERT_EQ(FloatToBf16(from_bits(0x8001)), bf16 + 1);
  }
}

class Conversion : public testing::TestWithParam<std::tuple<Isa, ElementType>> {};

// Every 16-bit element, in tiles of 16 rows and 16 channels.
TEST_P(Conversion, OfEveryElementIsThatOfTheScalarCode) {
  const auto [isa, type] = GetParam();
  const TilePlace place{.type = type, .channel_stride = 2, .token_stride = 32, .n_tokens = 16};
  AlignedVector<float> values(256);
  for (uint32_t first = 0; first < kHalves; first += 256) {
    uint16_t elements[256];
    for (uint32_t i = 0; i < 256; ++i) elements[i] = static_cast<uint16_t>(first + i);
    KernelsFor(isa).load(values.data(), 16, place, reinterpret_cast<const uint8_t*>(elements));
    for (uint32_t i = 0; i < 256; ++i) {
      const float value =
          type == ElementType::kF16 ? HalfToFloat(elements[i]) : Bf16ToFloat(elements[i]);
      ASSERT_EQ(BitsOf(values[i % 16 * 16 + i / 16]), BitsOf(value)) << first + i;
    }
  }
}

// Floats of every exponent, with fractions that cover all ways of rounding.
TEST_P(Conversion, OfFloatsIsThatOfTheScalarCode) {
  const auto [isa, type] = GetParam();
  const TilePlace place{.type = type, .channel_stride = 2, .token_stride = 32, .n_tokens = 16};
  AlignedVector<float> values(256);
  for (uint32_t upper = 0; upper < kHalves; upper += 7) {
    for (uint32_t i = 0; i < 256; ++i) {
      const uint32_t lower = i * 257 + (i % 3 - 1) * (i / 3);
      values[i] = std::bit_cast<float>(upper << 16 | (lower & 0xffff));
    }
    uint16_t elements[256];
    KernelsFor(isa).store(values.data(), 16, place, reinterpret_cast<uint8_t*>(elements));
    for (uint32_t i = 0; i < 256; ++i) {
      const float value = values[i % 16 * 16 + i / 16];
      ASSERT_EQ(elements[i], type == ElementType::kF16 ? FloatToHalf(value) : FloatToBf16(value))
          << BitsOf(value);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, Conversion,
                         testing::Combine(testing::ValuesIn(SupportedIsas()),
                                          testing::Values(ElementType::kF16, ElementType::kBf16)),
                         [](const auto& info) {
                           return std::string(IsaName(std::get<0>(info.param))) +
                                  (std::get<1>(info.param) == ElementType::kF16 ? "_f16" : "_bf16");
                         });

}  // namespace
}  // namespace tandem::kvstore::codec
