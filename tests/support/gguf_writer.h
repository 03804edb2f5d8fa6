// Writes GGUF models that nobody trained; the tokenizer is another model's.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "ggml.h"
#include "gguf.h"

namespace tandem::testing_models {

using GgufPtr = std::unique_ptr<gguf_context, decltype(&gguf_free)>;

/// What the GGUF file says of its model and tokenizer. INVALID_ARGUMENT when it cannot be read.
absl::StatusOr<GgufPtr> ReadTokenizer(const std::string& path);

/// Not thread-safe.
class GgufWriter {
 public:
  /// `tensor_bytes`: of all tensors at most.
  GgufWriter(const gguf_context* tokenizer, const std::string& architecture, size_t tensor_bytes);

  /// Of the architecture.
  void Number(const std::string& key, uint32_t value) {
    gguf_set_val_u32(gguf_.get(), Key(key).c_str(), value);
  }
  void Real(const std::string& key, float value) {
    gguf_set_val_f32(gguf_.get(), Key(key).c_str(), value);
  }
  void Text(const std::string& key, const std::string& value) {
    gguf_set_val_str(gguf_.get(), Key(key).c_str(), value.c_str());
  }
  void Numbers(const std::string& key, const std::vector<uint32_t>& values) {
    gguf_set_arr_data(gguf_.get(), Key(key).c_str(), GGUF_TYPE_UINT32, values.data(),
                      values.size());
  }
  /// A part of the model, to be filled by the caller.
  ggml_tensor* New(const std::string& name, ggml_type type, const std::vector<int64_t>& shape);
  /// INTERNAL when `path` cannot be written.
  absl::Status Write(const std::string& path) const;

 protected:
  gguf_context* gguf() { return gguf_.get(); }

 private:
  std::string Key(const std::string& key) const { return architecture_ + "." + key; }

  GgufPtr gguf_;
  std::unique_ptr<ggml_context, decltype(&ggml_free)> ggml_;
  const std::string architecture_;
};

}  // namespace tandem::testing_models
