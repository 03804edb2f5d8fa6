// Fuzz entry for what a disk, a Redis or a peer gives back for a chunk: bytes that may be anything.
// Called by libFuzzer and, over seeds and fixed mutations, by stored_chunk_fuzz_test.cc.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "kvstore/chunk.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace tandem::kvstore {
namespace {

constexpr size_t kChecksumOffset = 56;

void Require(bool condition) {
  if (!condition) std::abort();
}

/// Random bytes hardly ever have the right checksum; half of the inputs are given it, so that
/// what lies behind the check is reached as well.
void MendChecksum(std::vector<uint8_t>& bytes) {
  if (bytes.size() < StoredChunk::kEnvelopeBytes) return;
  std::vector<uint8_t> covered(bytes.begin(), bytes.begin() + kChecksumOffset);
  covered.insert(covered.end(), bytes.begin() + StoredChunk::kEnvelopeBytes, bytes.end());
  const uint64_t digest = XXH3_64bits(covered.data(), covered.size());
  std::memcpy(bytes.data() + kChecksumOffset, &digest, sizeof(digest));
}

/// The key that the envelope names, so that half of the inputs are the chunk that is expected.
ChunkKey KeyIn(const std::vector<uint8_t>& bytes) {
  ChunkKey key;
  if (bytes.size() < StoredChunk::kEnvelopeBytes) return key;
  std::string text(bytes.begin() + 8, bytes.begin() + 40);
  text.push_back(static_cast<char>(bytes[6]));
  const auto named = ChunkKey::FromBytes(text);
  return named.ok() ? *named : key;
}

void CheckOpened(const StoredChunkPtr& chunk, const std::vector<uint8_t>& bytes,
                 const ChunkKey& expected) {
  Require(chunk->key() == expected);
  Require(chunk->Verify().ok());
  Require(chunk->n_tokens() > 0);
  Require(uint64_t{chunk->first_position()} + chunk->n_tokens() <= UINT32_MAX);
  Require(std::vector<uint8_t>(chunk->bytes().begin(), chunk->bytes().end()) == bytes);
  const StoredChunkPtr again =
      StoredChunk::Seal(chunk->key(), chunk->first_position(), chunk->n_tokens(), chunk->payload());
  Require(std::vector<uint8_t>(again->bytes().begin(), again->bytes().end()) == bytes);
}

}  // namespace
}  // namespace tandem::kvstore

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tandem::kvstore;  // NOLINT: the entry has to be outside of the namespace
  if (size == 0) return 0;
  std::vector<uint8_t> bytes(data + 1, data + size);
  if (data[0] & 1) MendChecksum(bytes);
  const ChunkKey expected = data[0] & 2 ? KeyIn(bytes) : ChunkKey{};
  const auto opened = StoredChunk::Open(bytes, expected);
  if (opened.ok()) CheckOpened(*opened, bytes, expected);
  const std::string text(bytes.begin(), bytes.end());
  if (const auto key = ChunkKey::FromBytes(text); key.ok()) Require(key->Bytes() == text);
  if (const auto id = ChunkId::FromHex(text); id.ok()) {
    Require(*ChunkId::FromHex(id->Hex()) == *id);
  }
  return 0;
}
