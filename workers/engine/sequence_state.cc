#include "workers/engine/sequence_state.h"

#include <algorithm>

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

absl::StatusOr<Blob> ParseExpected(std::span<const uint8_t> state, uint32_t n_tokens,
                                   const BlobFormat& format) {
  ASSIGN_OR_RETURN(Blob blob, ParseBlob(state));
  if (blob.format == format && blob.positions.size() == n_tokens) return blob;
  return absl::InternalError("libllama's KV has changed its format");
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
  ASSIGN_OR_RETURN(const Blob blob, ParseExpected(state->bytes(), n, format));
  ASSIGN_OR_RETURN(const std::vector<uint32_t> order,
                   CellOrder(blob.positions, static_cast<int32_t>(first)));
  kvstore::KvChunk chunk{.first_position = first, .n_tokens = n};
  chunk.bytes.reserve(state->bytes().size());
  AppendPlanes(state->bytes(), blob, order, chunk.bytes);
  return chunk;
}

absl::StatusOr<std::vector<kvstore::KvChunk>> SplitState(std::span<const uint8_t> state,
                                                         uint32_t n_tokens,
                                                         const BlobFormat& format,
                                                         uint32_t chunk_tokens) {
  ASSIGN_OR_RETURN(const Blob blob, ParseExpected(state, n_tokens, format));
  ASSIGN_OR_RETURN(const std::vector<uint32_t> order, CellOrder(blob.positions, 0));
  uint64_t token_bytes = 0;
  for (const BlobPlane& plane : format.planes) token_bytes += plane.row_bytes;
  std::vector<kvstore::KvChunk> chunks;
  for (uint32_t first = 0; first < n_tokens; first += chunk_tokens) {
    const uint32_t n = std::min(chunk_tokens, n_tokens - first);
    kvstore::KvChunk& chunk = chunks.emplace_back();
    chunk.first_position = first;
    chunk.n_tokens = n;
    chunk.bytes.reserve(token_bytes * n);
    AppendPlanes(state, blob, order, first, n, chunk.bytes);
  }
  return chunks;
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
