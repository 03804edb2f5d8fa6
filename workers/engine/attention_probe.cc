#include "workers/engine/attention_probe.h"

#include <algorithm>
#include <cstring>
#include <string_view>

#include "absl/strings/numbers.h"
#include "base/status.h"
#include "ggml-backend.h"

namespace tandem::workers {
namespace {

/// The layer whose cached keys `tensor` shows or is a copy of; -1 when it is something else.
int KeyCacheLayer(const ggml_tensor* tensor) {
  constexpr std::string_view kPrefix = "cache_k_l";
  while (tensor != nullptr) {
    if (tensor->view_src != nullptr) tensor = tensor->view_src;
    const std::string_view name = tensor->name;
    int layer = 0;
    if (name.starts_with(kPrefix) &&
        absl::SimpleAtoi(View(name.substr(kPrefix.size(), name.find(' ') - kPrefix.size())),
                         &layer)) {
      return layer;
    }
    const bool copied = tensor->op == GGML_OP_CPY || tensor->op == GGML_OP_CONT;
    tensor = copied ? tensor->src[0] : nullptr;
  }
  return -1;
}

/// What went into `tensor`, whatever it was reshaped to.
const ggml_tensor* Origin(const ggml_tensor* tensor) {
  while (tensor != nullptr && (tensor->op == GGML_OP_VIEW || tensor->op == GGML_OP_RESHAPE ||
                               tensor->op == GGML_OP_CONT)) {
    tensor = tensor->src[0];
  }
  return tensor;
}

/// A node in which keys meet queries: its operands, in both forms that libllama's attention has.
struct Attention {
  const ggml_tensor* queries = nullptr;
  const ggml_tensor* keys = nullptr;
};
Attention AttentionOf(const ggml_tensor* node) {
  if (node->op == GGML_OP_FLASH_ATTN_EXT) return {.queries = node->src[0], .keys = node->src[1]};
  if (node->op == GGML_OP_MUL_MAT) return {.queries = node->src[1], .keys = node->src[0]};
  return {};
}

AttentionLayer::Rotation ReadRotation(const ggml_tensor* rope) {
  // The order of ggml_rope_impl; GeometryOf checks the outcome against the engine's keys.
  const int32_t* integers = rope->op_params;
  const auto real = [integers](int i) {
    float value;
    std::memcpy(&value, integers + i, sizeof(value));
    return value;
  };
  AttentionLayer::Rotation rotation{.n_dims = integers[1],
                                    .mode = integers[2],
                                    .original_context = integers[4],
                                    .first_dim = integers[15],
                                    .freq_base = real(5),
                                    .freq_scale = real(6),
                                    .ext_factor = real(7),
                                    .beta_fast = real(9),
                                    .beta_slow = real(10)};
  if (const ggml_tensor* factors = rope->src[2]; factors != nullptr) {
    rotation.factors.resize(static_cast<size_t>(rotation.n_dims) / 2);
    ggml_backend_tensor_get(factors, rotation.factors.data(), 0,
                            rotation.factors.size() * sizeof(float));
  }
  return rotation;
}

}  // namespace

void AttentionProbe::Watch(ContextShape& shape) {
  shape.observer = OnNode;
  shape.observer_data = this;
}

bool AttentionProbe::OnNode(ggml_tensor* node, bool ask, void* self) {
  if (ask) {
    return node->op == GGML_OP_ROPE || (node->op == GGML_OP_SET_ROWS && KeyCacheLayer(node) >= 0) ||
           KeyCacheLayer(AttentionOf(node).keys) >= 0;
  }
  // After the node was computed: until then its operands are there, later their memory is reused.
  static_cast<AttentionProbe*>(self)->Look(node);
  return true;
}

void AttentionProbe::Look(ggml_tensor* node) {
  if (node->op == GGML_OP_ROPE) {
    rotations_[node] = ReadRotation(node);
    return;
  }
  if (node->op == GGML_OP_SET_ROWS) {
    const ggml_tensor* stored = Origin(node->src[0]);
    const bool rotated = stored->op == GGML_OP_ROPE && rotations_.contains(stored);
    auto& rotation = layers_[KeyCacheLayer(node)].rotation;
    rotation.reset();
    if (rotated) rotation = rotations_[stored];
    return;
  }
  const Attention attention = AttentionOf(node);
  AddQueries(attention.queries, layers_[KeyCacheLayer(attention.keys)]);
}

void AttentionProbe::AddQueries(const ggml_tensor* queries, AttentionLayer& layer) {
  layer.head_dim = static_cast<uint32_t>(queries->ne[0]);
  layer.n_query_heads = static_cast<uint32_t>(queries->ne[2]);
  if (queries->type != GGML_TYPE_F32 || queries->nb[0] != sizeof(float)) return;
  std::vector<uint8_t> bytes(ggml_nbytes(queries));
  ggml_backend_tensor_get(queries, bytes.data(), 0, bytes.size());
  layer.query_squares.resize(size_t{layer.head_dim} * layer.n_query_heads);
  for (int64_t stream = 0; stream < queries->ne[3]; ++stream) {
    for (int64_t head = 0; head < queries->ne[2]; ++head) {
      double* sums = layer.query_squares.data() + head * queries->ne[0];
      for (int64_t token = 0; token < queries->ne[1]; ++token) {
        const auto* row =
            reinterpret_cast<const float*>(bytes.data() + stream * queries->nb[3] +
                                           head * queries->nb[2] + token * queries->nb[1]);
        for (int64_t i = 0; i < queries->ne[0]; ++i) sums[i] += double{row[i]} * row[i];
      }
    }
  }
}

absl::StatusOr<std::map<int, AttentionLayer>> ProbeAttention(const Model& model,
                                                             const EngineOptions& options,
                                                             std::span<const int32_t> tokens) {
  RETURN_IF_ERROR(CheckOptions(model, options));
  ASSIGN_OR_RETURN(const CacheSettings settings, ParseCacheSettings(model, options));
  if (tokens.empty()) return absl::InvalidArgumentError("no tokens to probe attention with");
  const auto window = static_cast<uint32_t>(
      std::min<uint64_t>(tokens.size(), std::max(1u, model.training_context_tokens())));
  AttentionProbe probe;
  ContextShape shape{.n_ctx = window,
                     .n_sequences = 1,
                     .step_tokens = std::min(window, options.step_tokens),
                     .unified = true};
  probe.Watch(shape);
  const ComputeThreads threads(options.threads);
  ASSIGN_OR_RETURN(const ContextPtr context, MakeContext(model, settings, shape, threads));
  StepBatch batch(shape.step_tokens);
  for (size_t i = 0; i < tokens.size();) {
    if (i % window == 0) llama_memory_clear(llama_get_memory(context.get()), /*data=*/false);
    const size_t end = std::min(tokens.size(), i / window * window + window);
    batch.Clear();
    for (uint32_t n = 0; n < shape.step_tokens && i < end; ++n, ++i) {
      batch.Add(tokens[i], static_cast<int32_t>(i % window), 0, false);
    }
    RETURN_IF_ERROR(batch.Decode(context.get()));
  }
  return probe.layers();
}

}  // namespace tandem::workers
