// The packed set of holders: against a plain map, over the border between object and heap.
#include "scheduler/chunk_holders.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>

namespace tandem::scheduler {
namespace {

using Holders = std::map<int, int>;

Holders All(const ChunkHolders& holders) {
  Holders all;
  holders.ForEach([&](uint16_t node, uint8_t levels) {
    EXPECT_TRUE(all.emplace(node, levels).second) << "node " << node << " comes twice";
  });
  return all;
}

TEST(ChunkHolders, TakesTheLargestNumbers) {
  ChunkHolders holders;
  EXPECT_TRUE(holders.empty());
  EXPECT_TRUE(holders.Set(65535, 31));
  EXPECT_TRUE(holders.Set(0, 1));
  EXPECT_TRUE(holders.Set(65534, 16));
  EXPECT_EQ(All(holders), (Holders{{0, 1}, {65534, 16}, {65535, 31}}));
  EXPECT_EQ(holders.HeapBytes(), 0u);
  EXPECT_TRUE(holders.Set(7, 31));
  EXPECT_GT(holders.HeapBytes(), 0u);
  EXPECT_EQ(All(holders), (Holders{{0, 1}, {7, 31}, {65534, 16}, {65535, 31}}));
}

TEST(ChunkHolders, MovesWithWhatItHolds) {
  ChunkHolders few, many;
  few.Set(1, 1);
  for (uint16_t node = 0; node < 9; ++node) many.Set(node, 2);
  ChunkHolders moved(std::move(many));
  EXPECT_TRUE(many.empty());  // NOLINT(bugprone-use-after-move): emptied by contract
  EXPECT_EQ(All(moved).size(), 9u);
  moved = std::move(few);
  EXPECT_EQ(All(moved), (Holders{{1, 1}}));
}

TEST(ChunkHolders, IsAMapOfNodes) {
  std::mt19937 random(3);
  for (int round = 0; round < 50; ++round) {
    ChunkHolders holders;
    Holders truth;
    for (int step = 0; step < 400; ++step) {
      // Few nodes, so that the set keeps growing and shrinking over its borders.
      const auto node = static_cast<uint16_t>(random() % 7 * 9000);
      const auto levels = static_cast<uint8_t>(random() % 2 == 0 ? 0 : 1 + random() % 31);
      const bool was_there = truth.contains(node);
      EXPECT_EQ(holders.Set(node, levels), was_there != (levels != 0));
      truth.erase(node);
      if (levels != 0) truth[node] = levels;
      ASSERT_EQ(All(holders), truth);
      ASSERT_EQ(holders.empty(), truth.empty());
      ASSERT_EQ(holders.HeapBytes() != 0, truth.size() > 3);
    }
  }
}

}  // namespace
}  // namespace tandem::scheduler
