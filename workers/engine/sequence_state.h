// Reading a sequence's KV out of a libllama context and putting it into one. Used by the engine
// and by its self-check, which must go the same way.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kvstore/kv_layout.h"
#include "workers/engine/buffer_pool.h"
#include "workers/engine/libllama.h"
#include "workers/engine/llama_blob.h"

namespace tandem::workers {

/// The whole sequence as libllama writes it. RESOURCE_EXHAUSTED without memory, INTERNAL when
/// libllama fails.
absl::StatusOr<PooledBuffer> ReadState(llama_context* context, int32_t sequence, BufferPool& pool);

/// Positions [first, first + n) of a sequence of a plain, unified KV cache. `spare`: a sequence id
/// that is not in use; it is empty again afterwards. REQUIRES: the sequence holds these positions.
absl::StatusOr<kvstore::KvChunk> ReadRange(llama_context* context, int32_t sequence, int32_t spare,
                                           uint32_t first, uint32_t n, const BlobFormat& format,
                                           BufferPool& pool);

/// A whole sequence of a plain cache, as ReadState gives it, in chunks of `chunk_tokens`. INTERNAL
/// unless it is `n_tokens` positions from 0 in the format expected.
absl::StatusOr<std::vector<kvstore::KvChunk>> SplitState(std::span<const uint8_t> state,
                                                         uint32_t n_tokens,
                                                         const BlobFormat& format,
                                                         uint32_t chunk_tokens);

/// Replaces what the sequence holds by `blob`, which is to have `n_tokens` tokens. DATA_LOSS when
/// libllama does not accept it; the sequence is empty then.
absl::Status WriteState(llama_context* context, int32_t sequence, std::span<const uint8_t> blob,
                        uint32_t n_tokens);

}  // namespace tandem::workers
