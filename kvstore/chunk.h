// Content-addressed chunks: how they are named, and how an encoded one looks wherever it is kept or
// sent. Used by the store's tiers, the data plane, workers and routers.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "kvstore/codec/level.h"
#include "kvstore/kv_layout.h"

namespace tandem::kvstore {

using codec::Level;

/// Names the KV of `chunk_tokens` consecutive tokens: SHA-256 over the chunk before it and its own
/// token ids, from a root that holds everything KV depends on and the tenant. Equal ids mean equal
/// KV, and no tenant can name another's.
struct ChunkId {
  std::array<uint8_t, 32> bytes{};
  auto operator<=>(const ChunkId&) const = default;
  /// The first eight bytes: uniform, so good for hashing.
  uint64_t Hash() const;
  /// 64 hexadecimal digits.
  std::string Hex() const;
  /// INVALID_ARGUMENT unless `hex` has 64 hexadecimal digits.
  static absl::StatusOr<ChunkId> FromHex(std::string_view hex);
  template <typename H>
  friend H AbslHashValue(H h, const ChunkId& id) {
    return H::combine(std::move(h), id.Hash());
  }
};

/// 32 bytes that stand for an engine's identity: model, cache types and layout, engine, RoPE.
std::string KvNamespace(const Identity& identity);

/// The ids of the whole chunks of `tokens`, in order; a shorter rest has none. REQUIRES:
/// chunk_tokens > 0. Thread-safe; about 1 µs a chunk of 256 tokens.
std::vector<ChunkId> ChunkIds(std::string_view kv_namespace, std::string_view tenant,
                              std::span<const int32_t> tokens, uint32_t chunk_tokens);

/// A chunk as one level has it. The level is the coarsest that its KV has come through: what was
/// computed after a prefix loaded at q1 is at best q1 itself, however it is encoded.
struct ChunkKey {
  ChunkId id;
  Level level = Level::kLossless;
  auto operator<=>(const ChunkKey&) const = default;
  template <typename H>
  friend H AbslHashValue(H h, const ChunkKey& key) {
    return H::combine(std::move(h), key.id.Hash(), static_cast<uint8_t>(key.level));
  }
  /// 33 bytes: the id, then the level.
  std::string Bytes() const;
  /// INVALID_ARGUMENT unless `bytes` are such.
  static absl::StatusOr<ChunkKey> FromBytes(std::string_view bytes);
};

/// An encoded chunk in its envelope, in memory, on disk, in Redis and on the wire. Little endian:
///
///   offset size field
///        0    4 magic          0x434D4454, the bytes "TDMC"
///        4    2 version        1
///        6    1 level          codec::Level
///        7    1 reserved       0
///        8   32 chunk id
///       40    4 first_position
///       44    4 n_tokens
///       48    8 payload_bytes
///       56    8 checksum       XXH3-64 over bytes 0 to 55 and the payload
///       64      payload        what codec::Codec::Encode made
///
/// Immutable. Whoever uses one holds it by pointer, so nothing is freed under a reader.
class StoredChunk {
 public:
  static constexpr size_t kEnvelopeBytes = 64;

  /// Encoded KV with its envelope around it. REQUIRES: n_tokens > 0, and the positions fit uint32.
  static std::shared_ptr<const StoredChunk> Seal(const ChunkKey& key, uint32_t first_position,
                                                 uint32_t n_tokens,
                                                 std::span<const uint8_t> payload);
  /// Checks bytes from anywhere. DATA_LOSS when they are damaged, truncated or not the chunk that
  /// was `expected`; FAILED_PRECONDITION for another version.
  static absl::StatusOr<std::shared_ptr<const StoredChunk>> Open(std::vector<uint8_t> bytes,
                                                                 const ChunkKey& expected);
  /// Looks at the checksum again: memory decays too. DATA_LOSS.
  absl::Status Verify() const;

  const ChunkKey& key() const { return key_; }
  uint32_t first_position() const { return first_position_; }
  uint32_t n_tokens() const { return n_tokens_; }
  /// Envelope and payload.
  std::span<const uint8_t> bytes() const { return bytes_; }
  std::span<const uint8_t> payload() const { return bytes().subspan(kEnvelopeBytes); }

 private:
  StoredChunk(std::vector<uint8_t> bytes, const ChunkKey& key, uint32_t first_position,
              uint32_t n_tokens)
      : bytes_(std::move(bytes)), key_(key), first_position_(first_position), n_tokens_(n_tokens) {}
  const std::vector<uint8_t> bytes_;
  const ChunkKey key_;
  const uint32_t first_position_, n_tokens_;
};
using StoredChunkPtr = std::shared_ptr<const StoredChunk>;

}  // namespace tandem::kvstore
