#include "tests/bench/synthetic_model/synthetic_model.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "gguf.h"

namespace tandem::bench {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMemory = size_t{1} << 30;

using GgufPtr = std::unique_ptr<gguf_context, decltype(&gguf_free)>;

class Writer {
 public:
  Writer(const SyntheticShape& shape, const gguf_context* tokenizer)
      : shape_(shape),
        gguf_(gguf_init_empty(), gguf_free),
        ggml_(ggml_init({.mem_size = kMemory, .mem_buffer = nullptr, .no_alloc = false}),
              ggml_free) {
    gguf_set_kv(gguf_.get(), tokenizer);
    gguf_set_val_str(gguf_.get(), "general.architecture", "qwen2");
  }

  void Number(const std::string& key, uint32_t value) {
    gguf_set_val_u32(gguf_.get(), ("qwen2." + key).c_str(), value);
  }
  void Real(const std::string& key, float value) {
    gguf_set_val_f32(gguf_.get(), ("qwen2." + key).c_str(), value);
  }
  /// Random, with this deviation.
  void Matrix(const std::string& name, int64_t rows, int64_t columns, double deviation) {
    ggml_tensor* tensor = ggml_new_tensor_2d(ggml_.get(), shape_.weights, columns, rows);
    std::vector<float> row(columns);
    for (int64_t i = 0; i < rows; ++i) {
      for (float& value : row) value = static_cast<float>(deviation) * Normal();
      ggml_quantize_chunk(shape_.weights, row.data(),
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

  /// The tokenizer's and, up to so many, unused ones. Returns how many there are.
  size_t AddTokens(const gguf_context* from, size_t at_least) {
    const int64_t key = gguf_find_key(from, "tokenizer.ggml.tokens");
    std::vector<std::string> tokens;
    for (size_t i = 0; i < gguf_get_arr_n(from, key); ++i) {
      tokens.emplace_back(gguf_get_arr_str(from, key, i));
    }
    const size_t real = tokens.size();
    while (tokens.size() < at_least) tokens.push_back(absl::StrCat("<unused", tokens.size(), ">"));
    std::vector<const char*> pointers;
    for (const std::string& token : tokens) pointers.push_back(token.c_str());
    gguf_set_arr_str(gguf_.get(), "tokenizer.ggml.tokens", pointers.data(), pointers.size());
    Extend<float>(from, "tokenizer.ggml.scores", GGUF_TYPE_FLOAT32, real, tokens.size(), -1e4f);
    constexpr int32_t kUnused = 5;
    Extend<int32_t>(from, "tokenizer.ggml.token_type", GGUF_TYPE_INT32, real, tokens.size(),
                    kUnused);
    return tokens.size();
  }

 private:
  template <typename T>
  void Extend(const gguf_context* from, const char* name, gguf_type type, size_t real, size_t n,
              T filler) {
    const int64_t key = gguf_find_key(from, name);
    if (key < 0) return;
    std::vector<T> values(n, filler);
    std::memcpy(values.data(), gguf_get_arr_data(from, key), real * sizeof(T));
    gguf_set_arr_data(gguf_.get(), name, type, values.data(), values.size());
  }
  void Add(ggml_tensor* tensor, const std::string& name) {
    ggml_set_name(tensor, name.c_str());
    gguf_add_tensor(gguf_.get(), tensor);
  }
  float Normal() { return normal_(random_); }

  const SyntheticShape shape_;
  GgufPtr gguf_;
  std::unique_ptr<ggml_context, decltype(&ggml_free)> ggml_;
  std::mt19937 random_{42};
  std::normal_distribution<float> normal_{0, 1};
};

/// Deviations that keep activations, attention and logits in the ranges of trained models; the
/// keys' large biases are a trait of the original.
void AddLayer(Writer& writer, const SyntheticShape& shape, const std::string& block) {
  const double by_width = 1 / std::sqrt(static_cast<double>(shape.width));
  const int64_t query = int64_t{shape.heads} * shape.head_dim;
  const int64_t kv = int64_t{shape.kv_heads} * shape.head_dim;
  writer.Vector(block + "attn_norm.weight", shape.width, 1.0f, 0.15f);
  writer.Matrix(block + "attn_q.weight", query, shape.width, 1.4 * by_width);
  writer.Matrix(block + "attn_k.weight", kv, shape.width, 1.4 * by_width);
  writer.Matrix(block + "attn_v.weight", kv, shape.width, by_width);
  writer.Vector(block + "attn_q.bias", query, 0, 0.5f);
  writer.Vector(block + "attn_k.bias", kv, 0, 2.0f);
  writer.Vector(block + "attn_v.bias", kv, 0, 0.05f);
  writer.Matrix(block + "attn_output.weight", shape.width, query, by_width);
  writer.Vector(block + "ffn_norm.weight", shape.width, 1.0f, 0.15f);
  writer.Matrix(block + "ffn_gate.weight", shape.feed_forward, shape.width, by_width);
  writer.Matrix(block + "ffn_up.weight", shape.feed_forward, shape.width, by_width);
  writer.Matrix(block + "ffn_down.weight", shape.width, shape.feed_forward,
                1.5 / std::sqrt(static_cast<double>(shape.feed_forward)));
}

absl::Status Write(const SyntheticShape& shape, const std::string& tokenizer_from,
                   const std::string& path) {
  const GgufPtr tokenizer(
      gguf_init_from_file(tokenizer_from.c_str(), {.no_alloc = true, .ctx = nullptr}), gguf_free);
  if (tokenizer == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("cannot read ", tokenizer_from));
  }
  Writer writer(shape, tokenizer.get());
  const size_t vocabulary = writer.AddTokens(tokenizer.get(), shape.vocabulary);
  writer.Number("block_count", shape.layers);
  writer.Number("context_length", shape.context_tokens);
  writer.Number("embedding_length", shape.width);
  writer.Number("feed_forward_length", shape.feed_forward);
  writer.Number("attention.head_count", shape.heads);
  writer.Number("attention.head_count_kv", shape.kv_heads);
  writer.Real("attention.layer_norm_rms_epsilon", 1e-6f);
  writer.Number("rope.dimension_count", shape.head_dim);
  writer.Real("rope.freq_base", 1e6f);
  writer.Number("vocab_size", static_cast<uint32_t>(vocabulary));
  writer.Matrix("token_embd.weight", static_cast<int64_t>(vocabulary), shape.width,
                2 / std::sqrt(static_cast<double>(shape.width)));
  writer.Vector("output_norm.weight", shape.width, 1.2f, 0.1f);
  for (uint32_t layer = 0; layer < shape.layers; ++layer) {
    AddLayer(writer, shape, absl::StrCat("blk.", layer, "."));
  }
  if (writer.Write(path)) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("cannot write ", path));
}

fs::path CacheFolder() {
  if (const char* folder = std::getenv("TANDEM_CACHE"); folder != nullptr) return folder;
  const char* home = std::getenv("HOME");
  return fs::path(home != nullptr ? home : "/tmp") / ".cache" / "tandem";
}

}  // namespace

SyntheticShape HalfBillion() {
  return {.name = "synthetic-0.5b-q8_0",
          .layers = 24,
          .width = 896,
          .heads = 14,
          .kv_heads = 2,
          .head_dim = 64,
          .feed_forward = 4864,
          .vocabulary = 151936,
          .context_tokens = 32768,
          .weights = GGML_TYPE_Q8_0};
}

SyntheticShape BoundByMemory() {
  return {.name = "synthetic-38m-f32",
          .layers = 12,
          .width = 512,
          .heads = 8,
          .kv_heads = 8,
          .head_dim = 64,
          .feed_forward = 1408,
          .context_tokens = 2048,
          .weights = GGML_TYPE_F32};
}

absl::StatusOr<std::string> SyntheticModelFile(const SyntheticShape& shape,
                                               const std::string& tokenizer_from) {
  const fs::path model = CacheFolder() / (shape.name + ".gguf");
  if (fs::exists(model)) return model;
  std::fprintf(stderr, "writing %s, once\n", model.c_str());
  std::error_code error;
  fs::create_directories(model.parent_path(), error);
  const std::string part = model.string() + ".part";
  RETURN_IF_ERROR(Write(shape, tokenizer_from, part));
  fs::rename(part, model, error);
  if (!error) return model;
  return absl::InternalError(absl::StrCat("cannot rename ", part, ": ", error.message()));
}

}  // namespace tandem::bench
