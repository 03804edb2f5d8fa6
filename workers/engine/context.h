// From EngineOptions to libllama contexts: checks, cache types, compute threads, batches. For the
// engine and its self-check.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "workers/engine/engine.h"
#include "workers/engine/libllama.h"

namespace tandem::workers {

/// What decides how a KV cache looks.
struct CacheSettings {
  ggml_type k_type = GGML_TYPE_F16, v_type = GGML_TYPE_F16;
  bool flash_attention = true;
};

/// INVALID_ARGUMENT naming the option, its value and what is allowed.
absl::Status CheckOptions(const Model& model, const EngineOptions& options);
/// The cache's settings in libllama's terms. Errors as above.
absl::StatusOr<CacheSettings> ParseCacheSettings(const Model& model, const EngineOptions& options);

/// The threads that compute an engine's graphs, besides the calling one. Without a pool of its own
/// libllama starts and ends threads with every graph. Outlives the contexts it is attached to.
class ComputeThreads {
 public:
  /// `n`: with the calling thread. No pool for 1.
  explicit ComputeThreads(uint32_t n);
  ~ComputeThreads();
  ComputeThreads(const ComputeThreads&) = delete;
  ComputeThreads& operator=(const ComputeThreads&) = delete;
  uint32_t n() const { return n_; }
  ggml_threadpool* pool() const { return pool_; }

 private:
  const uint32_t n_;
  ggml_threadpool* pool_ = nullptr;
};

struct ContextShape {
  /// Tokens of KV in all, and sequence ids.
  uint32_t n_ctx = 0, n_sequences = 0;
  /// Tokens of one Decode at most.
  uint32_t step_tokens = 0;
  /// One pool of cells for all sequences, or a stream of n_ctx / n_sequences cells each.
  bool unified = false;
  /// Logits for every token of a Decode, instead of one for each sequence.
  bool all_logits = false;
  /// Called with the graph's nodes while they are computed; see AttentionProbe.
  ggml_backend_sched_eval_callback observer = nullptr;
  void* observer_data = nullptr;
};

/// The parameters with which MakeContext makes a context.
llama_context_params ContextParams(const CacheSettings& settings, const ContextShape& shape,
                                   uint32_t threads);

/// RESOURCE_EXHAUSTED with libllama's reason when it cannot.
absl::StatusOr<ContextPtr> MakeContext(const Model& model, const CacheSettings& settings,
                                       const ContextShape& shape, const ComputeThreads& threads);

/// The tokens of one step. Its memory is reused.
class StepBatch {
 public:
  /// REQUIRES: at most `capacity` Adds between Clears.
  explicit StepBatch(uint32_t capacity);
  void Clear() { n_ = 0; }
  /// Returns the token's index in the batch.
  int32_t Add(int32_t token, int32_t position, int32_t sequence, bool want_logits);
  /// Computes it. RESOURCE_EXHAUSTED when there are no free cells (nothing changed), INTERNAL
  /// when libllama fails otherwise (some of the tokens may have been added).
  absl::Status Decode(llama_context* context);

 private:
  int32_t n_ = 0;
  std::vector<llama_token> tokens_;
  std::vector<llama_pos> positions_;
  std::vector<int32_t> n_sequences_;
  std::vector<llama_seq_id> sequences_;
  std::vector<llama_seq_id*> sequence_pointers_;
  std::vector<int8_t> logits_;
};

}  // namespace tandem::workers
