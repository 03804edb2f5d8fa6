// The fuzz entry over seeds and deterministic mutations of them, so that the ordinary test run
// covers it too.
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <vector>

#include "kvstore/chunk.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace tandem::kvstore {
namespace {

using Bytes = std::vector<uint8_t>;

void Mutate(Bytes& bytes, std::mt19937& random) {
  const auto below = [&](size_t n) { return n == 0 ? 0 : random() % n; };
  switch (random() % 4) {
    case 0:
      bytes[below(bytes.size())] ^= 1u << below(8);
      break;
    case 1: {
      static constexpr uint32_t kNumbers[] = {0, 1, 65536, 0x7fffffff, UINT32_MAX};
      const size_t at = below(bytes.size());
      std::memcpy(bytes.data() + at, &kNumbers[below(std::size(kNumbers))],
                  std::min<size_t>(4, bytes.size() - at));
      break;
    }
    case 2:
      bytes.resize(1 + below(bytes.size()));
      break;
    default:
      bytes.insert(bytes.begin() + below(bytes.size()), 1 + below(8),
                   static_cast<uint8_t>(random()));
  }
}

void TryInput(const Bytes& bytes, uint8_t mode) {
  Bytes input = bytes;
  input.insert(input.begin(), mode);
  LLVMFuzzerTestOneInput(input.data(), input.size());
}

TEST(StoredChunkFuzzTest, EnvelopesAndTheirMutations) {
  std::mt19937 random(20240607);
  ChunkKey key;
  const std::string key_bytes = key.Bytes(), hex = key.id.Hex();
  const StoredChunkPtr chunk = StoredChunk::Seal(key, 256, 256, Bytes(40, 7));
  for (const Bytes& seed :
       {Bytes(chunk->bytes().begin(), chunk->bytes().end()),
        Bytes(key_bytes.begin(), key_bytes.end()), Bytes(hex.begin(), hex.end())}) {
    for (uint8_t mode = 0; mode < 4; ++mode) {
      TryInput(seed, mode);
      for (int i = 0; i < 20'000; ++i) {
        Bytes bytes = seed;
        for (uint32_t n = 1 + random() % 4; n > 0; --n) Mutate(bytes, random);
        TryInput(bytes, mode);
      }
    }
  }
}

}  // namespace
}  // namespace tandem::kvstore
