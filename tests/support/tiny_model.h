// Writes tiny GGUF models with random weights whose memory is not a plain KV cache, for tests of
// the opaque path. The tokenizer is another model's.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace tandem::testing_models {

enum class TinyKind {
  kRecurrent,      // Mamba
  kHybrid,         // LFM2: convolution and attention layers
  kSlidingWindow,  // Cohere 2: three layers with a window of 32 tokens, one without
};

/// Writes a model of that kind to `path`, with the tokenizer of the GGUF file `tokenizer_from`.
/// INVALID_ARGUMENT when that cannot be read, INTERNAL when `path` cannot be written.
absl::Status WriteTinyModel(TinyKind kind, const std::string& tokenizer_from,
                            const std::string& path);

}  // namespace tandem::testing_models
