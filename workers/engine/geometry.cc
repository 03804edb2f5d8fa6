#include "workers/engine/geometry.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "workers/engine/attention_probe.h"
#include "workers/engine/sequence_state.h"

namespace tandem::workers {
namespace {

using kvstore::KvGeometry;
using kvstore::Rope;

/// The same token in a sequence each, at these positions and at a far one.
constexpr int32_t kNearPositions[] = {0, 1, 77};
constexpr uint32_t kSequences = 4;
/// Beyond this the engine's own angles, which are float, are too inexact for the comparison.
constexpr uint32_t kFarthest = 8192;

std::vector<int32_t> Positions(const Model& model) {
  std::vector<int32_t> positions(std::begin(kNearPositions), std::end(kNearPositions));
  const uint32_t room = std::clamp(model.training_context_tokens(), 128u, kFarthest);
  positions.push_back(static_cast<int32_t>(room) - 1);
  return positions;
}

/// Cells for the probe. Models with two sets of frequency factors take the second in contexts
/// longer than the original one, so the probe's must be on the same side of that as the engine's.
uint32_t ProbeCells(const Engine& engine) {
  const llama_model* model = engine.model().handle();
  const auto meta = [model](const std::string& key) {
    char value[256];
    return std::string(
        llama_model_meta_val_str(model, key.c_str(), value, sizeof(value)) < 0 ? "" : value);
  };
  const EngineOptions& options = engine.options();
  const uint64_t cells =
      options.use == EngineOptions::Use::kPrefill ? options.kv_tokens : options.context_tokens;
  constexpr uint32_t kEnough = 256;  // libllama rounds up to multiples of this
  uint32_t original = 0;
  if (!absl::SimpleAtoi(
          meta(meta("general.architecture") + ".rope.scaling.original_context_length"),
          &original) ||
      (cells + kEnough - 1) / kEnough * kEnough <= original) {
    return kEnough;
  }
  return original + 1;
}

/// The angles as ggml computes them, before they are multiplied by the position.
std::vector<float> RadiansOf(const AttentionLayer::Rotation& rotation) {
  float corrected[2];
  ggml_rope_yarn_corr_dims(rotation.n_dims, rotation.original_context, rotation.freq_base,
                           rotation.beta_fast, rotation.beta_slow, corrected);
  std::vector<float> radians;
  for (int32_t i = 0; i < rotation.n_dims / 2; ++i) {
    const double factor = rotation.factors.empty() ? 1 : rotation.factors[i];
    const double plain = std::pow(double{rotation.freq_base}, -2.0 * i / rotation.n_dims) / factor;
    const double scaled = plain * rotation.freq_scale;
    const double span = std::max(0.001, double{corrected[1]} - corrected[0]);
    const double ramp = 1 - std::clamp((i - double{corrected[0]}) / span, 0.0, 1.0);
    const double mix = ramp * rotation.ext_factor;
    radians.push_back(static_cast<float>(scaled * (1 - mix) + plain * mix));
  }
  return radians;
}

/// The one rotation of all layers; kNone with the `reason` when there is none that is known.
Rope RopeOf(const std::map<int, AttentionLayer>& layers, std::string& reason) {
  const auto& first = layers.begin()->second.rotation;
  for (const auto& [number, layer] : layers) {
    if (!layer.rotation) {
      reason = absl::StrCat("those of layer ", number, " are not stored as rotated");
      return {};
    }
    if (layer.rotation != first) {
      reason = absl::StrCat("layer ", number, " rotates otherwise than the first");
      return {};
    }
  }
  const bool pairs = first->mode == GGML_ROPE_TYPE_NORMAL;
  if ((!pairs && first->mode != GGML_ROPE_TYPE_NEOX) || first->first_dim != 0) {
    reason =
        absl::StrCat("they are rotated in mode ", first->mode, " from channel ", first->first_dim);
    return {};
  }
  return {.style = pairs ? Rope::Style::kInterleaved : Rope::Style::kHalves,
          .n_rot = static_cast<uint32_t>(first->n_dims),
          .radians_per_position = RadiansOf(*first)};
}

/// Channels of a row.
uint64_t Elements(const BlobPlane& plane) {
  const auto type = static_cast<ggml_type>(plane.ggml_type);
  return plane.row_bytes / ggml_type_size(type) * static_cast<uint64_t>(ggml_blck_size(type));
}

absl::StatusOr<std::vector<KvGeometry::Layer>> LayersOf(
    const BlobFormat& format, const std::map<int, AttentionLayer>& found) {
  const size_t n = format.n_layers;
  const bool has_v = format.planes.size() > n;
  std::vector<KvGeometry::Layer> layers;
  for (const auto& [number, layer] : found) {
    const size_t i = layers.size();
    if (i == n || layer.head_dim == 0) break;
    const uint64_t k = Elements(format.planes[i]), v = has_v ? Elements(format.planes[n + i]) : 0;
    const uint64_t heads = k / layer.head_dim;
    if (heads == 0 || k % layer.head_dim != 0 || v % heads != 0) break;
    layers.push_back({.n_kv_heads = static_cast<uint32_t>(heads),
                      .k_head_dim = layer.head_dim,
                      .v_head_dim = static_cast<uint32_t>(v / heads)});
  }
  if (layers.size() == n && found.size() == n) return layers;
  return absl::InternalError(absl::StrCat("libllama's graph has ", found.size(),
                                          " layers with attention, ", layers.size(),
                                          " of them as in its KV cache, which has ", n));
}

/// The probe's context, and what it stored first: for each position the first layer's keys.
struct Stored {
  BlobFormat format;
  std::vector<std::vector<float>> keys;
};

absl::StatusOr<Stored> Compute(const Engine& engine, const CacheSettings& settings,
                               AttentionProbe& probe) {
  ContextShape shape{.n_ctx = ProbeCells(engine),
                     .n_sequences = kSequences,
                     .step_tokens = kSequences,
                     .unified = true};
  probe.Watch(shape);
  const ComputeThreads threads(engine.options().threads);
  ASSIGN_OR_RETURN(const ContextPtr context, MakeContext(engine.model(), settings, shape, threads));
  StepBatch batch(kSequences);
  const std::vector<int32_t> positions = Positions(engine.model());
  for (uint32_t i = 0; i < kSequences; ++i) {
    // An ordinary token: special ones may have embeddings that were never trained.
    batch.Add(static_cast<int32_t>(engine.model().vocabulary_size() / 2), positions[i],
              static_cast<int32_t>(i), false);
  }
  RETURN_IF_ERROR(batch.Decode(context.get()));

  Stored stored;
  auto pool = std::make_shared<BufferPool>();
  for (uint32_t i = 0; i < kSequences; ++i) {
    ASSIGN_OR_RETURN(const PooledBuffer state,
                     ReadState(context.get(), static_cast<int32_t>(i), *pool));
    ASSIGN_OR_RETURN(const Blob blob, ParseBlob(state.bytes()));
    stored.format = blob.format;
    const BlobPlane& plane = blob.format.planes[0];
    const uint8_t* row = state.bytes().data() + blob.plane_offsets[0];
    std::vector<float>& keys = stored.keys.emplace_back(Elements(plane));
    const auto* traits = ggml_get_type_traits(static_cast<ggml_type>(plane.ggml_type));
    if (plane.ggml_type == GGML_TYPE_F32) {
      std::memcpy(keys.data(), row, plane.row_bytes);
    } else {
      traits->to_float(row, keys.data(), static_cast<int64_t>(keys.size()));
    }
  }
  return stored;
}

/// The largest distance of one head's keys at two positions, turned back, as a share of their
/// length.
double Deviation(const Rope& rope, Stored stored, std::span<const int32_t> positions,
                 uint32_t head_dim) {
  double worst = 0;
  for (size_t head = 0; head < stored.keys[0].size(); head += head_dim) {
    for (size_t i = 0; i < stored.keys.size(); ++i) {
      const std::span<float> key(stored.keys[i].data() + head, head_dim);
      Rotate(rope, key, positions[i], -1);
      double distance = 0, length = 0;
      for (uint32_t c = 0; c < head_dim; ++c) {
        const double first = stored.keys[0][head + c];
        distance += (key[c] - first) * (key[c] - first);
        length += first * first;
      }
      const double here = std::sqrt(distance / std::max(length, 1e-30));
      if (!(here <= worst)) worst = here;  // also when it is not a number
    }
  }
  return worst;
}

}  // namespace

absl::StatusOr<KvGeometry> GeometryOf(const Engine& engine) {
  KvGeometry geometry;
  if (engine.layout().opaque) return geometry;
  ASSIGN_OR_RETURN(const CacheSettings settings,
                   ParseCacheSettings(engine.model(), engine.options()));
  AttentionProbe probe;
  ASSIGN_OR_RETURN(const Stored stored, Compute(engine, settings, probe));
  ASSIGN_OR_RETURN(geometry.layers, LayersOf(stored.format, probe.layers()));

  std::string reason;
  if (ggml_is_quantized(settings.k_type)) {
    reason = "the cache is quantised";
  } else {
    geometry.rope = RopeOf(probe.layers(), reason);
  }
  if (reason.empty()) {
    // Two roundings to the cache's type, and the engine's angles in float at the far position.
    const double tolerance = settings.k_type == GGML_TYPE_BF16 ? 1.5e-2 : 2e-3;
    const double deviation =
        Deviation(geometry.rope, stored, Positions(engine.model()), geometry.layers[0].k_head_dim);
    if (!(deviation <= tolerance)) {
      reason = absl::StrCat("turned back, a token's keys at several positions differ by ",
                            deviation, " of their length");
    }
  }
  if (!reason.empty()) {
    spdlog::warn("engine keys are coded as they are model={} reason=\"{}\"", engine.model().name(),
                 reason);
    geometry.rope = {};
  }
  return geometry;
}

}  // namespace tandem::workers
