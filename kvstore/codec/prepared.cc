#include "kvstore/codec/prepared.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "kvstore/codec/linear_algebra.h"

namespace tandem::kvstore::codec {
namespace {

/// The deadzone's rounding: halfway would be 0.5; a little less saves more than it loses.
constexpr float kRounding = 0.4f;
/// Fixed point of the forward transform: ± 32767 is so many standard deviations.
constexpr double kFixedRange = 16;

bool FloatType(const std::string& type, ElementType& element, uint32_t& bytes) {
  if (type == "f16")
    element = ElementType::kF16, bytes = 2;
  else if (type == "bf16")
    element = ElementType::kBf16, bytes = 2;
  else if (type == "f32")
    element = ElementType::kF32, bytes = 4;
  else
    return false;
  return true;
}

/// Fills in model.planes and model.no_lossy.
void PreparePlanes(PreparedModel& model) {
  struct Owner {
    uint32_t n_heads, head_dim;
    bool key;
  };
  std::vector<Owner> owners;
  for (const auto& l : model.geometry.layers) owners.push_back({l.n_kv_heads, l.k_head_dim, true});
  for (const auto& l : model.geometry.layers) {
    if (l.v_head_dim > 0) owners.push_back({l.n_kv_heads, l.v_head_dim, false});
  }
  const auto& layouts = model.layout.planes;
  if (model.layout.opaque)
    model.no_lossy = "this model's state cannot be cut into tokens";
  else if (owners.size() != layouts.size())
    model.no_lossy = "the geometry of its heads is not known";
  for (size_t i = 0; i < layouts.size(); ++i) {
    PlaneInfo plane{.shape = ShapeOfType(layouts[i].type),
                    .row_bytes = layouts[i].row_bytes,
                    .element_bytes = layouts[i].element_bytes};
    uint32_t bytes = 0;
    if (!FloatType(layouts[i].type, plane.type, bytes)) {
      model.no_lossy = absl::StrCat("its cache is ", layouts[i].type,
                                    ", and lossy levels are for f16, bf16 and f32");
    } else if (owners.size() == layouts.size()) {
      plane.n_heads = owners[i].n_heads;
      plane.head_dim = owners[i].head_dim;
      plane.n_channels = plane.n_heads * plane.head_dim;
      plane.rotated = owners[i].key && model.geometry.rope.style != Rope::Style::kNone &&
                      plane.head_dim <= kMaxBlockChannels;
      if (plane.n_channels == 0 || uint64_t{plane.n_channels} * bytes != plane.row_bytes) {
        model.no_lossy = "its heads do not fill its rows";
      }
    }
    model.planes.push_back(std::move(plane));
  }
  model.n_layers = static_cast<uint32_t>(std::max<size_t>(1, model.geometry.layers.size()));
  if (model.layout.planes.size() % model.n_layers != 0) model.n_layers = 1;
}

/// Of a table's symbols, by their frequencies; the escape counts as the outermost value.
double Variance(const SymbolTable& table) {
  double sum = 0;
  for (size_t s = 0; s < table.frequencies.size(); ++s) {
    const double value = table.lowest + static_cast<double>(s);
    sum += value * value * table.frequencies.frequencies()[s];
  }
  return sum / (1 << kSymbolBits);
}

/// The block's inverse side. `basis` is padded.
void PrepareInverse(const PreparedModel& model, const Block& block, float step,
                    const AlignedVector<int8_t>& basis, PreparedBlock& out) {
  const size_t n = block.n_channels, stride = BasisStride(block.n_channels);
  const size_t coded = out.tables.size();
  const bool predicted = out.prediction != Prediction::kNone;
  uint32_t wide = 0;
  for (size_t j = 0; j < coded; ++j) {
    const auto& table = model.tables[out.tables[j]];
    if (predicted || table.escape >= kNarrowSymbols) {
      wide = static_cast<uint32_t>(j / 4 + 1);
    }
  }
  out.bias.assign(n, 0);
  for (size_t c = 0; c < n; ++c) {
    for (size_t j = 0; j < coded; ++j) {
      // Predicted components are rebuilt first, and then stand as value + 128.
      const int32_t lowest = predicted ? -128 : model.tables[out.tables[j]].lowest;
      out.bias[c] += basis[c * stride + j] * lowest;
    }
  }
  for (const float s : block.scale) out.scale.push_back(s * step);
  out.inverse = {.n_channels = block.n_channels,
                 .n_quads = static_cast<uint32_t>((coded + 3) / 4),
                 .n_wide_quads = wide,
                 .basis = basis.data(),
                 .basis_stride = stride,
                 .bias = out.bias.data(),
                 .scale = out.scale.data(),
                 .mean = block.mean.data()};
}

/// The block's forward side: the first rows of the inverted basis, in fixed point.
void PrepareForward(const PreparedModel& model, const Block& block,
                    const std::vector<double>& inverted, PreparedBlock& out) {
  const size_t n = block.n_channels, padded = (n + 1) / 2 * 2, coded = out.tables.size();
  out.forward_mean.assign(padded, 0);
  out.to_fixed.assign(padded, 0);
  for (size_t c = 0; c < n; ++c) {
    // Components that are not coded are there all the same: they hardly ever round to 1.
    double variance = 1e-12;
    for (size_t j = 0; j < n; ++j) {
      const double b = block.basis[c * n + j];
      variance += b * b * (j < coded ? model.tables[out.tables[j]].variance + 0.1 : 0.25);
    }
    out.forward_mean[c] = block.mean[c];
    out.to_fixed[c] =
        static_cast<float>(32767 / (kFixedRange * std::sqrt(variance) * out.scale[c]));
  }
  out.weights.assign(coded * padded, 0);
  for (size_t j = 0; j < coded; ++j) {
    std::vector<double> row(n);
    double sum = 0;
    for (size_t c = 0; c < n; ++c) {
      row[c] = inverted[j * n + c] / (static_cast<double>(out.scale[c]) * out.to_fixed[c]);
      sum += std::abs(row[c]);
    }
    const double unit = (65535.0 - static_cast<double>(n)) / std::max(sum, 1e-30);
    // A row of one entry alone would not fit 16 bits.
    double fit = unit;
    for (const double w : row) fit = std::min(fit, 32767 / std::max(std::abs(w), 1e-30));
    for (size_t c = 0; c < n; ++c) {
      out.weights[j * padded + c] = static_cast<int16_t>(std::lround(row[c] * fit));
    }
    out.to_steps.push_back(static_cast<float>(1 / fit));
  }
  out.forward = {.n_channels = static_cast<uint32_t>(padded),
                 .n_components = static_cast<uint32_t>(coded),
                 .mean = out.forward_mean.data(),
                 .to_fixed = out.to_fixed.data(),
                 .weights = out.weights.data(),
                 .to_steps = out.to_steps.data(),
                 .rounding = kRounding};
}

absl::Status PrepareBlocks(PreparedModel& model) {
  const Profile& profile = *model.profile;
  for (size_t p = 0; p < profile.planes.size(); ++p) {
    auto& bases = model.bases.emplace_back();
    for (auto& level : model.levels) level.planes.emplace_back();
    for (size_t b = 0; b < profile.planes[p].size(); ++b) {
      const Block& block = profile.planes[p][b];
      const size_t n = block.n_channels, stride = BasisStride(block.n_channels);
      auto& basis = bases.emplace_back(n * stride, int8_t{0});
      for (size_t c = 0; c < n; ++c) {
        std::copy_n(block.basis.data() + c * n, n, basis.data() + c * stride);
      }
      const std::vector<double> inverted =
          Invert(std::vector<double>(block.basis.begin(), block.basis.end()), n);
      if (inverted.empty()) {
        return absl::InvalidArgumentError("the KV profile has a transform without an inverse");
      }
      for (size_t l = 0; l < kLossyLevels; ++l) {
        if (!profile.levels[l]) continue;
        const PlaneCoding& plane = profile.levels[l]->planes[p];
        PreparedBlock& out = model.levels[l].planes[p].emplace_back();
        out.first_channel = block.first_channel;
        out.n_channels = block.n_channels;
        out.n_heads = block.n_channels / std::max(1u, model.planes[p].head_dim);
        out.prediction = plane.blocks[b].prediction;
        out.tables = plane.blocks[b].tables;
        PrepareInverse(model, block, plane.step, basis, out);
        PrepareForward(model, block, inverted, out);
      }
    }
  }
  return absl::OkStatus();
}

absl::Status CheckProfile(const PreparedModel& model, const std::string& fingerprint) {
  const Profile& profile = *model.profile;
  if (profile.model_fingerprint != fingerprint) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the KV profile belongs to another model (SHA-256 begins with ",
        absl::BytesToHexString(profile.model_fingerprint.substr(0, 6)), ", this one's with ",
        absl::BytesToHexString(fingerprint.substr(0, 6)), "): make one with 'tandem kv profile'"));
  }
  if (profile.geometry != model.geometry) {
    return absl::FailedPreconditionError(
        "the KV profile was made with another rotation of keys (context or RoPE settings): make "
        "it anew with 'tandem kv profile'");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::shared_ptr<const PreparedModel>> Prepare(KvLayout layout, KvGeometry geometry,
                                                             const std::string& fingerprint,
                                                             std::shared_ptr<const Profile> profile,
                                                             Isa isa) {
  auto model = std::make_shared<PreparedModel>();
  model->layout = std::move(layout);
  model->geometry = std::move(geometry);
  model->profile = std::move(profile);
  model->isa = isa;
  model->kernels = &KernelsFor(isa);
  PreparePlanes(*model);
  if (!model->no_lossy.empty()) return model;
  model->rotations = Rotations(model->geometry.rope);
  if (!model->profile) return model;
  RETURN_IF_ERROR(CheckProfile(*model, fingerprint));
  model->tables.reserve(model->profile->tables.size());
  for (const SymbolTable& table : model->profile->tables) {
    model->tables.push_back({.lowest = table.lowest,
                             .escape = static_cast<uint8_t>(table.escape()),
                             .variance = Variance(table),
                             .decode = DecodeTable(table.frequencies),
                             .encode = EncodeTable(table.frequencies)});
  }
  RETURN_IF_ERROR(PrepareBlocks(*model));
  return model;
}

}  // namespace tandem::kvstore::codec
