// How strongly errors of cached V reach a layer's output: read from the attention output matrices
// of the GGUF file. For the calibration.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "kvstore/codec/geometry.h"
#include "workers/engine/model.h"

namespace tandem::workers {

/// For each layer of `geometry` and each of its KV heads the Gram matrix (head_dim × head_dim) of
/// the columns of the attention output matrix ("blk.N.attn_output.weight") that its V channels are
/// multiplied with, summed over the query heads that share the KV head; [KV head][row][column], one
/// vector a layer. `numbers`: of the layers, in the model's own count. Empty for a layer without
/// that matrix, or with one of another width or of a type that cannot be read. Reads the file, not
/// the loaded weights, which a backend may have repacked. DATA_LOSS when it cannot be read.
/// Thread-safe.
absl::StatusOr<std::vector<std::vector<float>>> OutputGrams(const Model& model,
                                                            const kvstore::KvGeometry& geometry,
                                                            const std::vector<size_t>& numbers);

}  // namespace tandem::workers
