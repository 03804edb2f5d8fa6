// The fuzz entry over seeds and deterministic mutations of them, so that the ordinary test run
// covers it too.
#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "tests/unit/engine/blob_builder.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace tandem::workers {
namespace {

std::vector<std::vector<uint8_t>> Seeds() {
  return {{},
          {0xd8, 0x3c, 0x14, 0xaf},
          BuildBlob({.positions = {0}}),
          BuildBlob({.positions = {0, 1, 2, 3}}),
          BuildBlob({.positions = {7, 5, 6}, .v_element = 2}),
          BuildBlob({.positions = {0, 1, 2}, .n_streams = 4, .stream = 1}),
          BuildBlob({.positions = {0, 1}, .n_layers = 3, .has_v = false})};
}

/// One of the changes that find bugs in parsers.
void Mutate(std::vector<uint8_t>& bytes, std::mt19937& random) {
  const auto below = [&](size_t n) { return n == 0 ? 0 : random() % n; };
  switch (random() % 5) {
    case 0:
      if (!bytes.empty()) bytes[below(bytes.size())] ^= 1u << below(8);
      break;
    case 1: {
      static constexpr uint32_t kNumbers[] = {
          0, 1, 2, 255, 256, 4096, 4097, 0x7fffffff, 0x80000000, 0xfffffff0, UINT32_MAX};
      const uint32_t number = kNumbers[below(std::size(kNumbers))];
      if (bytes.size() >= 4) {
        std::memcpy(bytes.data() + below(bytes.size() / 4) * 4, &number, sizeof(number));
      }
      break;
    }
    case 2:
      bytes.resize(below(bytes.size() + 1));
      break;
    case 3:
      bytes.insert(bytes.begin() + below(bytes.size() + 1), below(16),
                   static_cast<uint8_t>(random()));
      break;
    default:
      if (bytes.size() > 8) {  // a piece twice
        const size_t from = below(bytes.size() - 8);
        const std::vector<uint8_t> piece(bytes.begin() + from, bytes.begin() + from + 8);
        bytes.insert(bytes.begin() + below(bytes.size()), piece.begin(), piece.end());
      }
  }
}

TEST(BlobFuzzTest, SeedsAndTheirMutations) {
  std::mt19937 random(20240607);
  for (const auto& seed : Seeds()) {
    LLVMFuzzerTestOneInput(seed.data(), seed.size());
    for (int i = 0; i < 20'000; ++i) {
      std::vector<uint8_t> bytes = seed;
      for (uint32_t n = 1 + random() % 3; n > 0; --n) Mutate(bytes, random);
      LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
    }
  }
}

}  // namespace
}  // namespace tandem::workers
