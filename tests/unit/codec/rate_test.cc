// What a lossy chunk costs beyond its own models' cross-entropy: states, headers, counts.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "kvstore/codec/analysis.h"
#include "tests/support/codec_fixture.h"

namespace tandem::kvstore::codec {
namespace {

constexpr uint32_t kLayers = 8, kHeads = 2, kHeadDim = 64, kChannels = kHeads * kHeadDim;
constexpr size_t kGaussTables = 32;

/// Standard deviation of component j, in steps of q1: few strong ones and many weak ones, as in
/// real KV.
double Spread(size_t j) { return 14 * std::pow(0.94, static_cast<double>(j)); }

double SpreadOfTable(size_t i) { return 0.12 * std::pow(2.0, static_cast<double>(i) / 4); }

SymbolTable GaussTable(double spread) {
  const int highest = static_cast<int>(std::ceil(3.5 * spread));
  std::vector<uint32_t> counts;
  for (int v = -highest; v <= highest; ++v) {
    counts.push_back(1 + static_cast<uint32_t>(1e6 * std::exp(-v * v / (2 * spread * spread))));
  }
  counts.push_back(200);
  return {static_cast<int16_t>(-highest), FrequencyTable::FromCounts(counts, kSymbolBits).value()};
}

/// The fixture's transforms with tables that fit; each level's step is twice the one before.
std::shared_ptr<const Profile> FittingProfile(const TestModel& model) {
  Profile profile = *MakeProfile(model, 1);
  profile.tables.clear();
  for (size_t i = 0; i < kGaussTables; ++i) {
    profile.tables.push_back(GaussTable(SpreadOfTable(i)));
  }
  for (size_t l = 0; l < kLossyLevels; ++l) {
    for (PlaneCoding& plane : profile.levels[l]->planes) {
      plane.step = static_cast<float>(1 << l);
      plane.blocks[0].tables.clear();
      for (size_t j = 0; j < kChannels && Spread(j) / (1 << l) > 0.15; ++j) {
        const double index = std::round(4 * std::log2(Spread(j) / (1 << l) / SpreadOfTable(0)));
        plane.blocks[0].tables.push_back(
            static_cast<uint8_t>(std::clamp(index, 0.0, double{kGaussTables - 1})));
      }
    }
  }
  const std::string file = SerializeProfile(profile);
  return std::make_shared<const Profile>(
      ParseProfile({reinterpret_cast<const uint8_t*>(file.data()), file.size()}).value());
}

/// KV of which the profile's components are independent; every fiftieth token is loud.
KvChunk FittingChunk(const TestModel& model, const Profile& profile, uint32_t n_tokens) {
  KvChunk chunk{.first_position = 256, .n_tokens = n_tokens};
  chunk.bytes.resize(model.layout.BytesPerToken() * n_tokens);
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  for (size_t p = 0; p < profile.planes.size(); ++p) {
    const Block& block = profile.planes[p][0];
    for (uint32_t t = 0; t < n_tokens; ++t) {
      std::vector<float> components(kChannels), row(kChannels);
      for (size_t j = 0; j < kChannels; ++j) {
        components[j] = normal(random) * static_cast<float>(Spread(j)) * (t % 50 == 49 ? 2 : 1);
      }
      for (size_t c = 0; c < kChannels; ++c) {
        float sum = 0;
        for (size_t j = 0; j < kChannels; ++j) {
          sum += static_cast<float>(block.basis[c * kChannels + j]) * components[j];
        }
        row[c] = block.mean[c] + block.scale[c] * sum;
      }
      for (size_t h = 0; p < kLayers && h < kHeads; ++h) {
        Rotate(model.geometry.rope, std::span(row).subspan(h * kHeadDim, kHeadDim),
               chunk.first_position + t, 1);
      }
      for (uint32_t c = 0; c < kChannels; ++c) {
        PutElement("f16", row[c], chunk.bytes.data() + ElementAt(model, n_tokens, p, t, c));
      }
    }
  }
  return chunk;
}

/// Bytes that the chunk's symbols and escaped values cost by the profile's own tables.
double ModelBytes(ChunkAnalyser& analyser, const Profile& profile, Level level) {
  const std::vector<uint8_t> skip(analyser.n_tokens(), 0);
  double bits = 0;
  for (size_t p = 0; p < profile.planes.size(); ++p) {
    const auto integers = analyser.Integers(level, p, 0, skip);
    const auto& tables = profile.levels[LossyIndex(level)]->planes[p].blocks[0].tables;
    for (size_t j = 0; j < tables.size(); ++j) {
      const SymbolTable& table = profile.tables[tables[j]];
      for (uint32_t t = 0; t < analyser.n_tokens(); ++t) {
        const int symbol = integers[j * analyser.stride() + t] - table.lowest;
        const bool escaped = symbol < 0 || symbol >= static_cast<int>(table.escape());
        bits += table.frequencies.SymbolBits(escaped ? table.escape() : symbol);
        if (escaped) bits += 16;
      }
    }
  }
  return bits / 8;
}

class Rate : public testing::Test {
 protected:
  /// The chunk's size, and what its models alone would cost.
  struct Cost {
    double coded, model;
  };
  Cost CostOf(uint32_t n_tokens, Level level) const {
    const KvChunk chunk = FittingChunk(model_, *profile_, n_tokens);
    const auto codec = Codec::Create(model_.layout, model_.geometry, kFingerprint, profile_);
    auto analyser =
        ChunkAnalyser::Create(model_.layout, model_.geometry, kFingerprint, profile_).value();
    analyser.Open(chunk);
    return {static_cast<double>(codec->Encode(chunk, {.level = level})->size()),
            ModelBytes(analyser, *profile_, level)};
  }

  const TestModel model_ = MakeModel(kLayers, kHeads, kHeadDim);
  const std::shared_ptr<const Profile> profile_ = FittingProfile(model_);
};

TEST_F(Rate, AChunkCostsWhatItsModelsSay) {
  constexpr double kElements = 256.0 * 2 * kLayers * kChannels;
  for (const Level level : {Level::kQ1, Level::kQ2, Level::kQ3, Level::kQ4}) {
    const Cost cost = CostOf(256, level);
    EXPECT_GT(cost.coded, cost.model) << LevelName(level);
    EXPECT_LT(cost.coded, 1.02 * cost.model) << LevelName(level);
    const double bits_per_element = 8 * cost.coded / kElements;
    if (level == Level::kQ4) {
      EXPECT_LT(bits_per_element, 0.45) << "not the coarse level that this is about";
    }
    RecordProperty(std::string(LevelName(level)) + "_bits_per_element",
                   std::to_string(bits_per_element));
    RecordProperty(std::string(LevelName(level)) + "_overhead",
                   std::to_string(cost.coded / cost.model - 1));
  }
}

TEST_F(Rate, AShortChunkCostsLittleMore) {
  for (const uint32_t n_tokens : {1, 17, 63}) {
    const Cost cost = CostOf(n_tokens, Level::kQ3);
    EXPECT_LT(cost.coded, cost.model + 200) << n_tokens;
  }
}

}  // namespace
}  // namespace tandem::kvstore::codec
