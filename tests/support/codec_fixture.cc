#include "tests/support/codec_fixture.h"

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "kvstore/codec/half.h"

namespace tandem::kvstore::codec {

TestModel MakeModel(uint32_t n_layers, uint32_t n_heads, uint32_t head_dim, const std::string& type,
                    Rope::Style style, bool channel_major_v) {
  TestModel model;
  const uint32_t bytes = type == "f32" ? 4 : 2;
  model.geometry.layers.assign(n_layers, {n_heads, head_dim, head_dim});
  model.geometry.rope = {.style = style, .n_rot = head_dim};
  for (uint32_t i = 0; i < head_dim / 2; ++i) {
    model.geometry.rope.radians_per_position.push_back(
        std::pow(10000.0f, -2.0f * static_cast<float>(i) / static_cast<float>(head_dim)));
  }
  for (uint32_t i = 0; i < 2 * n_layers; ++i) {
    model.layout.planes.push_back({.type = type,
                                   .row_bytes = uint64_t{n_heads} * head_dim * bytes,
                                   .element_bytes = channel_major_v && i >= n_layers ? bytes : 0});
  }
  return model;
}

void PutElement(const std::string& type, float value, uint8_t* at) {
  const uint16_t half = type == "f16" ? FloatToHalf(value) : FloatToBf16(value);
  if (type == "f32")
    std::memcpy(at, &value, 4);
  else
    std::memcpy(at, &half, 2);
}

float GetElement(const std::string& type, const uint8_t* at) {
  float value;
  uint16_t half;
  if (type == "f32") return std::memcpy(&value, at, 4), value;
  std::memcpy(&half, at, 2);
  return type == "f16" ? HalfToFloat(half) : Bf16ToFloat(half);
}

size_t ElementAt(const TestModel& model, uint32_t n_tokens, size_t plane, uint32_t token,
                 uint32_t channel) {
  size_t at = 0;
  for (size_t p = 0; p < plane; ++p) at += model.layout.planes[p].row_bytes * n_tokens;
  const PlaneLayout& layout = model.layout.planes[plane];
  const size_t bytes = layout.type == "f32" ? 4 : 2;
  return layout.element_bytes ? at + (size_t{channel} * n_tokens + token) * bytes
                              : at + token * layout.row_bytes + channel * bytes;
}

KvChunk MakeChunk(const TestModel& model, uint32_t first_position, uint32_t n_tokens,
                  uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  KvChunk chunk{.first_position = first_position, .n_tokens = n_tokens};
  chunk.bytes.resize(model.layout.BytesPerToken() * n_tokens);
  for (size_t p = 0; p < model.layout.planes.size(); ++p) {
    const auto& layer = model.geometry.layers[p % model.geometry.layers.size()];
    const uint32_t n = layer.n_kv_heads * layer.k_head_dim;
    const bool key = p < model.geometry.layers.size();
    std::mt19937 fixed(static_cast<uint32_t>(p));  // the plane's own structure
    std::vector<float> mixing(n * 4);
    for (float& m : mixing) m = normal(fixed);
    for (uint32_t t = 0; t < n_tokens; ++t) {
      float causes[4];
      for (float& cause : causes) cause = normal(random);
      std::vector<float> row(n);
      for (uint32_t c = 0; c < n; ++c) {
        row[c] = 0.2f * normal(random) + static_cast<float>(c % 3);
        for (int i = 0; i < 4; ++i) row[c] += mixing[c * 4 + i] * causes[i];
      }
      for (uint32_t h = 0; key && h < layer.n_kv_heads; ++h) {
        Rotate(model.geometry.rope, std::span(row).subspan(h * layer.k_head_dim, layer.k_head_dim),
               first_position + t, 1);
      }
      for (uint32_t c = 0; c < n; ++c) {
        PutElement(model.layout.planes[p].type, row[c],
                   chunk.bytes.data() + ElementAt(model, n_tokens, p, t, c));
      }
    }
  }
  return chunk;
}

namespace {

/// A table of symbols from `lowest` to -lowest and an escape.
SymbolTable MakeTable(int lowest, double sigma) {
  std::vector<uint32_t> counts;
  for (int v = lowest; v <= -lowest; ++v) {
    counts.push_back(1 + static_cast<uint32_t>(1e6 * std::exp(-v * v / (2 * sigma * sigma))));
  }
  counts.push_back(20);
  return {static_cast<int16_t>(lowest), FrequencyTable::FromCounts(counts, kSymbolBits).value()};
}

}  // namespace

std::shared_ptr<const Profile> MakeProfile(const TestModel& model, uint32_t seed,
                                           Prediction prediction) {
  std::mt19937 random(seed);
  Profile profile{.model_fingerprint = kFingerprint, .geometry = model.geometry, .sink_tokens = 1};
  profile.tables = {MakeTable(-60, 20), MakeTable(-15, 4), MakeTable(-7, 1)};
  for (size_t l = 0; l < kLossyLevels; ++l) profile.levels[l].emplace();
  for (size_t p = 0; p < model.layout.planes.size(); ++p) {
    const auto& layer = model.geometry.layers[p % model.geometry.layers.size()];
    auto& blocks = profile.planes.emplace_back();
    for (const auto& [first, n] : BlockLayout(layer.n_kv_heads, layer.k_head_dim)) {
      Block& block = blocks.emplace_back(Block{.first_channel = first, .n_channels = n});
      for (uint32_t c = 0; c < n; ++c) {
        block.mean.push_back(static_cast<float>((first + c) % 3));
        block.scale.push_back(0.02f + 0.001f * static_cast<float>(c % 5));
        for (uint32_t j = 0; j < n; ++j) {
          block.basis.push_back(
              static_cast<int8_t>(j == c ? 60 : static_cast<int>(random() % 13) - 6));
        }
      }
    }
    for (size_t l = 0; l < kLossyLevels; ++l) {
      PlaneCoding& plane = profile.levels[l]->planes.emplace_back();
      plane.step = 0.4f * static_cast<float>(1 << l);
      for (const Block& block : blocks) {
        BlockCoding& coding = plane.blocks.emplace_back();
        coding.prediction = prediction;
        const size_t coded = block.n_channels - block.n_channels * l / 8;
        for (size_t j = 0; j < coded; ++j) {
          coding.tables.push_back(j < coded / 4 ? 0 : j < coded / 2 ? 1 : 2);
        }
      }
    }
  }
  const std::string file = SerializeProfile(profile);
  return std::make_shared<const Profile>(
      ParseProfile({reinterpret_cast<const uint8_t*>(file.data()), file.size()}).value());
}

}  // namespace tandem::kvstore::codec
