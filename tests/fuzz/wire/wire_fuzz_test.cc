// The fuzz entry over seeds and deterministic mutations of them, so that the ordinary test run
// covers it too.
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <vector>

#include "kvstore/transfer/wire.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace tandem::kvstore {
namespace {

using Bytes = std::vector<uint8_t>;

/// A whole conversation: every frame type, two chunks with bodies.
Bytes Conversation() {
  Bytes stream;
  const auto add = [&](v1::FrameType type, const auto& meta, const Bytes& body = {}) {
    const Bytes frame = *wire::EncodeFrame(type, meta, body);
    stream.insert(stream.end(), frame.begin(), frame.end());
    stream.insert(stream.end(), body.begin(), body.end());
  };
  add(v1::FRAME_TYPE_HELLO, wire::ToHello({{"model", "tale"}, {"type_k", "f16"}}));
  v1::Pull pull;
  pull.set_handoff_id("0123456789abcdef");
  pull.set_request_id("request");
  add(v1::FRAME_TYPE_PULL, pull);
  v1::ChunkHeader chunk;
  chunk.set_n_tokens(2);
  add(v1::FRAME_TYPE_CHUNK, chunk, Bytes(64, 7));
  add(v1::FRAME_TYPE_WAIT, v1::Wait());
  chunk.set_first_position(2);
  add(v1::FRAME_TYPE_CHUNK, chunk, Bytes(64, 9));
  v1::End end;
  end.set_n_tokens(4);
  end.set_first_token(-5);
  add(v1::FRAME_TYPE_END, end);
  add(v1::FRAME_TYPE_DONE, v1::Done());
  v1::Probe probe;
  probe.set_fills(2);
  probe.set_data_address("10.0.0.1:8472");
  add(v1::FRAME_TYPE_PROBE, probe);
  v1::Probed probed;
  probed.set_fills(1);
  probed.set_asker("10.0.0.1:40000");
  add(v1::FRAME_TYPE_PROBED, probed);
  add(v1::FRAME_TYPE_FILL, v1::Fill(), Bytes(64, 3));
  add(v1::FRAME_TYPE_ABORT, wire::ToAbort(absl::InternalError("reason")));
  return stream;
}

void Mutate(Bytes& bytes, std::mt19937& random) {
  const auto below = [&](size_t n) { return n == 0 ? 0 : random() % n; };
  switch (random() % 4) {
    case 0:
      bytes[below(bytes.size())] ^= 1u << below(8);
      break;
    case 1: {
      static constexpr uint32_t kNumbers[] = {0, 1, 65536, 65537, 0x7fffffff, UINT32_MAX};
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

TEST(WireFuzzTest, AConversationAndItsMutations) {
  std::mt19937 random(20240607);
  for (const uint8_t mode : {0, 1}) {  // checksums mended, and left
    Bytes seed = Conversation();
    seed.insert(seed.begin(), mode);
    LLVMFuzzerTestOneInput(seed.data(), seed.size());
    for (int i = 0; i < 50'000; ++i) {
      Bytes bytes = seed;
      for (uint32_t n = 1 + random() % 4; n > 0; --n) Mutate(bytes, random);
      LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
    }
  }
}

}  // namespace
}  // namespace tandem::kvstore
