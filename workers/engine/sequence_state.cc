#include "workers/engine/sequence_state.h"

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace tandem::workers {
namespace {

absl::StatusOr<PooledBuffer> ReadStateOfSize(llama_context* context, int32_t sequence, size_t size,
                                             BufferPool& pool) {
  const LibllamaErrors errors;
  if (size == 0) return absl::InternalError("libllama gives no state of the sequence");
  PooledBuffer state = pool.Take(size);
  if (state.empty()) {
    return absl::ResourceExhaustedError(absl::StrCat("no memory for ", size, " bytes of KV"));
  }
  const size_t n = llama_state_seq_get_data(context, state.bytes().data(), size, sequence);
  if (n != size) {
    return absl::InternalError(absl::StrCat("libllama wrote ", n, " bytes of state, expected ",
                                            size, ": ", errors.Text("no reason given")));
  }
  return state;
}

}  // namespace

absl::StatusOr<PooledBuffer> ReadState(llama_context* context, int32_t sequence, BufferPool& pool) {
  return ReadStateOfSize(context, sequence, llama_state_seq_get_size(context, sequence), pool);
}

absl::StatusOr<kvstore::KvChunk> ReadRange(llama_context* context, int32_t sequence, int32_t spare,
                                           uint32_t first, uint32_t n, const BlobFormat& format,
                                           BufferPool& pool) {
  // libllama's public interface reads whole sequences only. In a unified cache a second id for the
  // range costs no cells.
  llama_memory_t memory = llama_get_memory(context);
  llama_memory_seq_cp(memory, sequence, spare, static_cast<int32_t>(first),
                      static_cast<int32_t>(first + n));
  auto state = ReadStateOfSize(context, spare, BlobPlan(format, n, /*n_streams=*/1).size(), pool);
  llama_memory_seq_rm(memory, spare, -1, -1);
  RETURN_IF_ERROR(state.status());
  ASSIGN_OR_RETURN(const Blob blob, ParseBlob(state->bytes()));
  if (blob.format != format || blob.positions.size() != n) {
    return absl::InternalError("libllama's KV has changed its format");
  }
  ASSIGN_OR_RETURN(const std::vector<uint32_t> order,
                   CellOrder(blob.positions, static_cast<int32_t>(first)));
  kvstore::KvChunk chunk{.first_position = first, .n_tokens = n};
  chunk.bytes.reserve(state->bytes().size());
  AppendPlanes(state->bytes(), blob, order, chunk.bytes);
  return chunk;
}

absl::Status WriteState(llama_context* context, int32_t sequence, std::span<const uint8_t> blob,
                        uint32_t n_tokens) {
  const LibllamaErrors errors;
  llama_memory_t memory = llama_get_memory(context);
  const size_t n = llama_state_seq_set_data(context, blob.data(), blob.size(), sequence);
  const int64_t held = int64_t{llama_memory_seq_pos_max(memory, sequence)} + 1;
  if (n == blob.size() && held == n_tokens) return absl::OkStatus();
  llama_memory_seq_rm(memory, sequence, -1, -1);
  return absl::DataLossError(absl::StrCat("libllama does not accept the KV: it took ", n, " of ",
                                          blob.size(), " bytes and holds ", held, " of ", n_tokens,
                                          " positions: ", errors.Text("no reason given")));
}

}  // namespace tandem::workers
