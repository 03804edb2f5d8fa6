// libllama's byte format for one sequence of a plain KV cache: a strict parser and a builder.
// Used by the engine for both directions and by the self-check; needs no libllama header, so that
// it can be fuzzed alone. The format carries no version: the self-check detects changes.
//
//   u32 magic; i32 sequence
//   u32 n_streams; for each stream: u32 n_cells, and if that is not 0:
//     n_cells × { i32 position; u32 1; i32 sequence }
//     u32 transposed_v; u32 n_layers
//     per layer, K:  i32 type; u64 row_bytes; n_cells rows
//     per layer, V:  the same; when transposed_v: i32 type; u32 element_bytes; u32 n_channels;
//                    per channel n_cells elements. No V at all in models that cache K only (MLA).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"

namespace tandem::workers {

/// K or V of one layer.
struct BlobPlane {
  int32_t ggml_type = 0;
  /// Bytes of one token over all channels.
  uint64_t row_bytes = 0;
  /// 0: rows of tokens. Otherwise channel after channel, this many bytes for each token.
  uint32_t element_bytes = 0;
  bool operator==(const BlobPlane&) const = default;
};

/// What all blobs of one context have in common.
struct BlobFormat {
  bool transposed_v = false;
  uint32_t n_layers = 0;
  /// K of every layer, then V of every layer, if there is any.
  std::vector<BlobPlane> planes;
  bool operator==(const BlobFormat&) const = default;
};

/// A parsed blob; offsets refer to the bytes that were parsed.
struct Blob {
  BlobFormat format;
  uint32_t n_streams = 0;
  /// Of every cell, in the order of the cells; not checked for order or gaps (see CellOrder).
  std::vector<int32_t> positions;
  /// Where each plane's data begins.
  std::vector<size_t> plane_offsets;
};

/// Parses `bytes`, which may be anything. INVALID_ARGUMENT unless it is exactly one blob of a
/// plain KV cache with at least one cell.
absl::StatusOr<Blob> ParseBlob(std::span<const uint8_t> bytes);

/// The cells in the order of their positions: element i is the cell that holds position
/// first + i. Empty when the cells lie in that order already. INVALID_ARGUMENT unless the
/// positions are exactly first … first + size - 1.
absl::StatusOr<std::vector<uint32_t>> CellOrder(std::span<const int32_t> positions, int32_t first);

/// Appends the blob's planes to `out`, the cells in `order` (as CellOrder gives it).
void AppendPlanes(std::span<const uint8_t> bytes, const Blob& blob, std::span<const uint32_t> order,
                  std::vector<uint8_t>& out);
/// The same of `n` positions only, from the one `first` after the blob's first on. REQUIRES: it has
/// them.
void AppendPlanes(std::span<const uint8_t> bytes, const Blob& blob, std::span<const uint32_t> order,
                  uint32_t first, uint32_t n, std::vector<uint8_t>& out);

/// Where everything lies in a blob that is to be built: `n_tokens` positions from `first_position`
/// on, in the first of `n_streams` streams (libllama takes any).
class BlobPlan {
 public:
  BlobPlan() = default;
  /// REQUIRES: n_tokens > 0, n_streams > 0, row_bytes a multiple of element_bytes.
  BlobPlan(const BlobFormat& format, uint32_t n_tokens, uint32_t n_streams,
           uint32_t first_position = 0);

  /// Bytes of the whole blob.
  size_t size() const { return size_; }
  /// Where the data of plane `index` begins.
  size_t plane_offset(size_t index) const { return plane_offsets_[index]; }
  uint32_t n_tokens() const { return n_tokens_; }
  const BlobFormat& format() const { return format_; }
  /// Writes everything but the planes' data. REQUIRES: `out` has size() bytes.
  void WriteHeaders(uint8_t* out) const;

 private:
  BlobFormat format_;
  uint32_t n_tokens_ = 0;
  uint32_t n_streams_ = 0;
  uint32_t first_position_ = 0;
  std::vector<size_t> plane_offsets_;
  size_t size_ = 0;
};

}  // namespace tandem::workers
