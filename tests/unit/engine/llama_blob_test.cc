// The parser and the builder of libllama's blobs, on good, damaged and hostile bytes.
#include "workers/engine/llama_blob.h"

#include <gmock/gmock.h>

#include <numeric>
#include <random>

#include "tests/unit/engine/blob_builder.h"

namespace tandem::workers {
namespace {

using ::testing::HasSubstr;

std::vector<int32_t> Range(int32_t first, int32_t n) {
  std::vector<int32_t> positions(n);
  std::iota(positions.begin(), positions.end(), first);
  return positions;
}

std::vector<BlobRecipe> GoodRecipes() {
  return {{.positions = Range(0, 1)},
          {.positions = Range(5, 9)},
          {.positions = Range(0, 9), .v_element = 2},
          {.positions = Range(0, 3), .n_streams = 4, .stream = 2},
          {.positions = Range(0, 3), .n_streams = 4, .stream = 3, .v_element = 1},
          {.positions = Range(0, 3), .n_layers = 1, .has_v = false},
          {.positions = Range(0, 3), .n_streams = 3, .stream = 0, .has_v = false}};
}

TEST(ParseBlobTest, ReadsWhatTheFormatSays) {
  for (const BlobRecipe& recipe : GoodRecipes()) {
    const auto bytes = BuildBlob(recipe);
    const auto blob = ParseBlob(bytes);
    ASSERT_TRUE(blob.ok()) << blob.status();
    EXPECT_EQ(blob->positions, recipe.positions);
    EXPECT_EQ(blob->n_streams, recipe.n_streams);
    EXPECT_EQ(blob->format.n_layers, recipe.n_layers);
    EXPECT_EQ(blob->format.transposed_v, recipe.v_element != 0);
    ASSERT_EQ(blob->format.planes.size(), recipe.n_layers * (recipe.has_v ? 2 : 1));
    EXPECT_EQ(blob->format.planes[0], (BlobPlane{1, recipe.k_row, 0}));
    if (recipe.has_v) {
      EXPECT_EQ(blob->format.planes.back(), (BlobPlane{1, recipe.v_row, recipe.v_element}));
    }
    std::vector<uint8_t> planes;
    AppendPlanes(bytes, *blob, {}, planes);
    EXPECT_EQ(planes,
              ChunkOf(recipe, recipe.positions[0], static_cast<uint32_t>(recipe.positions.size())));
  }
}

TEST(ParseBlobTest, RefusesEveryTruncationAndEveryAddition) {
  for (const BlobRecipe& recipe : GoodRecipes()) {
    auto bytes = BuildBlob(recipe);
    for (size_t n = 0; n < bytes.size(); ++n) {
      const auto blob = ParseBlob(std::span(bytes).first(n));
      // Cut at the end of K, a blob is that of a model without V; its format differs.
      if (blob.ok()) {
        EXPECT_TRUE(recipe.has_v);
        EXPECT_EQ(blob->format.planes.size(), recipe.n_layers);
        EXPECT_EQ(recipe.stream + 1, recipe.n_streams);
      }
    }
    bytes.push_back(0);
    EXPECT_FALSE(ParseBlob(bytes).ok());
  }
}

TEST(ParseBlobTest, SurvivesHostileNumbers) {
  const auto good = BuildBlob({.positions = Range(0, 3), .n_streams = 2, .v_element = 2});
  for (size_t at = 0; at + 4 <= good.size(); ++at) {
    for (uint32_t value : {0u, 1u, 2u, 255u, 0x7fffffffu, 0x80000000u, 0xffffffffu}) {
      auto bytes = good;
      std::memcpy(bytes.data() + at, &value, sizeof(value));
      const auto blob = ParseBlob(bytes);
      if (!blob.ok()) continue;
      std::vector<uint8_t> planes;  // the offsets must be good
      AppendPlanes(bytes, *blob, {}, planes);
      EXPECT_LT(planes.size(), bytes.size());
    }
  }
}

TEST(ParseBlobTest, SaysWhatIsWrong) {
  const auto message = [](std::vector<uint8_t> bytes, size_t at, uint32_t value) {
    std::memcpy(bytes.data() + at, &value, sizeof(value));
    return std::string(ParseBlob(bytes).status().message());
  };
  const auto good = BuildBlob({.positions = Range(0, 3)});
  EXPECT_THAT(message(good, 0, 7), HasSubstr("wrong magic number"));
  EXPECT_THAT(message(good, 8, 0), HasSubstr("an impossible stream count"));
  EXPECT_THAT(message(good, 8, 257), HasSubstr("an impossible stream count"));
  EXPECT_THAT(message(good, 12, 0), HasSubstr("it holds no cells"));
  EXPECT_THAT(message(good, 12, 1u << 30), HasSubstr("too many cells"));
  EXPECT_THAT(message(good, 16, 0xffffffff), HasSubstr("a negative position"));
  EXPECT_THAT(message(good, 20, 2), HasSubstr("a cell of several sequences"));
  EXPECT_THAT(message(good, 52, 2), HasSubstr("no transposition flag"));
  EXPECT_THAT(message(good, 56, 0), HasSubstr("an impossible layer count"));
  EXPECT_THAT(message(good, 64, 1u << 30), HasSubstr("a plane of impossible size"));
}

TEST(CellOrderTest, OrdersAndFindsHolesAndOverlaps) {
  using Cells = std::vector<uint32_t>;
  const auto order = [](std::vector<int32_t> positions, int32_t first) {
    return CellOrder(positions, first);
  };
  EXPECT_EQ(*order({4, 5, 6}, 4), Cells{});
  EXPECT_EQ(*order({6, 4, 5}, 4), (Cells{1, 2, 0}));
  EXPECT_EQ(*order({1, 0}, 0), (Cells{1, 0}));
  EXPECT_FALSE(order({4, 6, 7}, 4).ok()) << "hole";
  EXPECT_FALSE(order({4, 5, 5}, 4).ok()) << "overlap";
  EXPECT_FALSE(order({4, 5, 6}, 3).ok());
  EXPECT_FALSE(order({4, 5, 6}, 5).ok());
  EXPECT_FALSE(order({0, INT32_MAX}, 0).ok());
}

TEST(AppendPlanesTest, PutsCellsInOrder) {
  for (uint32_t v_element : {0u, 1u, 2u}) {
    BlobRecipe recipe{.positions = {12, 10, 13, 11}, .v_element = v_element};
    const auto bytes = BuildBlob(recipe);
    const auto blob = ParseBlob(bytes);
    ASSERT_TRUE(blob.ok()) << blob.status();
    const auto order = CellOrder(blob->positions, 10);
    ASSERT_TRUE(order.ok()) << order.status();
    std::vector<uint8_t> planes;
    AppendPlanes(bytes, *blob, *order, planes);
    EXPECT_EQ(planes, ChunkOf(recipe, 10, 4));
  }
}

TEST(BlobPlanTest, BuildsWhatTheParserReads) {
  for (BlobRecipe recipe : GoodRecipes()) {
    recipe.positions = Range(0, static_cast<int32_t>(recipe.positions.size()));
    recipe.stream = 0;
    const auto want = BuildBlob(recipe);
    const auto parsed = ParseBlob(want);
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    const auto n_tokens = static_cast<uint32_t>(recipe.positions.size());
    const BlobPlan plan(parsed->format, n_tokens, recipe.n_streams);
    ASSERT_EQ(plan.size(), want.size());
    std::vector<uint8_t> got(plan.size(), 0xee);
    plan.WriteHeaders(got.data());
    for (size_t i = 0; i < parsed->format.planes.size(); ++i) {
      EXPECT_EQ(plan.plane_offset(i), parsed->plane_offsets[i]);
      std::copy_n(want.begin() + parsed->plane_offsets[i],
                  parsed->format.planes[i].row_bytes * n_tokens,
                  got.begin() + plan.plane_offset(i));
    }
    EXPECT_EQ(got, want);
  }
}

}  // namespace
}  // namespace tandem::workers
