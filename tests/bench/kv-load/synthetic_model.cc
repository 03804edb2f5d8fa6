#include "tests/bench/kv-load/synthetic_model.h"

#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "ggml.h"
#include "gguf.h"

namespace tandem::bench {
namespace {

constexpr int64_t kLayers = 24, kWidth = 896, kHeads = 14, kKvHeads = 2, kHeadDim = 64,
                  kFeedForward = 4864, kVocabulary = 151936;
constexpr size_t kMemory = size_t{1} << 30;

using GgufPtr = std::unique_ptr<gguf_context, decltype(&gguf_free)>;

class Writer {
 public:
  explicit Writer(const gguf_context* tokenizer)
      : gguf_(gguf_init_empty(), gguf_free),
        ggml_(ggml_init({.mem_size = kMemory, .mem_buffer = nullptr, .no_alloc = false}),
              ggml_free) {
    gguf_set_kv(gguf_.get(), tokenizer);
    gguf_set_val_str(gguf_.get(), "general.architecture", "qwen2");
    AddTokens(tokenizer);
  }

  void Number(const std::string& key, uint32_t value) {
    gguf_set_val_u32(gguf_.get(), ("qwen2." + key).c_str(), value);
  }
  void Real(const std::string& key, float value) {
    gguf_set_val_f32(gguf_.get(), ("qwen2." + key).c_str(), value);
  }
  /// Random, with this deviation, in q8_0.
  void Matrix(const std::string& name, int64_t rows, int64_t columns, double deviation) {
    ggml_tensor* tensor = ggml_new_tensor_2d(ggml_.get(), GGML_TYPE_Q8_0, columns, rows);
    std::vector<float> row(columns);
    for (int64_t i = 0; i < rows; ++i) {
      for (float& value : row) value = static_cast<float>(deviation) * Normal();
      ggml_quantize_chunk(GGML_TYPE_Q8_0, row.data(),
                          static_cast<char*>(tensor->data) + i * tensor->nb[1], 0, 1, columns,
                          nullptr);
    }
    Add(tensor, name);
  }
  void Vector(const std::string& name, int64_t n, float mean, float deviation) {
    ggml_tensor* tensor = ggml_new_tensor_1d(ggml_.get(), GGML_TYPE_F32, n);
    for (int64_t i = 0; i < n; ++i) {
      static_cast<float*>(tensor->data)[i] = mean + deviation * Normal();
    }
    Add(tensor, name);
  }
  bool Write(const std::string& path) {
    return gguf_write_to_file(gguf_.get(), path.c_str(), /*only_meta=*/false);
  }

 private:
  void AddTokens(const gguf_context* from) {
    const int64_t key = gguf_find_key(from, "tokenizer.ggml.tokens");
    std::vector<std::string> tokens;
    for (size_t i = 0; i < gguf_get_arr_n(from, key); ++i) {
      tokens.emplace_back(gguf_get_arr_str(from, key, i));
    }
    const size_t real = tokens.size();
    while (tokens.size() < kVocabulary)
      tokens.push_back(absl::StrCat("<unused", tokens.size(), ">"));
    std::vector<const char*> pointers;
    for (const std::string& token : tokens) pointers.push_back(token.c_str());
    gguf_set_arr_str(gguf_.get(), "tokenizer.ggml.tokens", pointers.data(), pointers.size());
    Extend<float>(from, "tokenizer.ggml.scores", GGUF_TYPE_FLOAT32, real, -1e4f);
    constexpr int32_t kUnused = 5;
    Extend<int32_t>(from, "tokenizer.ggml.token_type", GGUF_TYPE_INT32, real, kUnused);
  }
  template <typename T>
  void Extend(const gguf_context* from, const char* name, gguf_type type, size_t n, T filler) {
    const int64_t key = gguf_find_key(from, name);
    if (key < 0) return;
    std::vector<T> values(kVocabulary, filler);
    std::memcpy(values.data(), gguf_get_arr_data(from, key), n * sizeof(T));
    gguf_set_arr_data(gguf_.get(), name, type, values.data(), values.size());
  }
  void Add(ggml_tensor* tensor, const std::string& name) {
    ggml_set_name(tensor, name.c_str());
    gguf_add_tensor(gguf_.get(), tensor);
  }
  float Normal() { return normal_(random_); }

  GgufPtr gguf_;
  std::unique_ptr<ggml_context, decltype(&ggml_free)> ggml_;
  std::mt19937 random_{42};
  std::normal_distribution<float> normal_{0, 1};
};

/// Deviations that keep activations, attention and logits in the ranges of trained models; the
/// keys' large biases are a trait of the original.
void AddLayer(Writer& writer, const std::string& block) {
  const double by_width = 1 / std::sqrt(static_cast<double>(kWidth));
  const int64_t kv = kKvHeads * kHeadDim;
  writer.Vector(block + "attn_norm.weight", kWidth, 1.0f, 0.15f);
  writer.Matrix(block + "attn_q.weight", kHeads * kHeadDim, kWidth, 1.4 * by_width);
  writer.Matrix(block + "attn_k.weight", kv, kWidth, 1.4 * by_width);
  writer.Matrix(block + "attn_v.weight", kv, kWidth, by_width);
  writer.Vector(block + "attn_q.bias", kHeads * kHeadDim, 0, 0.5f);
  writer.Vector(block + "attn_k.bias", kv, 0, 2.0f);
  writer.Vector(block + "attn_v.bias", kv, 0, 0.05f);
  writer.Matrix(block + "attn_output.weight", kWidth, kHeads * kHeadDim, by_width);
  writer.Vector(block + "ffn_norm.weight", kWidth, 1.0f, 0.15f);
  writer.Matrix(block + "ffn_gate.weight", kFeedForward, kWidth, by_width);
  writer.Matrix(block + "ffn_up.weight", kFeedForward, kWidth, by_width);
  writer.Matrix(block + "ffn_down.weight", kWidth, kFeedForward,
                1.5 / std::sqrt(static_cast<double>(kFeedForward)));
}

}  // namespace

absl::Status WriteSyntheticModel(const std::string& tokenizer_from, const std::string& path) {
  const GgufPtr tokenizer(
      gguf_init_from_file(tokenizer_from.c_str(), {.no_alloc = true, .ctx = nullptr}), gguf_free);
  if (tokenizer == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("cannot read ", tokenizer_from));
  }
  Writer writer(tokenizer.get());
  writer.Number("block_count", kLayers);
  writer.Number("context_length", 32768);
  writer.Number("embedding_length", kWidth);
  writer.Number("feed_forward_length", kFeedForward);
  writer.Number("attention.head_count", kHeads);
  writer.Number("attention.head_count_kv", kKvHeads);
  writer.Real("attention.layer_norm_rms_epsilon", 1e-6f);
  writer.Number("rope.dimension_count", kHeadDim);
  writer.Real("rope.freq_base", 1e6f);
  writer.Number("vocab_size", kVocabulary);
  writer.Matrix("token_embd.weight", kVocabulary, kWidth,
                2 / std::sqrt(static_cast<double>(kWidth)));
  writer.Vector("output_norm.weight", kWidth, 1.2f, 0.1f);
  for (int64_t layer = 0; layer < kLayers; ++layer)
    AddLayer(writer, absl::StrCat("blk.", layer, "."));
  if (writer.Write(path)) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("cannot write ", path));
}

}  // namespace tandem::bench
