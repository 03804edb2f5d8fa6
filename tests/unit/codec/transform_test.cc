// Every table of kernels against the scalar one, bit for bit, on random data with extremes; inputs
// end where they may be read to, and destinations are surrounded by bytes that must not change.
#include "kvstore/codec/transform.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kvstore/codec/aligned.h"
#include "kvstore/codec/profile.h"

namespace tandem::kvstore::codec {
namespace {

static_assert(kMaxBlockChannels <= kMaxTileChannels);

using Random = std::minstd_rand;

int32_t Between(Random& random, int32_t low, int32_t high) {
  return low + static_cast<int32_t>(random() % (high - low + 1));
}

template <typename T>
bool SameBytes(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

// Runs `kernel(tile)` on a copy of `tile`, which is followed by guards.
template <typename T, typename Kernel>
std::vector<T> OnTile(const std::vector<T>& tile, const Kernel& kernel) {
  constexpr size_t kGuards = 64;
  AlignedVector<T> guarded(tile.begin(), tile.end());
  guarded.resize(tile.size() + kGuards, T{77});
  kernel(guarded.data());
  EXPECT_EQ(std::count(guarded.end() - kGuards, guarded.end(), T{77}), kGuards);
  return {guarded.begin(), guarded.end() - kGuards};
}

class Kernels : public testing::TestWithParam<Isa> {
 protected:
  const TransformKernels& kernels_ = KernelsFor(GetParam());
  Random random_{20};
};

struct InverseCase {
  uint32_t n_channels, n_quads, n_wide_quads;
  bool extremes;
};

// A block with everything it points to.
class InverseData {
 public:
  InverseData(const InverseCase& c, Random& random)
      : basis_((c.n_channels - 1) * BasisStride(c) + 4 * c.n_quads),
        bias_(c.n_channels),
        corrections_(c.n_channels * kTileTokens),
        scale_(c.n_channels),
        mean_(c.n_channels),
        symbols_(c.n_quads == 0 ? 0 : (4 * c.n_quads - 1) * kSymbolStride + kTileTokens) {
    for (auto& b : basis_) {
      b = static_cast<int8_t>(Between(random, -kMaxBasis, kMaxBasis));
      if (c.extremes) b = b < 0 ? -kMaxBasis : kMaxBasis;
    }
    for (size_t i = 0; i < symbols_.size(); ++i) {
      const uint32_t limit = i / kSymbolStride < 4 * c.n_wide_quads ? 256 : kNarrowSymbols;
      symbols_[i] = static_cast<uint8_t>(c.extremes ? limit - 1 : random() % limit);
    }
    for (auto& b : bias_) b = Between(random, -1000000, 1000000);
    for (auto& v : corrections_) v = Between(random, -5000000, 5000000);
    for (auto& s : scale_) s = std::ldexp(Between(random, 1, 99999), -25);
    for (auto& m : mean_) m = std::ldexp(Between(random, -99999, 99999), -15);
    block_ = {.n_channels = c.n_channels,
              .n_quads = c.n_quads,
              .n_wide_quads = c.n_wide_quads,
              .basis = basis_.data(),
              .basis_stride = BasisStride(c),
              .bias = bias_.data(),
              .scale = scale_.data(),
              .mean = mean_.data()};
  }

  std::vector<float> Run(const TransformKernels& kernels, bool corrected) const {
    return OnTile(std::vector<float>(block_.n_channels * kTileTokens), [&](float* values) {
      kernels.inverse(block_, symbols_.data(), kSymbolStride,
                      corrected ? corrections_.data() : nullptr, values);
    });
  }

 private:
  static constexpr size_t kSymbolStride = 48;
  static size_t BasisStride(const InverseCase& c) { return 4 * c.n_quads + c.n_channels % 3; }

  std::vector<int8_t> basis_;
  std::vector<int32_t> bias_, corrections_;
  std::vector<float> scale_, mean_;
  std::vector<uint8_t> symbols_;
  InverseBlock block_;
};

TEST_P(Kernels, Inverse) {
  std::vector<InverseCase> cases;
  for (uint32_t quads = 0; quads <= 64; ++quads) {
    for (const uint32_t wide : {0u, quads / 5, quads}) {
      const uint32_t channels = static_cast<uint32_t>(Between(random_, 1, 40));
      cases.push_back({channels, quads, wide, quads % 2 == 0});
    }
  }
  for (uint32_t channels = 2; channels <= 256; channels += 2) {
    cases.push_back({channels, 9, 1, channels % 4 == 0});
  }
  cases.push_back({256, 64, 64, true});
  cases.push_back({256, 64, 0, true});
  for (const InverseCase& c : cases) {
    const InverseData data(c, random_);
    for (const bool corrected : {false, true}) {
      ASSERT_TRUE(SameBytes(data.Run(kernels_, corrected), data.Run(kTransformScalar, corrected)))
          << c.n_channels << " channels, " << c.n_quads << " quads, " << c.n_wide_quads << " wide";
    }
  }
}

TEST_P(Kernels, RotateAndUnrotate) {
  for (const bool interleaved : {false, true}) {
    for (const auto& [head_dim, n_rot] : {std::pair{2u, 2u},
                                          {6u, 4u},
                                          {64u, 64u},
                                          {64u, 32u},
                                          {80u, 80u},
                                          {128u, 0u},
                                          {128u, 128u}}) {
      for (const size_t stride : {16u, 48u}) {
        const uint32_t n_heads = 256 / head_dim;
        std::vector<float> cosines(n_rot / 2 * stride), sines(cosines.size());
        for (size_t i = 0; i < cosines.size(); ++i) {
          const float angle = static_cast<float>(Between(random_, 0, 9999));
          cosines[i] = std::cos(angle), sines[i] = std::sin(angle);
        }
        const TileRotation rotation{.interleaved = interleaved,
                                    .head_dim = head_dim,
                                    .n_heads = n_heads,
                                    .n_rot = n_rot,
                                    .cosines = cosines.data(),
                                    .sines = sines.data(),
                                    .stride = stride};
        std::vector<float> tile(n_heads * head_dim * kTileTokens);
        for (auto& v : tile) v = std::ldexp(Between(random_, -99999, 99999), -13);
        for (const auto turn : {&TransformKernels::rotate, &TransformKernels::unrotate}) {
          const auto run = [&](const TransformKernels& kernels) {
            return OnTile(tile, [&](float* values) { (kernels.*turn)(rotation, values); });
          };
          ASSERT_TRUE(SameBytes(run(kernels_), run(kTransformScalar)))
              << head_dim << " " << n_rot << " " << interleaved;
        }
      }
    }
  }
}

struct PlaceCase {
  ElementType type;
  bool rows;
  uint32_t n_channels, n_tokens;
};

std::vector<PlaceCase> PlaceCases() {
  std::vector<PlaceCase> cases;
  for (const auto type : {ElementType::kF16, ElementType::kBf16, ElementType::kF32}) {
    for (const bool rows : {true, false}) {
      for (const uint32_t channels : {1u, 2u, 8u, 15u, 16u, 17u, 30u, 32u, 80u, 128u, 256u}) {
        cases.push_back({type, rows, channels, 16});
      }
      for (uint32_t tokens = 1; tokens < 16; ++tokens) cases.push_back({type, rows, 34, tokens});
    }
  }
  return cases;
}

// A place in a plane with two more elements in each row.
TilePlace PlaceOf(const PlaceCase& c) {
  const size_t size = c.type == ElementType::kF32 ? 4 : 2;
  const size_t row = ((c.rows ? c.n_channels : c.n_tokens) + 2) * size;
  return {.type = c.type,
          .channel_stride = c.rows ? size : row,
          .token_stride = c.rows ? row : size,
          .n_tokens = c.n_tokens};
}

// From the first element to the last.
size_t BytesOf(const PlaceCase& c) {
  const TilePlace place = PlaceOf(c);
  return (c.n_channels - 1) * place.channel_stride + (c.n_tokens - 1) * place.token_stride +
         std::min(place.channel_stride, place.token_stride);
}

// Any bits, or values about the ranges and the roundings of 16-bit floats.
float AnyFloat(Random& random) {
  const uint32_t bits = static_cast<uint32_t>(random()) * 2 + static_cast<uint32_t>(random() % 2);
  switch (random() % 6) {
    case 0:
      return std::bit_cast<float>(bits);
    case 1:  // ties between 16-bit floats
      return std::bit_cast<float>((bits & 0x9fffe000) | 0x20001000);
    case 2:  // denormal as 16-bit floats
      return std::ldexp(static_cast<float>(Between(random, -4096, 4096)), -26);
    case 3:  // about the largest
      return (random() % 2 ? 1.0f : -1.0f) * static_cast<float>(Between(random, 65480, 65540));
    case 4:
      return std::bit_cast<float>((bits & 0x80000000) | (random() % 2 ? 0x7f800000 : 0x7f800001));
    default:
      return std::ldexp(static_cast<float>(Between(random, -9999999, 9999999)), -20);
  }
}

TEST_P(Kernels, Store) {
  for (const PlaceCase& c : PlaceCases()) {
    AlignedVector<float> values(c.n_channels * kTileTokens);
    for (auto& v : values) v = AnyFloat(random_);
    const auto run = [&](const TransformKernels& kernels) {
      std::vector<uint8_t> bytes(BytesOf(c) + 128, 0xa5);
      kernels.store(values.data(), c.n_channels, PlaceOf(c), bytes.data() + 62);
      return bytes;
    };
    // The scalar kernel writes element by element: what is equal to its bytes wrote no others.
    ASSERT_TRUE(SameBytes(run(kernels_), run(kTransformScalar)))
        << static_cast<int>(c.type) << " " << c.rows << " " << c.n_channels << " " << c.n_tokens;
  }
}

TEST_P(Kernels, Load) {
  for (const PlaceCase& c : PlaceCases()) {
    std::vector<uint8_t> bytes(BytesOf(c));
    for (auto& b : bytes) b = static_cast<uint8_t>(random_() >> 8);
    const auto run = [&](const TransformKernels& kernels) {
      return OnTile(std::vector<float>(c.n_channels * kTileTokens, 5), [&](float* values) {
        kernels.load(values, c.n_channels, PlaceOf(c), bytes.data());
      });
    };
    ASSERT_TRUE(SameBytes(run(kernels_), run(kTransformScalar)))
        << static_cast<int>(c.type) << " " << c.rows << " " << c.n_channels << " " << c.n_tokens;
  }
}

// Rows of weights whose magnitudes add up to 65535, with an extreme or spread evenly.
std::vector<int16_t> Weights(uint32_t n_components, uint32_t n_channels, Random& random) {
  std::vector<int16_t> weights(n_components * n_channels);
  for (uint32_t j = 0; j < n_components; ++j) {
    int32_t left = 65535;
    for (uint32_t c = 0; c < n_channels && left > 0; ++c) {
      const int32_t most = std::min(left, j % 2 ? 32767 : 65535 / static_cast<int32_t>(n_channels));
      const int32_t magnitude = j % 4 == 3 ? most : Between(random, 0, most);
      weights[j * n_channels + c] = static_cast<int16_t>(random() % 2 ? magnitude : -magnitude);
      left -= magnitude;
    }
  }
  return weights;
}

TEST_P(Kernels, Forward) {
  for (uint32_t n_channels = 2; n_channels <= 256; n_channels += n_channels < 40 ? 2 : 24) {
    for (const uint32_t n_components : {0u, 1u, 3u, 8u, 21u, n_channels}) {
      const auto weights = Weights(n_components, n_channels, random_);
      std::vector<float> mean(n_channels), to_fixed(n_channels), to_steps(n_components);
      for (auto& m : mean) m = std::ldexp(Between(random_, -9999, 9999), -14);
      for (auto& f : to_fixed) f = std::ldexp(Between(random_, 1, 9999), Between(random_, -6, 6));
      for (auto& s : to_steps)
        s = std::ldexp(Between(random_, 1, 9999), Between(random_, -40, -20));
      std::vector<float> values(n_channels * kTileTokens);
      for (auto& v : values) v = std::ldexp(Between(random_, -99999, 99999), -13);
      for (const float rounding : {0.5f, 0.4f, 0.0f}) {
        const ForwardBlock block{.n_channels = n_channels,
                                 .n_components = n_components,
                                 .mean = mean.data(),
                                 .to_fixed = to_fixed.data(),
                                 .weights = weights.data(),
                                 .to_steps = to_steps.data(),
                                 .rounding = rounding};
        const auto run = [&](const TransformKernels& kernels) {
          return OnTile(std::vector<int16_t>(n_components * kTileTokens), [&](int16_t* integers) {
            kernels.forward(block, values.data(), integers);
          });
        };
        ASSERT_TRUE(SameBytes(run(kernels_), run(kTransformScalar)))
            << n_channels << " channels, " << n_components << " components";
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, Kernels, testing::ValuesIn(SupportedIsas()),
                         [](const auto& info) { return std::string(IsaName(info.param)); });

}  // namespace
}  // namespace tandem::kvstore::codec
