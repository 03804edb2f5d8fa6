#include "kvstore/codec/profile.h"

#include <xxhash.h>

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "kvstore/codec/byte_io.h"

namespace tandem::kvstore::codec {
namespace {

constexpr uint32_t kMagic = 0x50564b54;  // "TKVP"
constexpr uint32_t kVersion = 1;
// More than any model has: bounds what a hostile file may ask for.
constexpr uint32_t kMaxLayers = 4096, kMaxChannels = 1 << 20;

absl::Status Bad(std::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("not a usable KV profile: ", std::string(what)));
}

// Wide enough for any model, and narrow enough that no product of two of them overflows.
constexpr float kSmallest = 1e-12f, kLargest = 1e12f;

bool Finite(std::span<const float> values) {
  return std::all_of(values.begin(), values.end(), [](float v) { return std::abs(v) <= kLargest; });
}

bool UsableStep(float step) { return step >= kSmallest && step <= kLargest; }

/// K of every layer, then V of every layer, if V is cached.
struct PlaneShape {
  uint32_t n_heads = 0, head_dim = 0;
};
std::vector<PlaneShape> PlaneShapes(const KvGeometry& geometry) {
  std::vector<PlaneShape> shapes;
  for (const auto& layer : geometry.layers) shapes.push_back({layer.n_kv_heads, layer.k_head_dim});
  for (const auto& layer : geometry.layers) {
    if (layer.v_head_dim > 0) shapes.push_back({layer.n_kv_heads, layer.v_head_dim});
  }
  return shapes;
}

void WriteGeometry(const KvGeometry& geometry, ByteWriter& out) {
  out.Write(static_cast<uint32_t>(geometry.layers.size()));
  for (const auto& layer : geometry.layers) {
    out.Write(layer.n_kv_heads);
    out.Write(layer.k_head_dim);
    out.Write(layer.v_head_dim);
  }
  out.Write(static_cast<uint8_t>(geometry.rope.style));
  out.Write(geometry.rope.n_rot);
  out.WriteMany(std::span(geometry.rope.radians_per_position));
}

absl::StatusOr<KvGeometry> ReadGeometry(ByteReader& in) {
  KvGeometry geometry;
  const uint32_t n_layers = in.Read<uint32_t>();
  if (n_layers == 0 || n_layers > kMaxLayers) return Bad("its number of layers is impossible");
  for (uint32_t i = 0; i < n_layers && in.ok(); ++i) {
    KvGeometry::Layer& layer = geometry.layers.emplace_back();
    layer.n_kv_heads = in.Read<uint32_t>();
    layer.k_head_dim = in.Read<uint32_t>();
    layer.v_head_dim = in.Read<uint32_t>();
    const uint64_t widest = std::max(layer.k_head_dim, layer.v_head_dim);
    if (layer.k_head_dim == 0 || layer.n_kv_heads == 0 ||
        layer.n_kv_heads * widest > kMaxChannels) {
      return Bad("a layer's width is impossible");
    }
  }
  const uint8_t style = in.Read<uint8_t>();
  if (style > static_cast<uint8_t>(Rope::Style::kHalves)) return Bad("unknown kind of rotation");
  geometry.rope.style = static_cast<Rope::Style>(style);
  geometry.rope.n_rot = in.Read<uint32_t>();
  geometry.rope.radians_per_position = in.ReadMany<float>(geometry.rope.n_rot / 2);
  for (const auto& layer : geometry.layers) {
    if (geometry.rope.n_rot % 2 != 0 || geometry.rope.n_rot > layer.k_head_dim) {
      return Bad("its rotation is wider than a head");
    }
  }
  if (!Finite(geometry.rope.radians_per_position)) return Bad("a rotation is not finite");
  return geometry;
}

absl::StatusOr<std::vector<SymbolTable>> ReadTables(ByteReader& in) {
  std::vector<SymbolTable> tables;
  const uint32_t n = in.Read<uint16_t>();
  if (n > kMaxTables) return Bad("too many symbol tables");
  for (uint32_t i = 0; i < n && in.ok(); ++i) {
    const int16_t lowest = in.Read<int16_t>();
    const auto frequencies = in.ReadMany<uint16_t>(in.Read<uint16_t>());
    const bool holes = std::count(frequencies.begin(), frequencies.end(), 0) > 0;
    if (frequencies.size() < 2 || holes || lowest > 0 ||
        lowest + static_cast<int>(frequencies.size()) < 2) {
      return Bad("a symbol table cannot code every value");
    }
    ASSIGN_OR_RETURN(FrequencyTable table,
                     FrequencyTable::FromFrequencies(frequencies, kSymbolBits));
    tables.push_back({lowest, std::move(table)});
  }
  return tables;
}

absl::StatusOr<Block> ReadBlock(ByteReader& in, std::pair<uint32_t, uint32_t> place) {
  Block block{.first_channel = place.first, .n_channels = place.second};
  const size_t n = block.n_channels;
  block.mean = in.ReadMany<float>(n);
  block.scale = in.ReadMany<float>(n);
  block.basis = in.ReadMany<int8_t>(n * n);
  if (!Finite(block.mean) || !std::all_of(block.scale.begin(), block.scale.end(), UsableStep) ||
      std::any_of(block.basis.begin(), block.basis.end(),
                  [](int8_t b) { return std::abs(b) > kMaxBasis; })) {
    return Bad("a transform is out of range");
  }
  return block;
}

absl::StatusOr<LevelProfile> ReadLevel(ByteReader& in, const Profile& profile) {
  LevelProfile level;
  Measurement& m = level.measured;
  for (float* value : {&m.bits_per_element, &m.perplexity_change, &m.perplexity_change_se,
                       &m.kl_divergence, &m.top1_agreement}) {
    *value = in.Read<float>();
  }
  for (const auto& blocks : profile.planes) {
    PlaneCoding& plane = level.planes.emplace_back();
    plane.step = in.Read<float>();
    if (in.ok() && !UsableStep(plane.step)) return Bad("a step is not positive");
    for (const Block& block : blocks) {
      BlockCoding& coding = plane.blocks.emplace_back();
      const uint8_t prediction = in.Read<uint8_t>();
      if (prediction > static_cast<uint8_t>(Prediction::kAnchor)) return Bad("unknown prediction");
      coding.prediction = static_cast<Prediction>(prediction);
      coding.tables = in.ReadMany<uint8_t>(in.Read<uint16_t>());
      if (coding.tables.size() > block.n_channels) return Bad("more components than channels");
      for (const uint8_t table : coding.tables) {
        if (table >= profile.tables.size()) return Bad("a symbol table is missing");
      }
    }
    if (!in.ok()) break;
  }
  return level;
}

absl::StatusOr<Profile> ReadBody(ByteReader& in) {
  Profile profile;
  const auto fingerprint = in.Take(32);
  profile.model_fingerprint.assign(fingerprint.begin(), fingerprint.end());
  ASSIGN_OR_RETURN(profile.geometry, ReadGeometry(in));
  profile.sink_tokens = in.Read<uint32_t>();
  ASSIGN_OR_RETURN(profile.tables, ReadTables(in));
  for (const PlaneShape& shape : PlaneShapes(profile.geometry)) {
    auto& blocks = profile.planes.emplace_back();
    for (const auto& place : BlockLayout(shape.n_heads, shape.head_dim)) {
      ASSIGN_OR_RETURN(Block block, ReadBlock(in, place));
      if (!in.ok()) return Bad("it ends too early");
      blocks.push_back(std::move(block));
    }
  }
  for (auto& level : profile.levels) {
    const uint8_t present = in.Read<uint8_t>();
    if (present > 1) return Bad("a level is neither present nor absent");
    if (present == 0) continue;
    ASSIGN_OR_RETURN(level, ReadLevel(in, profile));
  }
  if (!in.done()) return Bad(in.ok() ? "there is something behind its end" : "it ends too early");
  return profile;
}

void WriteLevel(const LevelProfile& level, ByteWriter& out) {
  const Measurement& m = level.measured;
  for (const float value : {m.bits_per_element, m.perplexity_change, m.perplexity_change_se,
                            m.kl_divergence, m.top1_agreement}) {
    out.Write(value);
  }
  for (const PlaneCoding& plane : level.planes) {
    out.Write(plane.step);
    for (const BlockCoding& block : plane.blocks) {
      out.Write(static_cast<uint8_t>(block.prediction));
      out.Write(static_cast<uint16_t>(block.tables.size()));
      out.WriteMany(std::span(block.tables));
    }
  }
}

std::vector<uint8_t> WriteBody(const Profile& profile) {
  std::vector<uint8_t> body;
  ByteWriter out(body);
  out.WriteMany(std::span(profile.model_fingerprint));
  WriteGeometry(profile.geometry, out);
  out.Write(profile.sink_tokens);
  out.Write(static_cast<uint16_t>(profile.tables.size()));
  for (const SymbolTable& table : profile.tables) {
    out.Write(table.lowest);
    out.Write(static_cast<uint16_t>(table.frequencies.size()));
    out.WriteMany(table.frequencies.frequencies());
  }
  for (const auto& blocks : profile.planes) {
    for (const Block& block : blocks) {
      out.WriteMany(std::span(block.mean));
      out.WriteMany(std::span(block.scale));
      out.WriteMany(std::span(block.basis));
    }
  }
  for (const auto& level : profile.levels) {
    out.Write(static_cast<uint8_t>(level.has_value()));
    if (level) WriteLevel(*level, out);
  }
  return body;
}

}  // namespace

std::vector<std::pair<uint32_t, uint32_t>> BlockLayout(uint32_t n_heads, uint32_t head_dim) {
  constexpr uint32_t kUsual = 128;
  std::vector<std::pair<uint32_t, uint32_t>> blocks;
  const uint32_t n_channels = n_heads * head_dim;
  const bool whole_heads = head_dim <= kMaxBlockChannels;
  const uint32_t size =
      whole_heads ? std::max(1u, kUsual / std::max(1u, head_dim)) * head_dim : kUsual;
  for (uint32_t first = 0; first < n_channels; first += size) {
    blocks.emplace_back(first, std::min(size, n_channels - first));
  }
  return blocks;
}

std::string SerializeProfile(const Profile& profile) {
  const std::vector<uint8_t> body = WriteBody(profile);
  std::vector<uint8_t> file;
  ByteWriter out(file);
  out.Write(kMagic);
  out.Write(kVersion);
  out.Write(static_cast<uint64_t>(XXH3_64bits(body.data(), body.size())));
  out.WriteMany(std::span(body));
  return std::string(file.begin(), file.end());
}

absl::StatusOr<Profile> ParseProfile(std::span<const uint8_t> bytes) {
  ByteReader in(bytes);
  if (in.Read<uint32_t>() != kMagic) return Bad("it does not begin like one");
  if (const uint32_t version = in.Read<uint32_t>(); version != kVersion) {
    return absl::FailedPreconditionError(absl::StrCat("the KV profile has version ", version,
                                                      "; this program reads ", kVersion,
                                                      ": make it anew with 'tandem kv profile'"));
  }
  const uint64_t checksum = in.Read<uint64_t>();
  if (XXH3_64bits(in.rest().data(), in.rest().size()) != checksum) {
    return absl::DataLossError("the KV profile is damaged: its checksum is wrong");
  }
  ASSIGN_OR_RETURN(Profile profile, ReadBody(in));
  profile.id = checksum;
  return profile;
}

}  // namespace tandem::kvstore::codec
