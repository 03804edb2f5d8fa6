// Writes tiny GGUF models with random weights, for tests of what the demo model is not: memories
// that are not a plain KV cache, other rotations of keys. The tokenizer is another model's.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace tandem::testing_models {

enum class TinyKind {
  kRecurrent,      // Mamba
  kHybrid,         // LFM2: convolution and attention layers
  kSlidingWindow,  // Cohere 2: three layers with a window of 32 tokens, one without
  // Plain KV caches: two KV heads of 32 channels, each for two query heads.
  kHalves,   // Qwen 2: rotated in halves, YaRN from 512 positions to 2048
  kFactors,  // Llama with a factor for each frequency: channel pair i turns 1 + i / 4 times slower
  kMixed,    // SmolLM 3: of its four layers the last does not rotate
};

/// Writes a model of that kind to `path`, with the tokenizer of the GGUF file `tokenizer_from`.
/// INVALID_ARGUMENT when that cannot be read, INTERNAL when `path` cannot be written.
absl::Status WriteTinyModel(TinyKind kind, const std::string& tokenizer_from,
                            const std::string& path);

}  // namespace tandem::testing_models
