// Steps for curves whose best division is known.
#include "workers/calibration/step_allocation.h"

#include <gtest/gtest.h>

#include <cmath>

namespace tandem::workers {
namespace {

/// A Gaussian source of `n` components at high resolution: half the step, one bit more each.
RateCurve Curve(double n, double sigma) {
  return RateCurve(1e-3, 1e3,
                   [=](double step) { return n * std::max(0.0, std::log2(4 * sigma / step)); });
}

TEST(RateCurveTest, Interpolates) {
  const RateCurve curve = Curve(10, 1);
  EXPECT_NEAR(curve.BitsAt(1), 20, 0.3);
  EXPECT_NEAR(curve.BitsAt(0.1), 10 * std::log2(40), 0.3);
  EXPECT_EQ(curve.BitsAt(1e-9), curve.BitsAt(1e-3));
  EXPECT_EQ(curve.BitsAt(1e9), 0);
}

TEST(FitHarmTest, GoesThroughBothPoints) {
  const Harm harm = FitHarm(1, 0.001, 2, 0.003);
  EXPECT_NEAR(harm.At(1), 0.001, 1e-9);
  EXPECT_NEAR(harm.At(2), 0.003, 1e-9);
  EXPECT_EQ(FitHarm(1, 0, 2, 0).At(5), 0);
  EXPECT_NEAR(FitHarm(1, 0, 2, 0.004).At(2), 0.004, 1e-9);
  EXPECT_EQ(FitHarm(1, 1e-9, 2, 1).exponent, 2.5);
}

TEST(AllocateStepsTest, EvensOutBitsSavedForHarmDone) {
  // Four times the harm: half the step. Twice the components: √2 of it.
  const RateCurve curves[] = {Curve(100, 10), Curve(100, 10), Curve(200, 10)};
  const Harm harms[] = {{1e-4, 2}, {4e-4, 2}, {1e-4, 2}};
  const auto steps = AllocateSteps(curves, harms, 1e6, 100);
  EXPECT_NEAR(steps[0] / steps[1], 2, 0.2);
  EXPECT_NEAR(steps[2] / steps[0], std::sqrt(2), 0.15);
  const auto coarser = AllocateSteps(curves, harms, 1e5, 100);
  for (size_t i = 0; i < 3; ++i) EXPECT_GT(coarser[i], 2 * steps[i]);
  const auto held = AllocateSteps(curves, harms, 1e6, 1.1);
  EXPECT_LE(held[2] / held[1], 1.1 * 1.1 + 1e-9);
}

TEST(InverseInterpolateTest, FollowsThePoints) {
  const std::pair<double, double> points[] = {{1, 10}, {2, 40}, {4, 80}};
  EXPECT_NEAR(InverseInterpolate(points, 10), 1, 1e-9);
  EXPECT_NEAR(InverseInterpolate(points, 20), std::sqrt(2), 1e-9);
  EXPECT_NEAR(InverseInterpolate(points, 40), 2, 1e-9);
  EXPECT_NEAR(InverseInterpolate(points, 160), 8, 1e-9);
  EXPECT_NEAR(InverseInterpolate(points, 1e9), 16, 1e-9);
  EXPECT_NEAR(InverseInterpolate(points, 2.5), 0.5, 1e-9);
  const std::pair<double, double> noise[] = {{1, 10}, {2, 9}};
  EXPECT_NEAR(InverseInterpolate(noise, 20), std::sqrt(2), 1e-9);
}

TEST(FindFallingTest, Bisects) {
  EXPECT_NEAR(FindFalling(1e-3, 1e3, 0.5, [](double x) { return 1 / x; }), 2, 1e-6);
}

}  // namespace
}  // namespace tandem::workers
