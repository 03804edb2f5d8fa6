// The engine's receiving end of a handoff: chunks of KV are written straight to where libllama
// will read them. Filled by the transfer, consumed by Engine::Inject and the self-check.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "workers/engine/buffer_pool.h"
#include "workers/engine/engine.h"
#include "workers/engine/llama_blob.h"

namespace tandem::workers {

/// What both kinds of sink offer to the engine.
class BlobSink : public Engine::IncomingKv {
 public:
  /// What llama_state_seq_set_data takes. REQUIRES: complete().
  virtual std::span<const uint8_t> blob() const = 0;
};

/// For a plain KV cache. Token-major planes are received in their final place; the channel-major V
/// of a context without flash attention is staged, and scattered by Commit.
/// `max_tokens`: the context's room; a sequence that ends beyond is refused at its first chunk.
std::unique_ptr<BlobSink> NewPlainSink(const BlobFormat& format, uint32_t first_position,
                                       uint32_t n_tokens, uint32_t n_streams, uint32_t max_tokens,
                                       std::shared_ptr<BufferPool> pool);

/// For the state of any other kind of memory, in one piece of at most `max_bytes`.
std::unique_ptr<BlobSink> NewOpaqueSink(uint32_t n_tokens, uint32_t max_tokens, uint64_t max_bytes,
                                        std::shared_ptr<BufferPool> pool);

}  // namespace tandem::workers
