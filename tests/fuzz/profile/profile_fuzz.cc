// Fuzz entry for profile files: whatever the bytes are, reading gives a Status or a profile that
// can be used and written again. Called by libFuzzer and, over seeds and fixed mutations, by
// profile_fuzz_test.cc.
#include <xxhash.h>

#include <cstdlib>
#include <cstring>

#include "tests/support/codec_fixture.h"

namespace tandem::kvstore::codec {
namespace {

void Require(bool condition) {
  if (!condition) std::abort();
}

/// Uses a profile that was accepted, if it fits the test's model.
void Use(const Profile& profile) {
  static const TestModel& model = *new TestModel(MakeModel(1, 1, 16));
  static const KvChunk& chunk = *new KvChunk(MakeChunk(model, 0, 20, 1));
  const auto codec = Codec::Create(model.layout, model.geometry, profile.model_fingerprint,
                                   std::make_shared<const Profile>(profile));
  if (!codec.ok()) return;
  for (const Level level : kAllLevels) {
    if (!codec->CheckLevel(level).ok()) continue;
    const auto encoded = codec->Encode(chunk, {.level = level});
    Require(encoded.ok());
    Require(codec->Decode(*encoded).ok());
  }
}

}  // namespace
}  // namespace tandem::kvstore::codec

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tandem::kvstore::codec;  // NOLINT: the entry has to be outside of the namespace
  std::vector<uint8_t> file(data, data + size);
  if (size >= 16) {  // random bytes hardly ever have the right checksum
    const uint64_t checksum = XXH3_64bits(file.data() + 16, file.size() - 16);
    std::memcpy(file.data() + 8, &checksum, 8);
  }
  const auto profile = ParseProfile(file);
  if (!profile.ok()) return 0;
  const std::string again = SerializeProfile(*profile);
  Require(again.size() == file.size() && std::memcmp(again.data(), file.data(), file.size()) == 0);
  Use(*profile);
  return 0;
}
