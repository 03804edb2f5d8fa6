// KV that is put together in a prefill engine: computed, appended, shared with another sequence.
#include <gtest/gtest.h>

#include <cstring>

#include "base/status.h"
#include "tests/integration/engine/engine_fixture.h"

namespace tandem::workers {
namespace {

constexpr uint32_t kChunk = 256;
constexpr EngineOptions::Use kPrefill = EngineOptions::Use::kPrefill;

/// Positions [first, first + kChunk) of `sequence`, received as a sink of `to`.
std::unique_ptr<Engine::IncomingKv> Chunk(Engine& from, int32_t sequence, uint32_t first,
                                          const Engine& to) {
  auto chunk = from.Extract(sequence, first, kChunk);
  EXPECT_TRUE(chunk.ok()) << chunk.status();
  auto sink = to.NewSink(kChunk, first);
  auto spans = sink->Prepare(first, kChunk, chunk->bytes.size());
  EXPECT_TRUE(spans.ok()) << spans.status();
  const uint8_t* at = chunk->bytes.data();
  for (std::span<uint8_t> span : *spans) {
    std::memcpy(span.data(), at, span.size());
    at += span.size();
  }
  sink->Commit();
  return sink;
}

/// Feeds in steps of a chunk, so that every engine computes in the same shapes.
EngineOptions ChunkOptions(bool flash_attention) {
  EngineOptions options = Options(kPrefill);
  options.step_tokens = kChunk;
  options.flash_attention = flash_attention;
  return options;
}

class AppendedKv : public testing::TestWithParam<bool> {};

TEST_P(AppendedKv, ComputedAndLoadedChunksMakeTheSameContext) {
  auto whole = MakeEngine(ChunkOptions(GetParam()));
  auto mixed = MakeEngine(ChunkOptions(GetParam()));
  const auto prompt = Prompt(4 * kChunk + 17);
  std::vector<float> expected, got;
  ASSERT_OK(Feed(*whole, 0, prompt, &expected));
  // The first and the third chunk are computed, the others come from elsewhere.
  const std::span tokens(prompt);
  ASSERT_OK(Feed(*mixed, 0, tokens.first(kChunk)));
  ASSERT_OK(mixed->Append(0, *Chunk(*whole, 0, kChunk, *mixed)));
  ASSERT_OK(Feed(*mixed, 0, tokens.subspan(2 * kChunk, kChunk)));
  ASSERT_OK(mixed->Append(0, *Chunk(*whole, 0, 3 * kChunk, *mixed)));
  EXPECT_EQ(mixed->Length(0), 4 * kChunk);
  ASSERT_OK(Feed(*mixed, 0, tokens.subspan(4 * kChunk), &got));
  EXPECT_EQ(got, expected);
  EXPECT_EQ(mixed->held_tokens(), prompt.size());
}

INSTANTIATE_TEST_SUITE_P(FlashAttention, AppendedKv, testing::Bool(),
                         [](const auto& info) { return info.param ? "On" : "Off"; });

TEST(AppendMisuse, IsRefusedAndChangesNothing) {
  auto engine = MakeEngine(ChunkOptions(true));
  const auto prompt = Prompt(2 * kChunk);
  ASSERT_OK(Feed(*engine, 0, prompt));
  const auto second = Chunk(*engine, 0, kChunk, *engine);
  EXPECT_TRUE(absl::IsInvalidArgument(engine->Append(0, *second))) << "the sequence goes further";
  EXPECT_TRUE(absl::IsInvalidArgument(engine->Append(1, *second))) << "the sequence is empty";
  EXPECT_TRUE(absl::IsInvalidArgument(engine->Append(99, *second)));
  EXPECT_TRUE(absl::IsInvalidArgument(engine->Inject(1, *second)));
  EXPECT_TRUE(absl::IsFailedPrecondition(engine->Append(0, *engine->NewSink(kChunk, 2 * kChunk))));
  EXPECT_EQ(engine->Length(0), prompt.size());
  EXPECT_EQ(engine->Length(1), 0u);
  auto decode = MakeEngine(Options(EngineOptions::Use::kDecode));
  EXPECT_TRUE(absl::IsInvalidArgument(decode->Append(0, *decode->NewSink(kChunk))));
  EXPECT_TRUE(absl::IsInvalidArgument(decode->Fork(0, 1, 1)));
}

TEST(Append, IsRefusedWithoutRoom) {
  EngineOptions options = ChunkOptions(true);
  options.context_tokens = options.kv_tokens = 3 * kChunk;
  auto engine = MakeEngine(options);
  ASSERT_OK(Feed(*engine, 0, Prompt(2 * kChunk)));
  ASSERT_OK(Feed(*engine, 1, Prompt(kChunk)));
  const auto second = Chunk(*engine, 0, kChunk, *engine);
  EXPECT_TRUE(absl::IsResourceExhausted(engine->Append(1, *second)));
  engine->Free(0);
  ASSERT_OK(engine->Append(1, *second));
}

TEST(Fork, SharesKvWithoutRoomAndOutlivesTheOriginal) {
  auto engine = MakeEngine(ChunkOptions(true));
  const auto prompt = Prompt(3 * kChunk);
  const std::span tokens(prompt);
  std::vector<float> expected, got;
  ASSERT_OK(Feed(*engine, 0, tokens, &expected));
  ASSERT_OK(engine->Fork(0, 1, 2 * kChunk));
  EXPECT_EQ(engine->Length(1), 2 * kChunk);
  EXPECT_EQ(engine->held_tokens(), prompt.size());
  engine->Free(0);
  EXPECT_EQ(engine->held_tokens(), 2 * kChunk);
  ASSERT_OK(Feed(*engine, 1, tokens.subspan(2 * kChunk), &got));
  EXPECT_EQ(Best(got), Best(expected));
  EXPECT_EQ(engine->held_tokens(), prompt.size());
  EXPECT_TRUE(absl::IsInvalidArgument(engine->Fork(1, 2, prompt.size() + 1)));
  EXPECT_TRUE(absl::IsInvalidArgument(engine->Fork(1, 1, kChunk)));
  engine->Free(1);
  EXPECT_EQ(engine->held_tokens(), 0u);
}

}  // namespace
}  // namespace tandem::workers
