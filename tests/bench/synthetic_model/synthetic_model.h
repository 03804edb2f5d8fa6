// Models nobody trained, in the shapes of those that many use, so that computing and KV cost what
// they cost there.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "ggml.h"

namespace tandem::bench {

/// Of a model of Qwen 2's architecture.
struct SyntheticShape {
  /// Of the file, without folder and ending.
  std::string name;
  uint32_t layers = 0, width = 0, heads = 0, kv_heads = 0, head_dim = 0, feed_forward = 0;
  /// Tokens; 0: as many as the tokenizer has. More are filled up with unused ones.
  uint32_t vocabulary = 0;
  uint32_t context_tokens = 0;
  ggml_type weights = GGML_TYPE_Q8_0;
};

/// Qwen 2.5 0.5B.
SyntheticShape HalfBillion();

/// 38 million weights in f32: a step has to read more of them than caches hold, and the same for a
/// sequence as for eight, so that batches are nearly free on a core, as they are on a GPU. An
/// attention head has KV of its own, as in the models of DistServe's paper.
SyntheticShape BoundByMemory();

/// The path of a GGUF file of this shape, with seeded random weights and the tokenizer of the GGUF
/// file `tokenizer_from`. It is written once, into $TANDEM_CACHE, ~/.cache/tandem otherwise.
/// INVALID_ARGUMENT when the tokenizer cannot be read, INTERNAL when the file cannot be written.
absl::StatusOr<std::string> SyntheticModelFile(const SyntheticShape& shape,
                                               const std::string& tokenizer_from);

}  // namespace tandem::bench
