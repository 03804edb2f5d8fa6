#include "scheduler/core/latency_model.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace tandem::scheduler {
namespace {

const PrefillCost kPrefill = {.base_s = 0.004, .per_token_s = 2e-4, .per_position_s = 3e-8};

double Noise(std::mt19937_64& random, double sigma = 0.05) {
  return std::exp(std::normal_distribution<double>(0, sigma)(random));
}

/// Steps of random size with 5 % noise, every `outlier`-th ten times as long.
void Prefill(LatencyLearner& learner, const PrefillCost& cost, int n, int outlier, uint64_t seed) {
  std::mt19937_64 random(seed);
  for (int i = 1; i <= n; ++i) {
    const uint64_t tokens = 16 + random() % 500, first = random() % 1500;
    double seconds = cost.Seconds(tokens, first) * Noise(random);
    if (outlier != 0 && i % outlier == 0) seconds *= 10;
    learner.ObservePrefill(tokens, PrefillCost::PositionSum(tokens, first), seconds);
  }
}

void ExpectLike(const PrefillCost& found, const PrefillCost& real, double share) {
  for (const auto& [n, first] : {std::pair(32, 0), std::pair(512, 0), std::pair(512, 1500)}) {
    EXPECT_NEAR(found.Seconds(n, first), real.Seconds(n, first), share * real.Seconds(n, first))
        << n << " tokens at " << first;
  }
}

TEST(LatencyModelTest, PromptsGoInSteps) {
  LatencyModel model;
  model.saturation_tokens = 100;
  EXPECT_DOUBLE_EQ(model.PromptSeconds(0), 0);
  EXPECT_DOUBLE_EQ(model.PromptSeconds(100), model.prefill.Seconds(100));
  EXPECT_NEAR(model.PromptSeconds(250),
              model.prefill.Seconds(100, 0) + model.prefill.Seconds(100, 100) +
                  model.prefill.Seconds(50, 200),
              1e-12);
}

TEST(LatencyLearnerTest, FindsTheCoefficients) {
  LatencyLearner learner;
  Prefill(learner, kPrefill, 400, 0, 1);
  ExpectLike(learner.model().prefill, kPrefill, 0.05);
  EXPECT_EQ(learner.model().prefill_samples, 397u);  // the first three are warm-up
  // 0.9 of the highest rate: n ≥ 9 base / per_token = 180.
  EXPECT_NEAR(learner.model().saturation_tokens, 192, 64);
}

TEST(LatencyLearnerTest, OutliersHardlyCount) {
  LatencyLearner learner;
  Prefill(learner, kPrefill, 600, 20, 2);
  ExpectLike(learner.model().prefill, kPrefill, 0.15);
}

TEST(LatencyLearnerTest, FollowsALastingChange) {
  LatencyLearner learner;
  Prefill(learner, kPrefill, 400, 0, 3);
  const PrefillCost slower = {.base_s = 0.012, .per_token_s = 6e-4, .per_position_s = 9e-8};
  Prefill(learner, slower, 800, 0, 4);
  ExpectLike(learner.model().prefill, slower, 0.15);
}

TEST(LatencyLearnerTest, ABadMomentOfManyShortStepsMovesLittle) {
  LatencyLearner learner;
  std::mt19937_64 random(9);
  auto observe = [&](int n, double factor) {
    for (int i = 0; i < n; ++i) {
      const uint32_t batch = 1 + i % 4;
      learner.ObserveDecode(batch, 500 * batch, factor * 5e-4 * (1 + batch) * Noise(random));
    }
  };
  observe(5000, 1);
  observe(100, 3);  // half a second
  const DecodeCost& cost = learner.model().decode;
  EXPECT_NEAR(cost.StepSeconds(1, 500), 1e-3, 0.15e-3);
  EXPECT_NEAR(cost.StepSeconds(4, 2000), 2.5e-3, 0.4e-3);
  observe(20'000, 3);  // a minute and a half: the machine has become slower
  EXPECT_NEAR(cost.StepSeconds(1, 500), 3e-3, 0.2e-3);
}

TEST(LatencyLearnerTest, ALongMemoryOutlastsABadMoment) {
  LatencyLearner recent, usual({.memory_s = 60});
  std::mt19937_64 random(11);
  auto observe = [&](double for_s, double step_s) {
    for (double s = 0; s < for_s;) {
      const double seconds = step_s * Noise(random);
      for (LatencyLearner* learner : {&recent, &usual}) learner->ObserveDecode(1, 500, seconds);
      s += seconds;
    }
  };
  auto step_s = [](const LatencyLearner& learner) {
    return learner.model().decode.StepSeconds(1, 500);
  };
  observe(60, 1e-3);
  observe(5, 3e-3);
  EXPECT_GT(step_s(recent), 2e-3);
  EXPECT_LT(step_s(usual), 1.4e-3);
  observe(200, 3e-3);
  EXPECT_NEAR(step_s(usual), 3e-3, 0.3e-3) << "what lasts is learned";
}

TEST(LatencyLearnerTest, StepsThatAreOftenDisturbedCountWithTheirMean) {
  LatencyLearner learner;
  std::mt19937_64 random(10);
  // One in six takes two and a half times as long.
  auto seconds = [&] { return 1e-3 * (random() % 6 == 0 ? 2.5 : 1) * Noise(random); };
  for (int i = 0; i < 20'000; ++i) learner.ObserveDecode(1, 500, seconds());
  EXPECT_NEAR(learner.model().decode.StepSeconds(1, 500), 1.25e-3, 0.08e-3);
}

TEST(LatencyLearnerTest, CoefficientsAreNeverNegative) {
  LatencyLearner learner;
  std::mt19937_64 random(5);
  for (int i = 0; i < 300; ++i) {
    // Longer steps take less: no such line has a positive slope.
    const uint64_t tokens = 10 + random() % 500;
    learner.ObservePrefill(tokens, 0, 0.1 - 1e-4 * static_cast<double>(tokens));
    const PrefillCost& cost = learner.model().prefill;
    ASSERT_GE(std::min({cost.base_s, cost.per_token_s, cost.per_position_s}), 0);
    ASSERT_LE(learner.model().saturation_tokens, 2048u);
  }
}

TEST(LatencyLearnerTest, NonsenseIsIgnored) {
  LatencyLearner learner;
  Prefill(learner, kPrefill, 100, 0, 6);
  const PrefillCost before = learner.model().prefill;
  for (const double seconds : {0.0, -1.0, std::nan(""), HUGE_VAL}) {
    learner.ObservePrefill(100, 0, seconds);
  }
  learner.ObservePrefill(0, 0, 1);
  EXPECT_EQ(learner.model().prefill.base_s, before.base_s);
}

TEST(LatencyLearnerTest, ABatchSizeMayBeSlowerThanItsNeighbours) {
  LatencyLearner learner;
  std::mt19937_64 random(7);
  auto real = [](uint32_t n) { return n == 2 ? 0.028 : 0.008 + 0.002 * n; };
  for (int i = 0; i < 800; ++i) {
    const uint32_t n = 1 + random() % 8;
    learner.ObserveDecode(n, 100 * n, real(n) * Noise(random));
  }
  const DecodeCost& cost = learner.model().decode;
  for (uint32_t n = 1; n <= 8; ++n) {
    EXPECT_NEAR(cost.StepSeconds(n, 100 * n), real(n), 0.15 * real(n)) << n;
  }
  EXPECT_GT(cost.StepSeconds(2, 200), 1.4 * cost.StepSeconds(3, 300));
}

TEST(LatencyLearnerTest, WhatIsNotSeenAgainIsNotForgotten) {
  LatencyLearner learner;
  std::mt19937_64 random(8);
  auto real = [](uint32_t n, uint64_t context) {
    return 3e-4 + 4e-4 * n + 1e-7 * static_cast<double>(context);
  };
  auto observe = [&](uint32_t n) {
    const uint64_t context = n * (16 + random() % 1000);
    learner.ObserveDecode(n, context, real(n, context) * Noise(random));
  };
  for (int i = 0; i < 60; ++i) observe(1 + i % 8);
  for (int i = 0; i < 5000; ++i) observe(1);
  const DecodeCost& cost = learner.model().decode;
  for (const uint32_t n : {1u, 4u, 8u}) {
    EXPECT_NEAR(cost.StepSeconds(n, 500 * n), real(n, 500 * n), 0.1 * real(n, 500 * n)) << n;
  }
}

TEST(LatencyLearnerTest, ABadMomentOfABatchSizeDoesNotLast) {
  LatencyLearner learner;
  std::mt19937_64 random(11);
  auto observe = [&](uint32_t batch, double factor) {
    learner.ObserveDecode(batch, 500 * batch, factor * 1e-3 * batch * Noise(random));
  };
  for (int i = 0; i < 4000; ++i) observe(1 + i % 3, 1);
  for (int i = 0; i < 300; ++i) observe(2, 2);  // a bad second for two
  const DecodeCost& cost = learner.model().decode;
  EXPECT_GT(cost.StepSeconds(2, 1000), 2.3e-3);
  for (int i = 0; i < 20'000; ++i) observe(1, 1);  // then nobody dares
  EXPECT_NEAR(cost.StepSeconds(2, 1000), 2e-3, 0.2e-3);
}

TEST(LatencyLearnerTest, GoesOnFromWhatAnEarlierOneLearned) {
  LatencyLearner first;
  Prefill(first, kPrefill, 400, 0, 3);
  for (int i = 0; i < 200; ++i) first.ObserveDecode(1 + i % 8, 100 * i, 0.01 + 0.002 * (i % 8));
  LatencyLearner second;
  second.RestorePrefill(first.LearnedPrefill());
  second.RestoreDecode(first.LearnedDecode());
  ExpectLike(second.model().prefill, first.model().prefill, 0.02);
  EXPECT_EQ(second.model().prefill_samples, first.model().prefill_samples);
  EXPECT_EQ(second.model().saturation_tokens, first.model().saturation_tokens);
  for (const uint32_t n : {1u, 4u, 8u}) {
    const double before_s = first.model().decode.StepSeconds(n, 500);
    EXPECT_NEAR(second.model().decode.StepSeconds(n, 500), before_s, 0.05 * before_s) << n;
  }
  // A machine that has become half as fast shows sooner than if nothing had been forgotten.
  const PrefillCost slow = {.base_s = 0.008, .per_token_s = 4e-4, .per_position_s = 6e-8};
  Prefill(second, slow, 250, 0, 4);
  ExpectLike(second.model().prefill, slow, 0.2);
}

}  // namespace
}  // namespace tandem::scheduler
