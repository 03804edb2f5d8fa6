// KV chunks to bytes and back: arrays in, bytes out. Used by workers, store and tools; knows
// nothing of libllama, gRPC or sockets. The format is specified in docs/kv-bitstream.md.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kvstore/codec/cpu.h"
#include "kvstore/codec/geometry.h"
#include "kvstore/codec/level.h"
#include "kvstore/codec/profile.h"
#include "kvstore/kv_layout.h"

namespace tandem::kvstore::codec {

struct PreparedModel;

/// Runs body(0) … body(n - 1), in any order and in as many threads as it likes, and returns when
/// all are done.
using ParallelFor = std::function<void(size_t n, const std::function<void(size_t)>& body)>;

/// One after the other, in this thread.
void Serially(size_t n, const std::function<void(size_t)>& body);

struct EncodeOptions {
  Level level = Level::kLossless;
  /// Tokens at the chunk's end that are kept exact: those that a live context reads most.
  uint32_t exact_tail_tokens = 0;
};

/// What an encoded chunk says of itself.
struct ChunkHeader {
  Level level = Level::kLossless;
  uint32_t first_position = 0;
  uint32_t n_tokens = 0;
  uint32_t n_streams = 0;
  uint32_t layers_per_stream = 0;
  /// Profile::id, 0 when none is needed.
  uint64_t profile_id = 0;
  /// Bytes of the chunk's KV.
  uint64_t raw_bytes = 0;
};

/// Encodes and decodes the chunks of one model. Immutable, thread-safe.
class Codec {
 public:
  /// `profile` may be null. `isa`: one of SupportedIsas(); all of them give the same bits.
  /// FAILED_PRECONDITION, naming both, when the profile is another model's (`fingerprint`) or was
  /// made for another geometry.
  static absl::StatusOr<Codec> Create(KvLayout layout, KvGeometry geometry,
                                      const std::string& fingerprint,
                                      std::shared_ptr<const Profile> profile, Isa isa = BestIsa());

  /// OK, or why this level cannot be used here: FAILED_PRECONDITION for a lossy level of opaque
  /// or quantised KV, for one coarser than q1 without a profile, for one that the profile lacks.
  absl::Status CheckLevel(Level level) const;

  /// The chunk's bytes; the same whatever the machine. Errors of CheckLevel; INVALID_ARGUMENT when
  /// the chunk does not have the layout's size.
  absl::StatusOr<std::vector<uint8_t>> Encode(const KvChunk& chunk, const EncodeOptions& options,
                                              const ParallelFor& parallel = Serially) const;

  /// Reads a chunk's header and checks its checksum; `bytes` may be anything. DATA_LOSS when it is
  /// damaged or truncated, INVALID_ARGUMENT when it does not fit this model, FAILED_PRECONDITION
  /// when it needs another version or profile.
  absl::StatusOr<ChunkHeader> ReadHeader(std::span<const uint8_t> bytes) const;

  /// Decodes into `destination`: one span for each plane of the layout with exactly that plane's
  /// bytes for the chunk's tokens, as KvChunk has them (one span in all when the layout is opaque).
  /// Errors of ReadHeader; INVALID_ARGUMENT for a destination of another shape. After an error its
  /// contents are undefined.
  absl::Status Decode(std::span<const uint8_t> bytes,
                      std::span<const std::span<uint8_t>> destination,
                      const ParallelFor& parallel = Serially) const;

  /// Decodes into a new chunk.
  absl::StatusOr<KvChunk> Decode(std::span<const uint8_t> bytes,
                                 const ParallelFor& parallel = Serially) const;

  const KvLayout& layout() const;
  const Profile* profile() const;

 private:
  explicit Codec(std::shared_ptr<const PreparedModel> model) : model_(std::move(model)) {}
  std::shared_ptr<const PreparedModel> model_;
};

}  // namespace tandem::kvstore::codec
