#include "tests/bench/synthetic_model/synthetic_model.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "tests/support/gguf_writer.h"

namespace tandem::bench {
namespace {

namespace fs = std::filesystem;

constexpr size_t kTensorBytes = size_t{1} << 30;

/// Of Qwen 2's architecture. Heads share the width.
struct Shape {
  const char* name;  // of the file, without folder and ending
  uint32_t layers, width, heads, kv_heads, feed_forward;
  /// Tokens; 0: as many as the tokenizer has. More are filled up with unused ones.
  uint32_t vocabulary;
  uint32_t context_tokens;
  ggml_type weights;
};

constexpr Shape kHalfBillion = {.name = "synthetic-0.5b-q8_0",
                                .layers = 24,
                                .width = 896,
                                .heads = 14,
                                .kv_heads = 2,
                                .feed_forward = 4864,
                                .vocabulary = 151936,
                                .context_tokens = 32768,
                                .weights = GGML_TYPE_Q8_0};
constexpr Shape kMemoryBound = {.name = "synthetic-38m-f32",
                                .layers = 12,
                                .width = 512,
                                .heads = 8,
                                .kv_heads = 8,
                                .feed_forward = 1408,
                                .vocabulary = 0,
                                .context_tokens = 2048,
                                .weights = GGML_TYPE_F32};

class Writer : public testing_models::GgufWriter {
 public:
  Writer(const Shape& shape, const gguf_context* tokenizer)
      : GgufWriter(tokenizer, "qwen2", kTensorBytes), weights_(shape.weights) {}

  /// Random, with this deviation.
  void Matrix(const std::string& name, int64_t rows, int64_t columns, double deviation) {
    ggml_tensor* tensor = New(name, weights_, {columns, rows});
    std::vector<float> row(columns);
    for (int64_t i = 0; i < rows; ++i) {
      for (float& value : row) value = static_cast<float>(deviation) * Normal();
      ggml_quantize_chunk(weights_, row.data(),
                          static_cast<char*>(tensor->data) + i * tensor->nb[1], 0, 1, columns,
                          nullptr);
    }
  }
  void Vector(const std::string& name, int64_t n, float mean, float deviation) {
    ggml_tensor* tensor = New(name, GGML_TYPE_F32, {n});
    for (int64_t i = 0; i < n; ++i) {
      static_cast<float*>(tensor->data)[i] = mean + deviation * Normal();
    }
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
    gguf_set_arr_str(gguf(), "tokenizer.ggml.tokens", pointers.data(), pointers.size());
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
    gguf_set_arr_data(gguf(), name, type, values.data(), values.size());
  }
  float Normal() { return normal_(random_); }

  const ggml_type weights_;
  std::mt19937 random_{42};
  std::normal_distribution<float> normal_{0, 1};
};

/// Deviations that keep activations, attention and logits in the ranges of trained models; the
/// keys' large biases are a trait of the original.
void AddLayer(Writer& writer, const Shape& shape, const std::string& block) {
  const double by_width = 1 / std::sqrt(static_cast<double>(shape.width));
  const int64_t kv = shape.width / shape.heads * shape.kv_heads;
  writer.Vector(block + "attn_norm.weight", shape.width, 1.0f, 0.15f);
  writer.Matrix(block + "attn_q.weight", shape.width, shape.width, 1.4 * by_width);
  writer.Matrix(block + "attn_k.weight", kv, shape.width, 1.4 * by_width);
  writer.Matrix(block + "attn_v.weight", kv, shape.width, by_width);
  writer.Vector(block + "attn_q.bias", shape.width, 0, 0.5f);
  writer.Vector(block + "attn_k.bias", kv, 0, 2.0f);
  writer.Vector(block + "attn_v.bias", kv, 0, 0.05f);
  writer.Matrix(block + "attn_output.weight", shape.width, shape.width, by_width);
  writer.Vector(block + "ffn_norm.weight", shape.width, 1.0f, 0.15f);
  writer.Matrix(block + "ffn_gate.weight", shape.feed_forward, shape.width, by_width);
  writer.Matrix(block + "ffn_up.weight", shape.feed_forward, shape.width, by_width);
  writer.Matrix(block + "ffn_down.weight", shape.width, shape.feed_forward,
                1.5 / std::sqrt(static_cast<double>(shape.feed_forward)));
}

absl::Status Write(const Shape& shape, const std::string& tokenizer_from, const std::string& path) {
  ASSIGN_OR_RETURN(const auto tokenizer, testing_models::ReadTokenizer(tokenizer_from));
  Writer writer(shape, tokenizer.get());
  const size_t vocabulary = writer.AddTokens(tokenizer.get(), shape.vocabulary);
  writer.Number("block_count", shape.layers);
  writer.Number("context_length", shape.context_tokens);
  writer.Number("embedding_length", shape.width);
  writer.Number("feed_forward_length", shape.feed_forward);
  writer.Number("attention.head_count", shape.heads);
  writer.Number("attention.head_count_kv", shape.kv_heads);
  writer.Real("attention.layer_norm_rms_epsilon", 1e-6f);
  writer.Number("rope.dimension_count", shape.width / shape.heads);
  writer.Real("rope.freq_base", 1e6f);
  writer.Number("vocab_size", static_cast<uint32_t>(vocabulary));
  writer.Matrix("token_embd.weight", static_cast<int64_t>(vocabulary), shape.width,
                2 / std::sqrt(static_cast<double>(shape.width)));
  writer.Vector("output_norm.weight", shape.width, 1.2f, 0.1f);
  for (uint32_t layer = 0; layer < shape.layers; ++layer) {
    AddLayer(writer, shape, absl::StrCat("blk.", layer, "."));
  }
  return writer.Write(path);
}

fs::path CacheFolder() {
  if (const char* folder = std::getenv("TANDEM_CACHE"); folder != nullptr) return folder;
  const char* home = std::getenv("HOME");
  return fs::path(home != nullptr ? home : "/tmp") / ".cache" / "tandem";
}

}  // namespace

absl::StatusOr<std::string> SyntheticModelFile(SyntheticModel model,
                                               const std::string& tokenizer_from) {
  const Shape& shape = model == SyntheticModel::kHalfBillion ? kHalfBillion : kMemoryBound;
  const fs::path path = CacheFolder() / absl::StrCat(shape.name, ".gguf");
  if (fs::exists(path)) return path;
  std::fprintf(stderr, "writing %s, once\n", path.c_str());
  std::error_code error;
  fs::create_directories(path.parent_path(), error);
  const std::string part = path.string() + ".part";
  RETURN_IF_ERROR(Write(shape, tokenizer_from, part));
  fs::rename(part, path, error);
  if (!error) return path;
  return absl::InternalError(absl::StrCat("cannot rename ", part, ": ", error.message()));
}

}  // namespace tandem::bench
