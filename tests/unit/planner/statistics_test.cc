// Percentiles and attainment.
#include "scheduler/planner/statistics.h"

#include <gtest/gtest.h>

namespace tandem::planner {
namespace {

TEST(Quantile, InterpolatesBetweenRanks) {
  EXPECT_EQ(Quantile({7}, 0.9), 7);
  EXPECT_EQ(Quantile({3, 1, 2}, 0), 1);
  EXPECT_EQ(Quantile({3, 1, 2}, 0.5), 2);
  EXPECT_EQ(Quantile({3, 1, 2}, 0.75), 2.5);
  EXPECT_EQ(Quantile({3, 1, 2}, 1), 3);
}

TEST(Attained, CountsWhoKeepsBothLimitsItself) {
  const Attainment shares =
      Attained(std::vector<double>{1, 2, 3, 4}, std::vector<double>{4, 3, 2, 1}, 3, 2);
  EXPECT_EQ(shares.ttft, 0.75) << "a value on the limit keeps it";
  EXPECT_EQ(shares.tpot, 0.5);
  EXPECT_EQ(shares.both, 0.25);
  EXPECT_EQ(Attained({}, {}, 1, 1).both, 0);
}

}  // namespace
}  // namespace tandem::planner
