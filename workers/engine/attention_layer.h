// What libllama's graph tells of a layer's attention: how keys are rotated, and how large the
// queries are that meet them. For geometry and calibration; needs no libllama header.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "workers/engine/engine.h"

namespace tandem::workers {

/// One layer that has a KV cache.
struct AttentionLayer {
  /// A rotation of the keys, with ggml_rope_ext's own parameters.
  struct Rotation {
    int32_t n_dims = 0, mode = 0, original_context = 0, first_dim = 0;
    float freq_base = 0, freq_scale = 0, ext_factor = 0, beta_fast = 0, beta_slow = 0;
    /// Divisors of the frequencies; empty for none.
    std::vector<float> factors;
    bool operator==(const Rotation&) const = default;
  };
  /// None when the keys are stored as they came, or changed after their rotation.
  std::optional<Rotation> rotation;
  uint32_t head_dim = 0, n_query_heads = 0;
  /// Sums over all tokens seen of the squares of the queries as attention takes them:
  /// n_query_heads × head_dim; empty when they could not be read.
  std::vector<double> query_squares;
};

/// Computes `tokens`, cut into sequences of the length that the model was trained for, in a
/// context of its own with the cache types, flash attention and threads of `options`, and returns
/// its layers by their number. INVALID_ARGUMENT for impossible options or no tokens,
/// RESOURCE_EXHAUSTED without memory, INTERNAL when libllama fails. Thread-safe.
/// REQUIRES: the tokens are of the model's vocabulary.
absl::StatusOr<std::map<int, AttentionLayer>> ProbeAttention(const Model& model,
                                                             const EngineOptions& options,
                                                             std::span<const int32_t> tokens);

}  // namespace tandem::workers
