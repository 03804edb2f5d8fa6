// Whose turn it is on a worker that does both.
#include "scheduler/core/turn_policy.h"

#include <gtest/gtest.h>

#include <cmath>

namespace tandem::scheduler {
namespace {

TEST(TurnPolicyTest, ASequenceSavesAPartOfWhatItsObjectiveLeaves) {
  EXPECT_DOUBLE_EQ(SavedSeconds(0, 0, 0.1), 0);
  EXPECT_GT(SavedSeconds(10, 0.2, 0.1), 0.3);
  EXPECT_LT(SavedSeconds(10, 0.2, 0.1), 0.8);
  EXPECT_LT(SavedSeconds(10, 2, 0.1), 0);
}

TEST(TurnPolicyTest, PiecesAreWorthTheirSteps) {
  EXPECT_EQ(UsefulPieceTokens({.base_s = 1e-3, .per_token_s = 1e-3}), 128u);
  EXPECT_EQ(UsefulPieceTokens({.base_s = 20e-3, .per_token_s = 0.1e-3}), 1600u);
  // What has not been learned yet.
  EXPECT_EQ(UsefulPieceTokens({.base_s = 0, .per_token_s = 0}), 128u);
  EXPECT_EQ(UsefulPieceTokens({.base_s = 1, .per_token_s = 1e-12}), 8192u);
}

TEST(TurnPolicyTest, PrefillComesWhenItsTimeIsSavedOrWhenItIsLate) {
  const TurnState saved = {.decoding = 2, .saved_s = 0.06};
  EXPECT_TRUE(PrefillMayEnter(saved, 0.05, false, 0.1));
  EXPECT_FALSE(PrefillMayEnter(saved, 0.07, false, 0.1));
  EXPECT_TRUE(PrefillMayEnter(saved, 0.07, true, 0.1));
  EXPECT_TRUE(PrefillMayEnter(saved, 0.07, false, 0)) << "no objective: steps alternate";
  EXPECT_EQ(PrefillSeconds(saved), 0.06);
}

TEST(TurnPolicyTest, NeverTwiceWithoutATokenBetweenUnlessNobodyDecodes) {
  EXPECT_FALSE(PrefillMayEnter({.decoding = 1, .saved_s = 9, .prefilled_last = true}, 0, true, 0));
  EXPECT_TRUE(PrefillMayEnter({.prefilled_last = true}, 9, false, 0.1));
  EXPECT_TRUE(std::isinf(PrefillSeconds({})));
}

TEST(TurnPolicyTest, EveryPromptAheadMakesItMoreUrgent) {
  const PrefillCost cost = {.base_s = 0.01, .per_token_s = 1e-3, .per_position_s = 0};
  LatestBegin latest;
  EXPECT_TRUE(std::isinf(latest.seconds()));
  latest.Add(cost, 90, 0, 1.0);  // 0.1 s of work
  EXPECT_DOUBLE_EQ(latest.seconds(), 0.8);
  latest.Add(cost, 190, 10, 2.0);  // 0.2 s more
  EXPECT_DOUBLE_EQ(latest.seconds(), 0.8) << "the second is not due yet";
  latest.Add(cost, 190, 0, 1.1);
  EXPECT_NEAR(latest.seconds(), 0.1, 1e-12);
}

}  // namespace
}  // namespace tandem::scheduler
