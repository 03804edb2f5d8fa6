// The search for the highest rate.
#include "scheduler/planner/bisection.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace tandem::planner {
namespace {

TEST(HighestPassingRate, HalvesUntilItIsFineEnough) {
  std::vector<double> tried;
  const auto rate = HighestPassingRate(8, 1, [&](double r) -> absl::StatusOr<bool> {
    tried.push_back(r);
    return r <= 5.2;
  });
  EXPECT_EQ(rate.value(), 5);
  EXPECT_EQ(tried, (std::vector<double>{4, 6, 5}));
}

TEST(HighestPassingRate, IsZeroWhenNothingPasses) {
  EXPECT_EQ(HighestPassingRate(8, 1, [](double) { return false; }).value(), 0);
}

TEST(HighestPassingRate, RefusesWhatWouldNotEnd) {
  const auto never = [](double) -> absl::StatusOr<bool> { return absl::InternalError("called"); };
  for (const auto& [max, eps] : std::vector<std::pair<double, double>>{
           {8, 0}, {8, -1}, {0, 1}, {-8, 1}, {INFINITY, 1}, {NAN, 1}, {8, NAN}, {8, 1e-12}}) {
    EXPECT_EQ(HighestPassingRate(max, eps, never).status().code(),
              absl::StatusCode::kInvalidArgument)
        << max << " " << eps;
  }
  EXPECT_EQ(HighestPassingRate(8, 1, never).status().code(), absl::StatusCode::kInternal);
}

}  // namespace
}  // namespace tandem::planner
