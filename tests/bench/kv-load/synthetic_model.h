// A model nobody trained, in the shape of one that many use, so that computing and KV cost what
// they cost there.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace tandem::bench {

/// Writes a GGUF file with the shape of Qwen 2.5 0.5B (24 layers of 896, 14 query and 2 KV heads of
/// 64, a feed-forward layer of 4,864, 151,936 tokens) and seeded random weights in q8_0. The
/// tokenizer is that of the GGUF file `tokenizer_from`, filled up with unused tokens.
/// INVALID_ARGUMENT when that cannot be read, INTERNAL when `path` cannot be written.
absl::Status WriteSyntheticModel(const std::string& tokenizer_from, const std::string& path);

}  // namespace tandem::bench
