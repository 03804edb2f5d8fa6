#include "tests/support/gguf_writer.h"

#include "absl/strings/str_cat.h"

namespace tandem::testing_models {

absl::StatusOr<GgufPtr> ReadTokenizer(const std::string& path) {
  GgufPtr tokenizer(gguf_init_from_file(path.c_str(), {.no_alloc = true, .ctx = nullptr}),
                    gguf_free);
  if (tokenizer == nullptr) return absl::InvalidArgumentError(absl::StrCat("cannot read ", path));
  return tokenizer;
}

GgufWriter::GgufWriter(const gguf_context* tokenizer, const std::string& architecture,
                       size_t tensor_bytes)
    : gguf_(gguf_init_empty(), gguf_free),
      ggml_(ggml_init({.mem_size = tensor_bytes, .mem_buffer = nullptr, .no_alloc = false}),
            ggml_free),
      architecture_(architecture) {
  gguf_set_kv(gguf_.get(), tokenizer);
  gguf_set_val_str(gguf_.get(), "general.architecture", architecture.c_str());
}

ggml_tensor* GgufWriter::New(const std::string& name, ggml_type type,
                             const std::vector<int64_t>& shape) {
  ggml_tensor* tensor =
      ggml_new_tensor(ggml_.get(), type, static_cast<int>(shape.size()), shape.data());
  ggml_set_name(tensor, name.c_str());
  gguf_add_tensor(gguf_.get(), tensor);
  return tensor;
}

absl::Status GgufWriter::Write(const std::string& path) const {
  if (gguf_write_to_file(gguf_.get(), path.c_str(), /*only_meta=*/false)) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("cannot write ", path));
}

}  // namespace tandem::testing_models
