// The library's tables against entropies.
#include "workers/calibration/table_library.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

namespace tandem::workers {
namespace {

/// A discrete Laplace distribution of 10,000 values.
IntegerCounts Laplace(double scale) {
  IntegerCounts counts{};
  double total = 0;
  for (int v = -kMaxInteger; v <= kMaxInteger; ++v) total += std::exp(-std::abs(v) / scale);
  for (int v = -kMaxInteger; v <= kMaxInteger; ++v) {
    counts[static_cast<size_t>(v + kMaxInteger)] =
        static_cast<float>(std::round(10000 * std::exp(-std::abs(v) / scale) / total));
  }
  return counts;
}

double Total(const IntegerCounts& counts) {
  return std::accumulate(counts.begin(), counts.end(), 0.0);
}

TEST(BuildTablesTest, CodesAllInAlmostTheirEntropy) {
  std::vector<IntegerCounts> all;
  for (double scale = 0.1; scale < 40; scale *= 1.03) all.push_back(Laplace(scale));
  const TableLibrary library = BuildTables(all, 48);
  EXPECT_LE(library.tables.size(), 48u);
  double bits = 0, entropy = 0;
  for (size_t i = 0; i < all.size(); ++i) {
    ASSERT_LT(library.assigned[i], library.tables.size());
    bits += CostBits(library.tables[library.assigned[i]], all[i]);
    entropy += EntropyBits(all[i]) * Total(all[i]);
  }
  EXPECT_LT(bits, 1.01 * entropy);
}

TEST(BuildTablesTest, NarrowOnesWhereTheyDo) {
  IntegerCounts rare = Laplace(0.4);
  rare[0] = 2;  // of 10,000
  const IntegerCounts all[] = {rare, Laplace(2), Laplace(20)};
  const TableLibrary library = BuildTables(all, 16);
  const auto size = [&](size_t i) {
    return library.tables[library.assigned[i]].frequencies.size();
  };
  EXPECT_LE(size(0), 16u);
  EXPECT_LE(size(1), 32u);
  EXPECT_GT(size(2), 32u);
}

TEST(BuildTablesTest, TablesCanCodeEverything) {
  const IntegerCounts all[] = {Laplace(0.01), Laplace(1), Laplace(100)};
  for (const auto& table : BuildTables(all, 8).tables) {
    EXPECT_LE(table.lowest, 0);
    EXPECT_GE(table.lowest + static_cast<int>(table.frequencies.size()), 2);
    for (const uint16_t frequency : table.frequencies.frequencies()) EXPECT_GE(frequency, 1);
  }
}

TEST(BuildTablesTest, IsDeterministic) {
  std::vector<IntegerCounts> all;
  for (double scale = 0.1; scale < 40; scale *= 1.2) all.push_back(Laplace(scale));
  EXPECT_EQ(BuildTables(all, 8).assigned, BuildTables(all, 8).assigned);
}

}  // namespace
}  // namespace tandem::workers
