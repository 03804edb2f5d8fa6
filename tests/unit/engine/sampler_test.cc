// The sampler: pure in (seed, position), filters as documented, greedy ties, stops.
#include "workers/engine/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <set>

namespace tandem::workers {
namespace {

std::shared_ptr<const Model> Vocabulary() {
  static const std::shared_ptr<const Model> model =
      *Model::Load({.path = TANDEM_DEMO_MODEL, .vocabulary_only = true});
  return model;
}

constexpr size_t kVocabulary = 4096;

/// Logits in which the first of `top` is the likeliest and so on, all others far below.
std::vector<float> Logits(const std::vector<std::pair<int32_t, float>>& top) {
  std::vector<float> logits(kVocabulary, -50);
  for (const auto& [token, logit] : top) logits[token] = logit;
  return logits;
}

std::vector<float> RandomLogits(uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 3);
  std::vector<float> logits(kVocabulary);
  for (float& logit : logits) logit = normal(random);
  return logits;
}

int32_t SampleOnce(const SamplingOptions& options, std::span<const float> logits, uint32_t position,
                   std::span<const int32_t> history = {}) {
  return Sampler(Vocabulary(), options, history).Sample(logits, position);
}

/// How often each token is drawn at positions 0 … n-1.
std::map<int32_t, int> Draw(const SamplingOptions& options, std::span<const float> logits, int n,
                            std::span<const int32_t> history = {}) {
  std::map<int32_t, int> counts;
  for (int i = 0; i < n; ++i) {
    ++counts[SampleOnce(options, logits, static_cast<uint32_t>(i), history)];
  }
  return counts;
}

TEST(UniformAtTest, IsAPureFunctionWithKnownValues) {
  EXPECT_EQ(UniformAt(1, 2), UniformAt(1, 2));
  std::set<double> values;
  double sum = 0;
  std::vector<int> buckets(16);
  for (uint64_t seed : {uint64_t{0}, uint64_t{1}, uint64_t{2}, UINT64_MAX}) {
    for (uint32_t position = 0; position < 4096; ++position) {
      const double value = UniformAt(seed, position);
      ASSERT_GE(value, 0);
      ASSERT_LT(value, 1);
      values.insert(value);
      sum += value;
      ++buckets[static_cast<size_t>(value * 16)];
    }
  }
  EXPECT_EQ(values.size(), 4u * 4096);
  EXPECT_NEAR(sum / (4 * 4096), 0.5, 0.01);
  for (int count : buckets) EXPECT_NEAR(count, 1024, 160);  // five standard deviations
  // These must never change: a stream that resumes under a newer version must draw the same.
  EXPECT_DOUBLE_EQ(UniformAt(0, 0), 0.6524484863740322);
  EXPECT_DOUBLE_EQ(UniformAt(42, 1000), 0.6952598398323256);
  EXPECT_DOUBLE_EQ(UniformAt(UINT64_MAX, UINT32_MAX), 0.774697827217258);
}

TEST(SamplerTest, DrawsDependOnSeedAndPositionAlone) {
  SamplingOptions options{.temperature = 0.9, .top_k = 50, .top_p = 0.95, .min_p = 0.01, .seed = 7};
  const auto logits = RandomLogits(1);
  Sampler running(Vocabulary(), options, {});
  std::set<int32_t> seen;
  for (uint32_t position = 0; position < 50; ++position) {
    const int32_t token = running.Sample(logits, position);
    EXPECT_EQ(token, SampleOnce(options, logits, position)) << "as one that resumes here";
    seen.insert(token);
  }
  EXPECT_GT(seen.size(), 5u);
  int different = 0;
  SamplingOptions other = options;
  other.seed = 8;
  for (uint32_t position = 0; position < 50; ++position) {
    different += SampleOnce(options, logits, position) != SampleOnce(other, logits, position);
  }
  EXPECT_GT(different, 25);
}

TEST(SamplerTest, GreedyTakesTheLowestOfTheLikeliest) {
  const SamplingOptions greedy{.temperature = 0};
  EXPECT_EQ(SampleOnce(greedy, Logits({{900, 3}, {17, 3}, {40, 2}}), 5), 17);
  const auto random = RandomLogits(2);
  EXPECT_EQ(SampleOnce(greedy, random, 0),
            std::max_element(random.begin(), random.end()) - random.begin());
  // With penalties that change nothing for the best, and with every filter.
  const std::vector<int32_t> history = {40};
  EXPECT_EQ(
      SampleOnce(
          {.temperature = 0, .top_k = 1, .top_p = 0.1, .min_p = 0.9, .repetition_penalty = 1.5},
          Logits({{900, 3}, {17, 3}, {40, 2}}), 5, history),
      17);
}

TEST(SamplerTest, SmallTemperaturesAreGreedyAndLargeOnesUniform) {
  const auto logits = Logits({{17, 3}, {40, 2.9f}});
  for (double temperature : {1e-300, 1e-30, 1e-6}) {
    EXPECT_EQ(Draw({.temperature = temperature}, logits, 20).size(), 1u) << temperature;
  }
  EXPECT_GT(Draw({.temperature = 100}, logits, 200).size(), 150u);
}

TEST(SamplerTest, FollowsTheDistribution) {
  const auto logits = Logits(
      {{10, std::log(0.5f)}, {20, std::log(0.3f)}, {30, std::log(0.15f)}, {40, std::log(0.05f)}});
  const int n = 20000;
  for (int32_t top_k : {0, 4}) {
    const auto counts = Draw({.temperature = 1, .top_k = top_k, .seed = 3}, logits, n);
    EXPECT_NEAR(counts.at(10), 0.5 * n, 0.02 * n);
    EXPECT_NEAR(counts.at(20), 0.3 * n, 0.02 * n);
    EXPECT_NEAR(counts.at(30), 0.15 * n, 0.02 * n);
    EXPECT_NEAR(counts.at(40), 0.05 * n, 0.02 * n);
  }
  const auto sharper = Draw({.temperature = 0.5, .seed = 3}, logits, n);
  EXPECT_NEAR(sharper.at(10), 0.25 / 0.365 * n, 0.02 * n);  // squares: .25 .09 .0225 .0025
}

TEST(SamplerTest, TopKKeepsTheKLikeliestAndOfEqualsTheLowest) {
  const auto logits = Logits({{10, 1}, {20, 1}, {30, 1}, {40, 1}, {50, 2}});
  const auto counts = Draw({.top_k = 3}, logits, 300);
  EXPECT_EQ(counts.size(), 3u);
  EXPECT_TRUE(counts.contains(50) && counts.contains(10) && counts.contains(20));
  // Selected directly, through libllama, or with a k beyond the vocabulary: the same draws.
  const auto random = RandomLogits(3);
  const std::vector<int32_t> unseen = {4000};
  auto penalised = random;
  penalised[4000] = -100;
  for (uint32_t position = 0; position < 50; ++position) {
    EXPECT_EQ(
        SampleOnce({.top_k = 40, .seed = 9}, penalised, position),
        SampleOnce({.top_k = 40, .frequency_penalty = 1, .seed = 9}, penalised, position, unseen));
  }
  EXPECT_EQ(Draw({.top_k = 100000}, logits, 100).size(), 5u);
  EXPECT_EQ(Draw({.top_k = 300}, logits, 100).size(), 5u);
  EXPECT_EQ(Draw({.top_k = 1}, logits, 50).size(), 1u);
}

TEST(SamplerTest, TopPKeepsTheSmallestSetOfThatMass) {
  const auto logits = Logits(
      {{10, std::log(0.5f)}, {20, std::log(0.3f)}, {30, std::log(0.15f)}, {40, std::log(0.05f)}});
  EXPECT_EQ(Draw({.top_p = 0.4}, logits, 200).size(), 1u);
  EXPECT_EQ(Draw({.top_p = 0.6}, logits, 200).size(), 2u);
  EXPECT_EQ(Draw({.top_p = 0.9}, logits, 400).size(), 3u);
  EXPECT_EQ(Draw({.top_k = 3, .top_p = 0.84}, logits, 200).size(), 2u)
      << "0.8 of 0.95 is more than 0.84 after top-k";
}

TEST(SamplerTest, MinPDropsTheUnlikely) {
  const auto logits = Logits(
      {{10, std::log(0.5f)}, {20, std::log(0.3f)}, {30, std::log(0.15f)}, {40, std::log(0.05f)}});
  EXPECT_EQ(Draw({.min_p = 0.5}, logits, 200).size(), 2u);
  EXPECT_EQ(Draw({.min_p = 0.2}, logits, 400).size(), 3u);
  EXPECT_EQ(Draw({.top_k = 4, .min_p = 1}, logits, 100).size(), 1u);
}

TEST(SamplerTest, PenaltiesCountWhatWasSeen) {
  const auto logits = Logits({{10, 4}, {20, 3.5f}, {30, 3}});
  const std::vector<int32_t> once = {10}, twice = {10, 10};
  const auto greedy = [&](SamplingOptions options, std::span<const int32_t> history) {
    options.temperature = 0;
    return SampleOnce(options, logits, 0, history);
  };
  EXPECT_EQ(greedy({}, once), 10);
  EXPECT_EQ(greedy({.repetition_penalty = 1.2}, once), 20);  // 4 / 1.2 = 3.33
  EXPECT_EQ(greedy({.presence_penalty = 0.4}, twice), 10);
  EXPECT_EQ(greedy({.presence_penalty = 0.6}, once), 20);
  EXPECT_EQ(greedy({.frequency_penalty = 0.4}, once), 10);
  EXPECT_EQ(greedy({.frequency_penalty = 0.4}, twice), 20);
  EXPECT_EQ(greedy({.frequency_penalty = -2}, std::vector<int32_t>{30}), 30);
  // Only the last n count; -1 is all.
  const std::vector<int32_t> long_ago = {10, 1, 2, 3, 4};
  EXPECT_EQ(greedy({.presence_penalty = 2, .penalty_last_n = 4}, long_ago), 10);
  EXPECT_EQ(greedy({.presence_penalty = 2, .penalty_last_n = 5}, long_ago), 20);
  EXPECT_EQ(greedy({.presence_penalty = 2, .penalty_last_n = -1}, long_ago), 20);
  EXPECT_EQ(greedy({.presence_penalty = 2, .penalty_last_n = 0}, long_ago), 10);
}

TEST(SamplerTest, WhatIsSampledOrAcceptedJoinsTheHistory) {
  const auto logits = Logits({{10, 4}, {20, 3.5f}, {30, 3}});
  Sampler sampler(Vocabulary(), {.temperature = 0, .presence_penalty = 0.8}, {});
  EXPECT_EQ(sampler.Sample(logits, 0), 10);
  EXPECT_EQ(sampler.Sample(logits, 1), 20);
  sampler.Accept(30);
  EXPECT_EQ(sampler.Sample(logits, 2), 10);
}

TEST(SamplerTest, ImpossibleLogitsAreNeverDrawn) {
  std::vector<float> logits(kVocabulary, -std::numeric_limits<float>::infinity());
  logits[100] = logits[200] = 1;
  for (int32_t top_k : {0, 10, 1000}) {
    const auto counts = Draw({.temperature = 2, .top_k = top_k}, logits, 100);
    EXPECT_EQ(counts.size(), 2u) << top_k;
  }
}

TEST(SamplerTest, StopsAtTheEndOfGenerationAndAtStopTokens) {
  const Sampler plain(Vocabulary(), {.stop_token_ids = {77}}, {});
  EXPECT_TRUE(plain.IsStop(2));
  EXPECT_TRUE(plain.IsStop(77));
  EXPECT_FALSE(plain.IsStop(78));
  const Sampler endless(Vocabulary(), {.ignore_eos = true, .stop_token_ids = {77}}, {});
  EXPECT_FALSE(endless.IsStop(2));
  EXPECT_TRUE(endless.IsStop(77));
}

}  // namespace
}  // namespace tandem::workers
