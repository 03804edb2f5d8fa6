#include "tests/support/tiny_model.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "tests/support/gguf_writer.h"

namespace tandem::testing_models {
namespace {

constexpr int64_t kWidth = 64, kInner = 2 * kWidth, kFeedForward = 96;
constexpr uint32_t kHeads = 2;

class Writer : public GgufWriter {
 public:
  Writer(const gguf_context* tokenizer, const std::string& architecture, uint32_t layers)
      : GgufWriter(tokenizer, architecture, size_t{32} << 20) {
    const int64_t tokens = gguf_find_key(tokenizer, "tokenizer.ggml.tokens");
    Number("block_count", layers);
    Number("context_length", 2048);
    Number("embedding_length", kWidth);
    Number("feed_forward_length", kFeedForward);
    Real("attention.layer_norm_rms_epsilon", 1e-5f);
    Real("attention.layer_norm_epsilon", 1e-5f);
    Tensor("token_embd.weight", {kWidth, static_cast<int64_t>(gguf_get_arr_n(tokenizer, tokens))});
  }

  /// Random around 0, scaled by the input's width.
  void Tensor(const std::string& name, const std::vector<int64_t>& shape, float shift = 0) {
    ggml_tensor* tensor = New(name, GGML_TYPE_F32, shape);
    std::normal_distribution<float> normal(0, 1 / std::sqrt(static_cast<float>(shape[0])));
    float* values = static_cast<float*>(tensor->data);
    for (int64_t i = 0; i < ggml_nelements(tensor); ++i) values[i] = shift + normal(random_);
  }
  void Ones(const std::string& name, int64_t n) { Constant(name, {n}, 1); }
  void Constant(const std::string& name, const std::vector<int64_t>& shape, float value) {
    ggml_tensor* tensor = New(name, GGML_TYPE_F32, shape);
    float* values = static_cast<float*>(tensor->data);
    for (int64_t i = 0; i < ggml_nelements(tensor); ++i) values[i] = value;
  }

  void Values(const std::string& name, const std::vector<float>& values) {
    ggml_tensor* tensor = New(name, GGML_TYPE_F32, {static_cast<int64_t>(values.size())});
    std::copy(values.begin(), values.end(), static_cast<float*>(tensor->data));
  }

 private:
  std::mt19937 random_{12345};
};

void AddAttention(Writer& writer, const std::string& block) {
  for (const char* name : {"attn_q", "attn_k", "attn_v", "attn_output"}) {
    writer.Tensor(absl::StrCat(block, name, ".weight"), {kWidth, kWidth});
  }
}

void AddGroupedAttention(Writer& writer, const std::string& block) {
  constexpr int64_t kQueries = 2 * kWidth;  // of twice as many heads
  writer.Tensor(block + "attn_q.weight", {kWidth, kQueries});
  writer.Tensor(block + "attn_k.weight", {kWidth, kWidth});
  writer.Tensor(block + "attn_v.weight", {kWidth, kWidth});
  writer.Tensor(block + "attn_output.weight", {kQueries, kWidth});
}

void AddFeedForward(Writer& writer, const std::string& block) {
  writer.Tensor(block + "ffn_gate.weight", {kWidth, kFeedForward});
  writer.Tensor(block + "ffn_up.weight", {kWidth, kFeedForward});
  writer.Tensor(block + "ffn_down.weight", {kFeedForward, kWidth});
}

Writer Recurrent(const gguf_context* tokenizer) {
  constexpr uint32_t kLayers = 2, kConvolution = 4, kState = 8, kRank = 4;
  Writer writer(tokenizer, "mamba", kLayers);
  writer.Number("ssm.conv_kernel", kConvolution);
  writer.Number("ssm.inner_size", kInner);
  writer.Number("ssm.state_size", kState);
  writer.Number("ssm.time_step_rank", kRank);
  writer.Ones("output_norm.weight", kWidth);
  for (uint32_t layer = 0; layer < kLayers; ++layer) {
    const std::string block = absl::StrCat("blk.", layer, ".");
    writer.Ones(block + "attn_norm.weight", kWidth);
    writer.Tensor(block + "ssm_in.weight", {kWidth, 2 * kInner});
    writer.Tensor(block + "ssm_conv1d.weight", {kConvolution, kInner});
    writer.Constant(block + "ssm_conv1d.bias", {kInner}, 0.1f);
    writer.Tensor(block + "ssm_x.weight", {kInner, kRank + 2 * kState});
    writer.Tensor(block + "ssm_dt.weight", {kRank, kInner});
    writer.Constant(block + "ssm_dt.bias", {kInner}, 0.1f);
    writer.Constant(block + "ssm_a", {kState, kInner}, -0.5f);
    writer.Ones(block + "ssm_d", kInner);
    writer.Tensor(block + "ssm_out.weight", {kInner, kWidth});
  }
  return writer;
}

Writer Hybrid(const gguf_context* tokenizer) {
  constexpr int64_t kConvolution = 3;
  Writer writer(tokenizer, "lfm2", 2);
  writer.Number("attention.head_count", kHeads);
  writer.Numbers("attention.head_count_kv", {0, kHeads});
  writer.Number("shortconv.l_cache", kConvolution);
  writer.Ones("token_embd_norm.weight", kWidth);
  for (const std::string block : {"blk.0.", "blk.1."}) {
    writer.Ones(block + "attn_norm.weight", kWidth);
    writer.Ones(block + "ffn_norm.weight", kWidth);
    AddFeedForward(writer, block);
  }
  writer.Tensor("blk.0.shortconv.conv.weight", {kConvolution, kWidth});
  writer.Tensor("blk.0.shortconv.in_proj.weight", {kWidth, 3 * kWidth});
  writer.Tensor("blk.0.shortconv.out_proj.weight", {kWidth, kWidth});
  writer.Ones("blk.1.attn_q_norm.weight", kWidth / kHeads);
  writer.Ones("blk.1.attn_k_norm.weight", kWidth / kHeads);
  AddAttention(writer, "blk.1.");
  return writer;
}

Writer SlidingWindow(const gguf_context* tokenizer) {
  constexpr uint32_t kLayers = 4;
  Writer writer(tokenizer, "cohere2", kLayers);
  writer.Number("attention.head_count", kHeads);
  writer.Number("attention.head_count_kv", kHeads);
  writer.Number("attention.sliding_window", 32);
  writer.Number("rope.dimension_count", kWidth / kHeads);
  writer.Real("logit_scale", 1);
  writer.Ones("output_norm.weight", kWidth);
  for (uint32_t layer = 0; layer < kLayers; ++layer) {
    const std::string block = absl::StrCat("blk.", layer, ".");
    writer.Ones(block + "attn_norm.weight", kWidth);
    AddAttention(writer, block);
    AddFeedForward(writer, block);
  }
  return writer;
}

/// A decoder with a plain KV cache. Qwen 2 can have no more channels in queries than in the layer,
/// so its KV heads serve one query head each.
Writer Plain(const gguf_context* tokenizer, const std::string& architecture, uint32_t layers) {
  Writer writer(tokenizer, architecture, layers);
  const bool grouped = architecture != "qwen2";
  writer.Number("attention.head_count", grouped ? 2 * kHeads : kHeads);
  writer.Number("attention.head_count_kv", kHeads);
  writer.Number("attention.key_length", kWidth / kHeads);
  writer.Number("attention.value_length", kWidth / kHeads);
  writer.Number("rope.dimension_count", kWidth / kHeads);
  writer.Ones("output_norm.weight", kWidth);
  for (uint32_t layer = 0; layer < layers; ++layer) {
    const std::string block = absl::StrCat("blk.", layer, ".");
    writer.Ones(block + "attn_norm.weight", kWidth);
    writer.Ones(block + "ffn_norm.weight", kWidth);
    if (grouped) {
      AddGroupedAttention(writer, block);
    } else {
      AddAttention(writer, block);
    }
    AddFeedForward(writer, block);
  }
  return writer;
}

Writer Halves(const gguf_context* tokenizer) {
  Writer writer = Plain(tokenizer, "qwen2", 2);
  writer.Real("rope.freq_base", 1e6f);
  writer.Text("rope.scaling.type", "yarn");
  writer.Real("rope.scaling.factor", 4);
  writer.Number("rope.scaling.original_context_length", 512);
  return writer;
}

Writer Factors(const gguf_context* tokenizer) {
  Writer writer = Plain(tokenizer, "llama", 2);
  std::vector<float> factors;
  for (int64_t i = 0; i < kWidth / kHeads / 2; ++i)
    factors.push_back(1 + static_cast<float>(i) / 4);
  writer.Values("rope_freqs.weight", factors);
  return writer;
}

Writer Make(TinyKind kind, const gguf_context* tokenizer) {
  switch (kind) {
    case TinyKind::kRecurrent:
      return Recurrent(tokenizer);
    case TinyKind::kHybrid:
      return Hybrid(tokenizer);
    case TinyKind::kSlidingWindow:
      return SlidingWindow(tokenizer);
    case TinyKind::kHalves:
      return Halves(tokenizer);
    case TinyKind::kFactors:
      return Factors(tokenizer);
    case TinyKind::kMixed:
      break;
  }
  return Plain(tokenizer, "smollm3", 4);
}

}  // namespace

absl::Status WriteTinyModel(TinyKind kind, const std::string& tokenizer_from,
                            const std::string& path) {
  ASSIGN_OR_RETURN(const GgufPtr tokenizer, ReadTokenizer(tokenizer_from));
  return Make(kind, tokenizer.get()).Write(path);
}

}  // namespace tandem::testing_models
