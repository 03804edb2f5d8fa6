// The fuzz entry over seeds and deterministic mutations of them, so that the ordinary test run
// covers it too.
#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "tests/support/codec_fixture.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace tandem::kvstore::codec {
namespace {

using Bytes = std::vector<uint8_t>;

Bytes Seed(uint8_t mode, const TestModel& model, const std::shared_ptr<const Profile>& profile,
           const EncodeOptions& options, const KvChunk& chunk) {
  const Codec codec = *Codec::Create(model.layout, model.geometry, kFingerprint, profile);
  Bytes seed = *codec.Encode(chunk, options);
  seed.insert(seed.begin(), mode);
  return seed;
}
Bytes Seed(uint8_t mode, const TestModel& model, const std::shared_ptr<const Profile>& profile,
           const EncodeOptions& options) {
  return Seed(mode, model, profile, options, MakeChunk(model, 0, 37, 1));
}

/// A quantised or opaque chunk, of which some bytes repeat.
KvChunk Patterned(size_t n_bytes) {
  KvChunk chunk{.n_tokens = 7};
  for (size_t i = 0; i < n_bytes; ++i) chunk.bytes.push_back(static_cast<uint8_t>(i * i % 23));
  return chunk;
}

void Mutate(Bytes& bytes, std::mt19937& random) {
  const auto below = [&](size_t n) { return n == 0 ? 0 : random() % n; };
  const size_t at = 1 + below(bytes.size() - 1);
  switch (random() % 4) {
    case 0:
      bytes[at] ^= static_cast<uint8_t>(1u << below(8));
      break;
    case 1: {
      static constexpr uint32_t kNumbers[] = {0, 1, 255, 65535, 0x7fffffff, UINT32_MAX};
      std::memcpy(bytes.data() + at, &kNumbers[below(std::size(kNumbers))],
                  std::min<size_t>(4, bytes.size() - at));
      break;
    }
    case 2:
      bytes.resize(at + 1);
      break;
    default:
      bytes.insert(bytes.begin() + static_cast<ptrdiff_t>(at), 1 + below(8),
                   static_cast<uint8_t>(random()));
  }
}

TEST(ChunkFuzzTest, ChunksOfEveryKindAndTheirMutations) {
  const TestModel model = MakeModel(1, 2, 32);
  const auto plain = MakeProfile(model, 1),
             predicted = MakeProfile(model, 1, Prediction::kPrevious);
  const TestModel other = MakeModel(2, 1, 16, "f32", Rope::Style::kHalves, true);
  TestModel quantised, opaque;
  quantised.layout.planes.assign(2, {.type = "q8_0", .row_bytes = 68});
  opaque.layout.opaque = true;
  std::mt19937 random(20261123);
  for (const Bytes& seed :
       {Seed(0, model, plain, {}), Seed(0, model, plain, {.level = Level::kQ1}),
        Seed(0, model, plain, {.level = Level::kQ4, .exact_tail_tokens = 5}),
        Seed(1, model, predicted, {.level = Level::kQ2}), Seed(2, other, nullptr, {}),
        Seed(2, other, nullptr, {.level = Level::kQ1}), Seed(200, model, plain, {}),
        Seed(3, quantised, nullptr, {}, Patterned(7 * 2 * 68)),
        Seed(4, opaque, nullptr, {}, Patterned(1000))}) {
    LLVMFuzzerTestOneInput(seed.data(), seed.size());
    for (int i = 0; i < 600; ++i) {
      Bytes bytes = seed;
      for (uint32_t n = 1 + random() % 4; n > 0; --n) Mutate(bytes, random);
      LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
    }
  }
}

}  // namespace
}  // namespace tandem::kvstore::codec
