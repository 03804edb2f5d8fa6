// Finds out, when an engine is made, what kind of memory the model has, and proves that its KV
// survives extraction and injection with this libllama. Called by Engine::Create.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kvstore/kv_layout.h"
#include "workers/engine/context.h"
#include "workers/engine/llama_blob.h"

namespace tandem::workers {

/// How a model's memory can be moved.
struct MemoryKind {
  /// True: only as a whole state.
  bool opaque = false;
  /// When opaque: why.
  std::string reason;
  /// When not opaque: the format of its blobs.
  BlobFormat format;
  /// When opaque: bytes of state of one token, and bytes that each further one added.
  uint64_t first_token_bytes = 0, token_bytes = 0;

  /// No state of `n_tokens` is larger, with a wide margin: a bound on what a peer may announce.
  uint64_t MaxOpaqueBytes(uint32_t n_tokens) const {
    return (uint64_t{1} << 20) + 2 * (first_token_bytes + token_bytes * n_tokens);
  }
};

/// Computes four tokens in a small context, takes their KV out in two pieces, puts it together in
/// a second context and computes one more token in both: KV and logits must be equal.
/// INVALID_ARGUMENT when libllama takes the settings for impossible, FAILED_PRECONDITION when what
/// arrives is not what left. `damage` changes each extracted chunk (tests).
absl::StatusOr<MemoryKind> CheckMemory(
    const Model& model, const CacheSettings& settings, const ComputeThreads& threads,
    bool force_opaque, const std::function<void(kvstore::KvChunk&)>& damage = nullptr);

}  // namespace tandem::workers
