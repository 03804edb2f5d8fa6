#include "scheduler/core/decode_policy.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace tandem::scheduler {
namespace {

TEST(OutputLengthEstimateTest, LearnsTheMeanAndForgets) {
  OutputLengthEstimate lengths;
  for (int i = 0; i < 3000; ++i) lengths.Observe(i % 2 == 0 ? 50 : 150);
  EXPECT_NEAR(lengths.Expected(0, 2000), 100, 10);
  EXPECT_NEAR(lengths.Expected(100, 2000), 150, 5);  // the short ones are out of it
  EXPECT_EQ(lengths.Expected(0, 30), 30u);
  EXPECT_EQ(lengths.Expected(30, 30), 30u);
  EXPECT_GT(lengths.Expected(700, 2000), 700u);  // longer than anything that was seen
  for (int i = 0; i < 3000; ++i) lengths.Observe(400);
  EXPECT_NEAR(lengths.Expected(0, 2000), 400, 20);
}

TEST(OutputLengthEstimateTest, HasAnOpinionBeforeItHasSeenAny) {
  const OutputLengthEstimate lengths;
  EXPECT_GT(lengths.Expected(0, 2000), 64u);
  EXPECT_LT(lengths.Expected(0, 2000), 512u);
}

class DecodePolicyTest : public testing::Test {
 protected:
  static DecodeSequence Sequence(double arrival_s, uint32_t context = 100) {
    return {.arrival_s = arrival_s, .context_tokens = context, .max_tokens = 50};
  }
  DecodeBatch Batch(uint32_t n) const {
    DecodeBatch batch;
    for (uint32_t i = 0; i < n; ++i) batch.Add(Sequence(i), lengths_);
    return batch;
  }
  OutputLengthEstimate lengths_;
  DecodeCost cost_{.base_s = 0.01, .per_sequence_s = 0.01, .per_context_token_s = 0};
};

TEST_F(DecodePolicyTest, AdmitsByPlaceByLifeAndByObjective) {
  const DecodeRoom by_place = {.kv_capacity_tokens = 10000, .max_sequences = 3};
  EXPECT_TRUE(CanAdmit(by_place, Batch(2), Sequence(9), lengths_, cost_));
  EXPECT_FALSE(CanAdmit(by_place, Batch(3), Sequence(9), lengths_, cost_));
  // A life is 100 tokens of context and at most 50 more.
  const uint64_t life = LifeTokens(Sequence(0), lengths_);
  const DecodeRoom by_life = {.kv_capacity_tokens = 3 * life, .max_sequences = 9};
  EXPECT_TRUE(CanAdmit(by_life, Batch(2), Sequence(9), lengths_, cost_));
  EXPECT_FALSE(CanAdmit(by_life, Batch(3), Sequence(9), lengths_, cost_));
  const DecodeRoom by_objective = {
      .kv_capacity_tokens = 10000, .max_sequences = 9, .tpot_objective_s = 0.045};
  EXPECT_TRUE(CanAdmit(by_objective, Batch(2), Sequence(9), lengths_, cost_));
  EXPECT_FALSE(CanAdmit(by_objective, Batch(3), Sequence(9), lengths_, cost_));
}

TEST_F(DecodePolicyTest, AnEmptyBatchTakesAnything) {
  const DecodeRoom room = {.kv_capacity_tokens = 10, .max_sequences = 1, .tpot_objective_s = 1e-9};
  EXPECT_TRUE(CanAdmit(room, {}, Sequence(0), lengths_, cost_));
}

TEST_F(DecodePolicyTest, AnObjectiveThatNothingMeetsLimitsNothing) {
  const DecodeRoom room = {
      .kv_capacity_tokens = 10000, .max_sequences = 9, .tpot_objective_s = 0.001};
  EXPECT_TRUE(CanAdmit(room, Batch(4), Sequence(0), lengths_, cost_));
  EXPECT_EQ(StepLimit(room, cost_, 100), 9u);
}

TEST_F(DecodePolicyTest, StepLimitSeesThatTwoMayBeSlowerThanThree) {
  cost_.factor[2] = 3;
  const DecodeRoom room = {.max_sequences = 9, .tpot_objective_s = 0.045};
  EXPECT_EQ(StepLimit(room, cost_, 100), 3u);
}

TEST_F(DecodePolicyTest, ParksTheYoungestAndBringsBackTheOldest) {
  const std::vector<DecodeSequence> sequences = {Sequence(2), Sequence(5, 200), Sequence(5, 100),
                                                 Sequence(1)};
  EXPECT_EQ(ChooseToPark(sequences), 2u);
  EXPECT_EQ(ChooseToReturn(sequences), 3u);
  EXPECT_EQ(ChooseToPark({sequences.data(), 1}), std::nullopt);
  EXPECT_EQ(ChooseToReturn({}), std::nullopt);
  EXPECT_TRUE(Overflows({.kv_capacity_tokens = 100}, 98, 3));
  EXPECT_FALSE(Overflows({.kv_capacity_tokens = 100}, 97, 3));
}

/// A worker with three times more sequences than fit: all end, and none starves.
TEST_F(DecodePolicyTest, ThreeTimesMoreThanFitsAllFinish) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    std::mt19937_64 random(seed);
    const DecodeRoom room = {.kv_capacity_tokens = 1000, .max_sequences = 8};
    struct Life {
      DecodeSequence sequence;
      uint32_t length;
    };
    std::vector<Life> waiting, running, parked;
    for (int i = 0; i < 24; ++i) {
      // All believe that outputs are short; they are not.
      waiting.push_back({Sequence(i, 60), static_cast<uint32_t>(100 + random() % 100)});
      waiting.back().sequence.max_tokens = 400;
    }
    OutputLengthEstimate lengths;
    for (int i = 0; i < 2000; ++i) lengths.Observe(20);
    size_t finished = 0;
    auto used = [&] {
      uint64_t n = 0;
      for (const Life& life : running) n += life.sequence.context_tokens;
      return n;
    };
    auto batch = [&] {
      DecodeBatch b;
      for (const Life& life : running) b.Add(life.sequence, lengths);
      return b;
    };
    auto sequences = [](const std::vector<Life>& of) {
      std::vector<DecodeSequence> all;
      for (const Life& life : of) all.push_back(life.sequence);
      return all;
    };
    for (int step = 0; step < 20000 && finished < 24; ++step) {
      while (Overflows(room, used(), static_cast<uint32_t>(running.size()))) {
        const auto victim = ChooseToPark(sequences(running));
        ASSERT_TRUE(victim.has_value());
        parked.push_back(running[*victim]);
        running.erase(running.begin() + static_cast<std::ptrdiff_t>(*victim));
      }
      while (true) {
        auto& from = parked.empty() ? waiting : parked;
        const auto next = ChooseToReturn(sequences(from));
        if (!next || !CanAdmit(room, batch(), from[*next].sequence, lengths, cost_)) break;
        if (Overflows(room, used() + from[*next].sequence.context_tokens,
                      static_cast<uint32_t>(running.size() + 1))) {
          break;
        }
        running.push_back(from[*next]);
        from.erase(from.begin() + static_cast<std::ptrdiff_t>(*next));
      }
      ASSERT_FALSE(running.empty());
      for (Life& life : running) {
        ++life.sequence.generated;
        ++life.sequence.context_tokens;
      }
      ASSERT_LE(used(), room.kv_capacity_tokens);
      finished += std::erase_if(
          running, [](const Life& life) { return life.sequence.generated == life.length; });
    }
    EXPECT_EQ(finished, 24u) << "seed " << seed;
  }
}

}  // namespace
}  // namespace tandem::scheduler
