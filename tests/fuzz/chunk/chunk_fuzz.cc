// Fuzz entry for encoded chunks: whatever the bytes are, decoding gives a Status or a chunk, and
// the same by every instruction set. Called by libFuzzer and, over seeds and fixed mutations, by
// chunk_fuzz_test.cc.
#include <xxhash.h>

#include <cstdlib>
#include <cstring>

#include "tests/support/codec_fixture.h"

namespace tandem::kvstore::codec {
namespace {

void Require(bool condition) {
  if (!condition) std::abort();
}

/// Codecs of one model, one for each instruction set.
struct Codecs {
  std::vector<Codec> codecs;

  Codecs(const TestModel& model, const std::shared_ptr<const Profile>& profile) {
    for (const Isa isa : SupportedIsas()) {
      codecs.push_back(*Codec::Create(model.layout, model.geometry, kFingerprint, profile, isa));
    }
  }
};

TestModel Quantised() {
  TestModel model;
  model.layout.planes.assign(2, {.type = "q8_0", .row_bytes = 68});
  return model;
}

TestModel Opaque() {
  TestModel model;
  model.layout.opaque = true;
  return model;
}

const std::vector<Codecs>& AllCodecs() {
  static const auto* const all = new std::vector<Codecs>{
      {MakeModel(1, 2, 32), MakeProfile(MakeModel(1, 2, 32), 1)},
      {MakeModel(1, 2, 32), MakeProfile(MakeModel(1, 2, 32), 1, Prediction::kPrevious)},
      {MakeModel(2, 1, 16, "f32", Rope::Style::kHalves, true), nullptr},
      {Quantised(), nullptr},
      {Opaque(), nullptr}};
  return *all;
}

}  // namespace

/// Puts the right magic, version and checksum into `chunk`: random bytes hardly ever have them.
void MendChunk(std::vector<uint8_t>& chunk) {
  if (chunk.size() < 16) return;
  const uint64_t begin = 0x0001'4356'4b54 | uint64_t{chunk[6]} << 48, zero = 0;
  std::memcpy(chunk.data(), &begin, 8);
  std::memcpy(chunk.data() + 8, &zero, 8);
  const uint64_t checksum = XXH3_64bits(chunk.data(), chunk.size());
  std::memcpy(chunk.data() + 8, &checksum, 8);
}

}  // namespace tandem::kvstore::codec

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tandem::kvstore::codec;  // NOLINT: the entry has to be outside of the namespace
  if (size == 0) return 0;
  const auto& codecs = AllCodecs()[data[0] % AllCodecs().size()].codecs;
  std::vector<uint8_t> chunk(data + 1, data + size);
  if (data[0] < 128) MendChunk(chunk);
  const auto expected = codecs[0].Decode(chunk);
  for (const Codec& codec : codecs) {
    const auto decoded = codec.Decode(chunk);
    Require(decoded.ok() == expected.ok());
    if (decoded.ok()) Require(decoded->bytes == expected->bytes);
  }
  return 0;
}
