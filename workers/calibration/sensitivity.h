// Which channels of the KV cache matter most to a model: weights for the codec's steps. For
// `tandem kv profile`.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kvstore/codec/geometry.h"
#include "workers/engine/engine.h"

namespace tandem::workers {

/// K: [layer][channel of the cached row]. Larger for channels whose error does more harm.
/// Comparable within a layer's K or V, not between the two nor between layers.
struct Sensitivity {
  /// The mean square of what the queries multiply the channel with, after RoPE, summed over the
  /// query heads that share the KV head: the error that a key's error makes in attention scores.
  std::vector<std::vector<float>> k;
  /// The Gram matrix of the columns of the attention output matrix that a head's channels are
  /// multiplied with, summed likewise: the error that errors of values make in the layer's output.
  /// [layer][row of all heads' matrices, one below the other][column].
  std::vector<std::vector<float>> v_gram;
};

/// Measures it with the text `tokens` (a few thousand suffice). A plane for which it cannot be
/// told counts all channels the same, with a log line. Only the cache types, flash_attention,
/// step_tokens and threads of `options` count. Errors as ProbeAttention and OutputGrams.
/// Thread-safe. REQUIRES: `geometry` is the model's.
absl::StatusOr<Sensitivity> MeasureSensitivity(const Model& model, const EngineOptions& options,
                                               const kvstore::KvGeometry& geometry,
                                               std::span<const int32_t> tokens);

}  // namespace tandem::workers
