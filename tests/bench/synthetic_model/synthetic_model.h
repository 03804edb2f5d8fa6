// Models nobody trained, in the shapes of those that many use, so that computing and KV cost what
// they cost there.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace tandem::bench {

enum class SyntheticModel {
  kHalfBillion,  // Qwen 2.5 0.5B's shape, q8_0
  // 38 million weights in f32: a step reads more of them than caches hold, as much for one sequence
  // as for eight, so that batches save more than the demo model's. Each attention head has KV of
  // its own, as in the models of DistServe's paper.
  kMemoryBound,
};

/// The path of a GGUF file of this model, with seeded random weights and the tokenizer of the GGUF
/// file `tokenizer_from`. It is written once, into $TANDEM_CACHE, ~/.cache/tandem otherwise.
/// INVALID_ARGUMENT when the tokenizer cannot be read, INTERNAL when the file cannot be written.
absl::StatusOr<std::string> SyntheticModelFile(SyntheticModel model,
                                               const std::string& tokenizer_from);

}  // namespace tandem::bench
