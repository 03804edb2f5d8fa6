// The fuzz entry over a seed and deterministic mutations of it, so that the ordinary test run
// covers it too.
#include <gtest/gtest.h>

#include <random>

#include "tests/support/codec_fixture.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace tandem::kvstore::codec {
namespace {

TEST(ProfileFuzzTest, AProfileAndItsMutations) {
  const std::string file = SerializeProfile(*MakeProfile(MakeModel(1, 1, 16), 1));
  std::mt19937 random(20261123);
  for (int i = 0; i < 4000; ++i) {
    std::vector<uint8_t> bytes(file.begin(), file.end());
    for (uint32_t n = i == 0 ? 0 : 1 + random() % 3; n > 0; --n) {
      // The small fields at both ends are where the structure is; the rest is numbers.
      const size_t span = random() % 2 ? 600 : bytes.size();
      const size_t at = random() % 3 ? random() % std::min(span, bytes.size())
                                     : bytes.size() - 1 - random() % std::min(span, bytes.size());
      if (random() % 8 == 0)
        bytes.resize(at + 1);
      else
        bytes[at] = static_cast<uint8_t>(random() % 2 ? random() : bytes[at] ^ 1u << random() % 8);
    }
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
  }
}

}  // namespace
}  // namespace tandem::kvstore::codec
