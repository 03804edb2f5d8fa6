// Chunks through the whole codec: what comes back, what it costs, what is refused.
#include "kvstore/codec/codec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <xxhash.h>

#include <cstring>
#include <random>
#include <thread>

#include "tests/support/codec_fixture.h"

namespace tandem::kvstore::codec {
namespace {

Codec Make(const TestModel& model, std::shared_ptr<const Profile> profile, Isa isa = BestIsa()) {
  return Codec::Create(model.layout, model.geometry, kFingerprint, std::move(profile), isa).value();
}

double NormalisedError(const TestModel& model, const KvChunk& a, const KvChunk& b) {
  double error = 0, energy = 0;
  for (size_t p = 0; p < model.layout.planes.size(); ++p) {
    const std::string& type = model.layout.planes[p].type;
    const auto& layer = model.geometry.layers[0];
    for (uint32_t t = 0; t < a.n_tokens; ++t) {
      for (uint32_t c = 0; c < layer.n_kv_heads * layer.k_head_dim; ++c) {
        const size_t at = ElementAt(model, a.n_tokens, p, t, c);
        const double x = GetElement(type, a.bytes.data() + at);
        const double y = GetElement(type, b.bytes.data() + at);
        error += (x - y) * (x - y);
        energy += x * x;
      }
    }
  }
  return error / energy;
}

bool SameToken(const TestModel& model, const KvChunk& a, const KvChunk& b, uint32_t token) {
  for (size_t p = 0; p < model.layout.planes.size(); ++p) {
    const auto& layer = model.geometry.layers[0];
    const size_t bytes = model.layout.planes[p].type == "f32" ? 4 : 2;
    for (uint32_t c = 0; c < layer.n_kv_heads * layer.k_head_dim; ++c) {
      const size_t at = ElementAt(model, a.n_tokens, p, token, c);
      if (std::memcmp(a.bytes.data() + at, b.bytes.data() + at, bytes) != 0) return false;
    }
  }
  return true;
}

TEST(Codec, LosslessBringsBackEveryBit) {
  for (const std::string type : {"f16", "bf16", "f32"}) {
    const TestModel model = MakeModel(3, 2, 32, type);
    const Codec codec = Make(model, nullptr);
    KvChunk chunk = MakeChunk(model, 7, 100, 1);
    const auto check = [&](const char* what) {
      const auto encoded = codec.Encode(chunk, {});
      ASSERT_TRUE(encoded.ok()) << encoded.status();
      EXPECT_LT(encoded->size(), chunk.bytes.size() + 400) << what;
      const auto decoded = codec.Decode(*encoded);
      ASSERT_TRUE(decoded.ok()) << decoded.status();
      EXPECT_EQ(decoded->bytes, chunk.bytes) << type << " " << what;
      EXPECT_EQ(decoded->first_position, 7u);
    };
    check("usual values");
    std::mt19937 random(5);
    for (uint8_t& byte : chunk.bytes) byte = static_cast<uint8_t>(random());
    check("random bits, NaNs and denormals among them");
    for (uint8_t fill : {0x00, 0x7c, 0xff}) {
      std::fill(chunk.bytes.begin(), chunk.bytes.end(), fill);
      check("all bytes equal");
    }
  }
}

TEST(Codec, LosslessSavesWhatExponentsRepeat) {
  const TestModel model = MakeModel(4, 2, 64);
  const KvChunk chunk = MakeChunk(model, 0, 256, 2);
  const auto encoded = Make(model, nullptr).Encode(chunk, {});
  ASSERT_TRUE(encoded.ok());
  EXPECT_LT(static_cast<double>(encoded->size()), 0.85 * static_cast<double>(chunk.bytes.size()));
}

TEST(Codec, LosslessTakesQuantisedUnknownAndOpaqueKv) {
  std::mt19937 random(3);
  for (const std::string type : {"q8_0", "q4_0", "q5_1", "iq4_nl", "something_new"}) {
    KvLayout layout;
    layout.planes.assign(4, {.type = type, .row_bytes = 68});
    const auto codec = Codec::Create(layout, {}, kFingerprint, nullptr);
    ASSERT_TRUE(codec.ok());
    KvChunk chunk{.first_position = 0, .n_tokens = 33};
    chunk.bytes.resize(33 * 4 * 68);
    for (uint8_t& byte : chunk.bytes) byte = static_cast<uint8_t>(random() % 50);
    const auto encoded = codec->Encode(chunk, {});
    ASSERT_TRUE(encoded.ok()) << encoded.status();
    EXPECT_LT(encoded->size(), chunk.bytes.size());
    EXPECT_EQ(codec->Decode(*encoded)->bytes, chunk.bytes) << type;
    EXPECT_EQ(codec->Encode(chunk, {.level = Level::kQ1}).status().code(),
              absl::StatusCode::kFailedPrecondition);
  }
  const auto codec = Codec::Create({.opaque = true}, {}, kFingerprint, nullptr);
  for (const size_t size : {0, 1, 1000, 3000000}) {
    KvChunk chunk{.first_position = 0, .n_tokens = 5, .bytes = std::vector<uint8_t>(size, 9)};
    const auto encoded = codec->Encode(chunk, {});
    ASSERT_TRUE(encoded.ok()) << encoded.status();
    const auto decoded = codec->Decode(*encoded);
    ASSERT_TRUE(decoded.ok()) << size << ": " << decoded.status();
    EXPECT_EQ(decoded->bytes, chunk.bytes);
  }
}

TEST(Codec, FinerLevelsCostMoreAndLoseLess) {
  const TestModel model = MakeModel(2, 2, 64);
  const Codec codec = Make(model, MakeProfile(model, 1));
  const KvChunk chunk = MakeChunk(model, 0, 256, 4);
  double last_error = 0;
  size_t last_size = codec.Encode(chunk, {})->size();
  for (const Level level : {Level::kQ1, Level::kQ2, Level::kQ3, Level::kQ4}) {
    const auto encoded = codec.Encode(chunk, {.level = level});
    ASSERT_TRUE(encoded.ok()) << encoded.status();
    const auto decoded = codec.Decode(*encoded);
    ASSERT_TRUE(decoded.ok()) << decoded.status();
    const double error = NormalisedError(model, chunk, *decoded);
    EXPECT_LT(encoded->size(), last_size) << LevelName(level);
    EXPECT_GT(error, last_error) << LevelName(level);
    EXPECT_TRUE(SameToken(model, chunk, *decoded, 0)) << "the sink";
    EXPECT_FALSE(SameToken(model, chunk, *decoded, 1));
    last_size = encoded->size();
    last_error = error;
  }
  EXPECT_LT(
      NormalisedError(model, chunk, *codec.Decode(*codec.Encode(chunk, {.level = Level::kQ1}))),
      1e-2);
}

TEST(Codec, ABlockDoesNotSeeTheOneBefore) {
  // Blocks of 96 and 48 channels; of the second, 42 components are coded, ten and a half quads.
  const TestModel model = MakeModel(1, 3, 48);
  const auto profile = MakeProfile(model, 13);
  const KvChunk chunk = MakeChunk(model, 0, 64, 16);
  KvChunk other = chunk;  // differs in the first block alone
  for (uint32_t t = 0; t < 64; ++t) {
    for (uint32_t c = 0; c < 96; ++c) {
      PutElement("f16", static_cast<float>(c % 7), &other.bytes[ElementAt(model, 64, 0, t, c)]);
    }
  }
  for (const Isa isa : SupportedIsas()) {
    const Codec codec = Make(model, profile, isa);
    const KvChunk a = *codec.Decode(*codec.Encode(chunk, {.level = Level::kQ2}));
    const KvChunk b = *codec.Decode(*codec.Encode(other, {.level = Level::kQ2}));
    for (uint32_t t = 1; t < 64; ++t) {
      for (uint32_t c = 96; c < 144; ++c) {
        const size_t at = ElementAt(model, 64, 0, t, c);
        ASSERT_EQ(GetElement("f16", &a.bytes[at]), GetElement("f16", &b.bytes[at]))
            << t << " " << c;
      }
    }
  }
}

TEST(Codec, EveryInstructionSetGivesTheSameBits) {
  for (const auto style : {Rope::Style::kNone, Rope::Style::kInterleaved, Rope::Style::kHalves}) {
    for (const std::string type : {"f16", "bf16", "f32"}) {
      const TestModel model = MakeModel(2, 3, 48, type, style);
      const auto profile = MakeProfile(model, 2);
      const KvChunk chunk = MakeChunk(model, 1000, 75, 5);
      for (const auto& used : {profile, std::shared_ptr<const Profile>()}) {
        for (const Level level : {Level::kLossless, Level::kQ1}) {
          const Codec scalar = Make(model, used, Isa::kScalar);
          const auto expected = scalar.Encode(chunk, {.level = level});
          ASSERT_TRUE(expected.ok()) << expected.status();
          const KvChunk decoded = *scalar.Decode(*expected);
          for (const Isa isa : SupportedIsas()) {
            const Codec codec = Make(model, used, isa);
            EXPECT_EQ(*codec.Encode(chunk, {.level = level}), *expected) << IsaName(isa);
            EXPECT_EQ(codec.Decode(*expected)->bytes, decoded.bytes) << IsaName(isa);
          }
        }
      }
    }
  }
}

TEST(Codec, WithoutAProfileOnlyQ1AndItIsFine) {
  for (const std::string type : {"f16", "bf16", "f32"}) {
    const TestModel model = MakeModel(2, 2, 64, type);
    const Codec codec = Make(model, nullptr);
    const KvChunk chunk = MakeChunk(model, 0, 256, 6);
    const auto encoded = codec.Encode(chunk, {.level = Level::kQ1});
    ASSERT_TRUE(encoded.ok()) << encoded.status();
    const auto decoded = codec.Decode(*encoded);
    ASSERT_TRUE(decoded.ok()) << decoded.status();
    EXPECT_LT(NormalisedError(model, chunk, *decoded), 5e-3) << type;
    EXPECT_LT(encoded->size() * 8.0 / (256 * 512), 5.5) << type;
    for (uint32_t t = 0; t < 4; ++t) EXPECT_TRUE(SameToken(model, chunk, *decoded, t));
    for (const Level level : {Level::kQ2, Level::kQ3, Level::kQ4}) {
      const auto refused = codec.Encode(chunk, {.level = level}).status();
      EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
      EXPECT_THAT(std::string(refused.message()), testing::HasSubstr("tandem kv profile"));
    }
  }
}

TEST(Codec, TokensThatNoLevelCanHoldAreKeptExact) {
  const TestModel model = MakeModel(2, 2, 32);
  for (const auto& profile : {MakeProfile(model, 3), std::shared_ptr<const Profile>()}) {
    const Codec codec = Make(model, profile);
    KvChunk chunk = MakeChunk(model, 500, 64, 7);
    const std::vector<std::pair<uint32_t, uint16_t>> strange = {
        {5, 0x7e00}, {6, 0x7c00}, {20, 0xfc00}, {63, 0x7bff}};  // NaN, ± infinity, 65504
    for (const auto& [token, bits] : strange) {
      std::memcpy(chunk.bytes.data() + ElementAt(model, 64, 1, token, 17), &bits, 2);
    }
    const auto encoded = codec.Encode(chunk, {.level = Level::kQ1});
    ASSERT_TRUE(encoded.ok()) << encoded.status();
    const auto decoded = codec.Decode(*encoded);
    ASSERT_TRUE(decoded.ok()) << decoded.status();
    for (const auto& [token, bits] : strange) {
      if (profile == nullptr && bits == 0x7bff) continue;  // merely large there
      EXPECT_TRUE(SameToken(model, chunk, *decoded, token)) << token;
    }
    EXPECT_FALSE(SameToken(model, chunk, *decoded, 7));
  }
}

TEST(Codec, WhatIsNotCodedDoesNotMakeTokensExact) {
  // A level of one coded component, of a basis that mixes nothing: all other channels are lost, as
  // asked for, and not kept exact for having left the range of what is coded.
  const TestModel model = MakeModel(1, 1, 32);
  Profile profile = *MakeProfile(model, 14);
  for (auto& blocks : profile.planes) {
    for (Block& block : blocks) {
      for (size_t i = 0; i < block.basis.size(); ++i) block.basis[i] = i % 33 == 0 ? 63 : 0;
    }
  }
  for (auto& plane : profile.levels[0]->planes) {
    plane.step = 4;  // a step of 5, of values with a spread of 2
    for (auto& block : plane.blocks) block.tables.resize(1);
  }
  const std::string file = SerializeProfile(profile);
  const auto read = std::make_shared<const Profile>(
      *ParseProfile({reinterpret_cast<const uint8_t*>(file.data()), file.size()}));
  const KvChunk chunk = MakeChunk(model, 10, 256, 17);
  const auto encoded = Make(model, read).Encode(chunk, {.level = Level::kQ1});
  ASSERT_TRUE(encoded.ok()) << encoded.status();
  EXPECT_LT(encoded->size() * 8.0 / (2 * 256 * 32), 1.0);
}

TEST(Codec, OutliersAreEscapedAndStayNear) {
  const TestModel model = MakeModel(1, 1, 64);
  const Codec codec = Make(model, MakeProfile(model, 4));
  KvChunk chunk = MakeChunk(model, 0, 64, 8);
  for (uint32_t t = 10; t < 20; ++t)
    PutElement("f16", 40.0f, chunk.bytes.data() + ElementAt(model, 64, 1, t, t));
  const auto decoded = codec.Decode(*codec.Encode(chunk, {.level = Level::kQ1}));
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  for (uint32_t t = 10; t < 20; ++t) {
    EXPECT_NEAR(GetElement("f16", decoded->bytes.data() + ElementAt(model, 64, 1, t, t)), 40.0f,
                1.0f);
  }
}

TEST(Codec, TheEndOfALiveContextCanBeKeptExact) {
  const TestModel model = MakeModel(2, 2, 32);
  const Codec codec = Make(model, MakeProfile(model, 5));
  const KvChunk chunk = MakeChunk(model, 256, 40, 9);
  const auto decoded =
      codec.Decode(*codec.Encode(chunk, {.level = Level::kQ3, .exact_tail_tokens = 10}));
  ASSERT_TRUE(decoded.ok());
  for (uint32_t t = 0; t < 40; ++t) EXPECT_EQ(SameToken(model, chunk, *decoded, t), t >= 30) << t;
}

TEST(Codec, PredictionChangesTheBitsNotTheValues) {
  const TestModel model = MakeModel(2, 2, 32);
  KvChunk chunk = MakeChunk(model, 0, 100, 10);
  for (uint32_t t = 40; t < 44; ++t)
    PutElement("f16", 60.0f, chunk.bytes.data() + ElementAt(model, 100, 1, t, 3));
  const Codec none = Make(model, MakeProfile(model, 6));
  const KvChunk expected = *none.Decode(*none.Encode(chunk, {.level = Level::kQ2}));
  for (const Prediction prediction : {Prediction::kPrevious, Prediction::kAnchor}) {
    for (const Isa isa : SupportedIsas()) {
      const Codec codec = Make(model, MakeProfile(model, 6, prediction), isa);
      const auto encoded = codec.Encode(chunk, {.level = Level::kQ2});
      ASSERT_TRUE(encoded.ok());
      const auto decoded = codec.Decode(*encoded);
      ASSERT_TRUE(decoded.ok()) << decoded.status();
      EXPECT_EQ(decoded->bytes, expected.bytes) << IsaName(isa);
    }
  }
}

TEST(Codec, ChannelMajorValuesAreTheSameValues) {
  const TestModel rows = MakeModel(2, 2, 32),
                  columns = MakeModel(2, 2, 32, "f16", Rope::Style::kInterleaved, true);
  const auto profile = MakeProfile(rows, 7);
  const KvChunk a = MakeChunk(rows, 3, 77, 11), b = MakeChunk(columns, 3, 77, 11);
  for (const Level level : {Level::kLossless, Level::kQ1, Level::kQ4}) {
    const KvChunk x = *Make(rows, profile).Decode(*Make(rows, profile).Encode(a, {.level = level}));
    const auto encoded = *Make(columns, profile).Encode(b, {.level = level});
    const KvChunk y = *Make(columns, profile).Decode(encoded);
    for (size_t p = 0; p < 4; ++p) {
      for (uint32_t t = 0; t < 77; ++t) {
        for (uint32_t c = 0; c < 64; ++c) {
          ASSERT_EQ(GetElement("f16", x.bytes.data() + ElementAt(rows, 77, p, t, c)),
                    GetElement("f16", y.bytes.data() + ElementAt(columns, 77, p, t, c)));
        }
      }
    }
  }
}

TEST(Codec, ThreadsChangeNothing) {
  const TestModel model = MakeModel(8, 8, 64);
  const Codec codec = Make(model, MakeProfile(model, 8));
  const KvChunk chunk = MakeChunk(model, 0, 128, 12);
  const ParallelFor threads = [](size_t n, const std::function<void(size_t)>& body) {
    std::vector<std::thread> running;
    for (size_t i = 0; i < n; ++i) running.emplace_back(body, i);
    for (std::thread& thread : running) thread.join();
  };
  for (const Level level : {Level::kLossless, Level::kQ2}) {
    const auto encoded = codec.Encode(chunk, {.level = level});
    EXPECT_GT(codec.ReadHeader(*encoded)->n_streams, 1u);
    EXPECT_EQ(*codec.Encode(chunk, {.level = level}, threads), *encoded);
    EXPECT_EQ(codec.Decode(*encoded, threads)->bytes, codec.Decode(*encoded)->bytes);
  }
}

TEST(Codec, DamageIsNoticed) {
  const TestModel model = MakeModel(1, 2, 32);
  const Codec codec = Make(model, MakeProfile(model, 9));
  const auto encoded = *codec.Encode(MakeChunk(model, 0, 40, 13), {.level = Level::kQ1});
  for (size_t i = 0; i < encoded.size(); ++i) {
    auto damaged = encoded;
    damaged[i] ^= 1;
    EXPECT_FALSE(codec.Decode(damaged).ok()) << i;
    EXPECT_FALSE(codec.Decode(std::span(encoded).first(i)).ok()) << i;
  }
}

TEST(Codec, AnImpossibleSizeTakesNoMemory) {
  const TestModel model = MakeModel(32, 8, 128);
  const Codec codec = Make(model, nullptr);
  KvChunk chunk{.first_position = 0, .n_tokens = 1};
  chunk.bytes.resize(model.layout.BytesPerToken());
  std::vector<uint8_t> encoded = *codec.Encode(chunk, {});
  const uint32_t n_tokens = 65535;
  const uint64_t raw_bytes = model.layout.BytesPerToken() * n_tokens, zero = 0;
  std::memcpy(encoded.data() + 24, &raw_bytes, 8);
  std::memcpy(encoded.data() + 36, &n_tokens, 4);
  std::memcpy(encoded.data() + 8, &zero, 8);
  const uint64_t checksum = XXH3_64bits(encoded.data(), encoded.size());
  std::memcpy(encoded.data() + 8, &checksum, 8);
  EXPECT_EQ(codec.ReadHeader(encoded)->n_tokens, n_tokens);
  const absl::Status refused = codec.Decode(encoded).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(refused.message()), testing::HasSubstr("impossible size"));
}

TEST(Codec, AForeignChunkIsRefusedByName) {
  const TestModel model = MakeModel(1, 2, 32), other = MakeModel(2, 2, 32);
  const Codec codec = Make(model, MakeProfile(model, 10));
  const auto encoded = *codec.Encode(MakeChunk(model, 0, 40, 14), {.level = Level::kQ1});
  EXPECT_EQ(Make(model, MakeProfile(model, 11)).Decode(encoded).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(Make(model, nullptr).Decode(encoded).status().code(),
            absl::StatusCode::kFailedPrecondition);
  const auto lossless = *codec.Encode(MakeChunk(model, 0, 40, 14), {});
  EXPECT_EQ(Make(other, nullptr).Decode(lossless).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(Make(model, nullptr).Decode(lossless).ok()) << "lossless needs no profile";
}

TEST(Codec, AnotherModelsProfileIsRefused) {
  const TestModel model = MakeModel(1, 2, 32);
  const auto wrong =
      Codec::Create(model.layout, model.geometry, std::string(32, 'x'), MakeProfile(model, 12));
  EXPECT_EQ(wrong.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(wrong.status().message()), testing::HasSubstr("another model"));
  TestModel rotated = model;
  rotated.geometry.rope.radians_per_position[3] *= 2;
  EXPECT_EQ(Codec::Create(rotated.layout, rotated.geometry, kFingerprint, MakeProfile(model, 12))
                .status()
                .code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(Codec, WrongShapesAreRefused) {
  const TestModel model = MakeModel(1, 2, 32);
  const Codec codec = Make(model, nullptr);
  KvChunk chunk = MakeChunk(model, 0, 40, 15);
  const auto encoded = *codec.Encode(chunk, {});
  std::vector<uint8_t> small(10);
  const std::span<uint8_t> spans[] = {small, small};
  EXPECT_EQ(codec.Decode(encoded, spans).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(codec.Decode(encoded, std::span(spans).first(1)).code(),
            absl::StatusCode::kInvalidArgument);
  chunk.bytes.pop_back();
  EXPECT_EQ(codec.Encode(chunk, {}).status().code(), absl::StatusCode::kInvalidArgument);
  chunk.n_tokens = 0;
  EXPECT_EQ(codec.Encode(chunk, {}).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace tandem::kvstore::codec
