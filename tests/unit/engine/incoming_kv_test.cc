// The receiving sinks: chunks arrive where libllama reads them; holes, overlaps and wrong sizes
// are refused; buffers are used again.
#include "workers/engine/incoming_kv.h"

#include <gmock/gmock.h>

#include <numeric>
#include <thread>

#include "tests/unit/engine/blob_builder.h"

namespace tandem::workers {
namespace {

using ::testing::HasSubstr;

constexpr uint32_t kTokens = 10;

BlobRecipe RecipeOf(uint32_t v_element, uint32_t n_streams) {
  BlobRecipe recipe{.n_streams = n_streams, .v_element = v_element};
  recipe.positions.resize(kTokens);
  std::iota(recipe.positions.begin(), recipe.positions.end(), 0);
  return recipe;
}

std::unique_ptr<BlobSink> SinkFor(const BlobRecipe& recipe, uint32_t max_tokens = 100) {
  const auto blob = ParseBlob(BuildBlob(recipe));
  EXPECT_TRUE(blob.ok()) << blob.status();
  return NewPlainSink(blob->format, 0, kTokens, recipe.n_streams, max_tokens,
                      std::make_shared<BufferPool>());
}

absl::Status Fill(Engine::IncomingKv& sink, uint32_t first, uint32_t n,
                  const std::vector<uint8_t>& bytes) {
  const auto spans = sink.Prepare(first, n, bytes.size());
  if (!spans.ok()) return spans.status();
  size_t at = 0;
  for (std::span<uint8_t> span : *spans) {
    std::copy_n(bytes.begin() + at, span.size(), span.begin());
    at += span.size();
  }
  EXPECT_EQ(at, bytes.size());
  sink.Commit();
  return absl::OkStatus();
}

class PlainSinkTest : public ::testing::TestWithParam<std::tuple<uint32_t, uint32_t>> {
 protected:
  const BlobRecipe recipe_ = RecipeOf(std::get<0>(GetParam()), std::get<1>(GetParam()));
};

TEST_P(PlainSinkTest, AssemblesChunksOfAnySize) {
  for (uint32_t size : {1u, 3u, 4u, 9u, 10u}) {
    auto sink = SinkFor(recipe_);
    for (uint32_t first = 0; first < kTokens; first += size) {
      EXPECT_FALSE(sink->complete());
      const uint32_t n = std::min(size, kTokens - first);
      const auto chunk = ChunkOf(recipe_, static_cast<int32_t>(first), n);
      const auto filled = Fill(*sink, first, n, chunk);
      ASSERT_TRUE(filled.ok()) << filled;
    }
    EXPECT_TRUE(sink->complete());
    EXPECT_THAT(sink->blob(), ::testing::ElementsAreArray(BuildBlob(recipe_)));
  }
}

TEST_P(PlainSinkTest, RefusesHolesOverlapsAndWrongSizes) {
  auto sink = SinkFor(recipe_);
  const uint64_t row = ChunkOf(recipe_, 0, 1).size();
  const auto expect = [&](uint32_t first, uint32_t n, uint64_t bytes, const char* text) {
    const auto spans = sink->Prepare(first, n, bytes);
    EXPECT_EQ(spans.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(spans.status().message()), HasSubstr(text));
  };
  ASSERT_TRUE(Fill(*sink, 0, 4, ChunkOf(recipe_, 0, 4)).ok());
  expect(5, 2, 2 * row, "hole in the KV: a chunk begins at position 5, expected 4");
  expect(3, 2, 2 * row, "arrived twice");
  expect(0, 4, 4 * row, "arrived twice");
  expect(4, 0, 0, "a chunk of 0 tokens");
  expect(4, 7, 7 * row, "a chunk of 7 tokens at position 4 of a sequence of 10");
  expect(4, UINT32_MAX, row, "a chunk of 4294967295 tokens");
  expect(4, 2, 2 * row - 1, "expected ");
  expect(4, 2, UINT64_MAX, "expected ");
  // What was refused leaves no trace; a chunk that was prepared only may be prepared again.
  ASSERT_TRUE(sink->Prepare(4, 3, 3 * row).ok());
  ASSERT_TRUE(Fill(*sink, 4, 6, ChunkOf(recipe_, 4, 6)).ok());
  EXPECT_TRUE(sink->complete());
  EXPECT_THAT(sink->blob(), ::testing::ElementsAreArray(BuildBlob(recipe_)));
  expect(10, 1, row, "a chunk of 1 tokens at position 10");
}

INSTANTIATE_TEST_SUITE_P(Layouts, PlainSinkTest,
                         ::testing::Combine(::testing::Values(0, 1, 2), ::testing::Values(1, 3)));

TEST(SinkTest, RefusesASequenceLongerThanTheContextBeforeTakingMemory) {
  auto sink = SinkFor(RecipeOf(0, 1), kTokens - 1);
  EXPECT_EQ(sink->Prepare(0, 1, 20).status().code(), absl::StatusCode::kInvalidArgument);
  const BlobFormat huge{.n_layers = 1, .planes = {{1, 1 << 20, 0}}};
  auto endless = NewPlainSink(huge, 0, UINT32_MAX, 1, 2048, std::make_shared<BufferPool>());
  EXPECT_EQ(endless->Prepare(0, 1, 1 << 20).status().code(), absl::StatusCode::kInvalidArgument);
  auto empty = NewPlainSink(huge, 0, 0, 1, 2048, std::make_shared<BufferPool>());
  EXPECT_FALSE(empty->complete());
  EXPECT_FALSE(empty->Prepare(0, 0, 0).ok());
}

TEST(SinkTest, OpaqueTakesOneWholeState) {
  const auto make = [] { return NewOpaqueSink(5, 100, 1000, std::make_shared<BufferPool>()); };
  const std::vector<uint8_t> state(77, 0x5a);
  auto sink = make();
  EXPECT_FALSE(sink->Prepare(1, 4, 77).ok());
  EXPECT_FALSE(sink->Prepare(0, 4, 77).ok());
  EXPECT_FALSE(sink->Prepare(0, 5, 0).ok());
  EXPECT_FALSE(sink->Prepare(0, 5, 1001).ok()) << "more than any state can have";
  sink->Commit();
  EXPECT_FALSE(sink->complete()) << "nothing was prepared";
  ASSERT_TRUE(Fill(*sink, 0, 5, state).ok());
  EXPECT_TRUE(sink->complete());
  EXPECT_THAT(sink->blob(), ::testing::ElementsAreArray(state));
  EXPECT_FALSE(sink->Prepare(0, 5, 77).ok()) << "it has arrived already";
}

TEST(BufferPoolTest, GivesTheSmallestSpareThatFits) {
  auto pool = std::make_shared<BufferPool>();
  const uint8_t* large = nullptr;
  const uint8_t* small = nullptr;
  {
    auto first = pool->Take(4000), second = pool->Take(1000);
    large = first.bytes().data();
    small = second.bytes().data();
  }
  auto again = pool->Take(900);
  EXPECT_EQ(again.bytes().data(), small);
  EXPECT_EQ(again.bytes().size(), 900u);
  EXPECT_EQ(pool->Take(2000).bytes().data(), large);
  auto moved = std::move(again);
  EXPECT_TRUE(again.empty());
  EXPECT_EQ(moved.bytes().data(), small);
}

TEST(BufferPoolTest, BuffersMayOutliveTheirPoolsOwnerAndComeBackFromOtherThreads) {
  auto pool = std::make_shared<BufferPool>();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([pool] {
      for (size_t i = 1; i < 200; ++i) {
        auto buffer = pool->Take(i * 10);
        buffer.bytes().back() = 1;
      }
    });
  }
  auto held = pool->Take(10);
  pool.reset();
  for (std::thread& thread : threads) thread.join();
  held.bytes()[0] = 1;
}

}  // namespace
}  // namespace tandem::workers
