#include "scheduler/core/prefill_policy.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace tandem::scheduler {
namespace {

using Pieces = std::vector<std::pair<uint32_t, uint32_t>>;

Pieces Plan(std::vector<PromptProgress>& prompts, uint32_t step, uint64_t overtake) {
  std::vector<PromptProgress*> pointers;
  for (PromptProgress& prompt : prompts) pointers.push_back(&prompt);
  Pieces pieces;
  for (const PrefillPiece& piece : PlanPrefillStep(pointers, step, overtake)) {
    pieces.emplace_back(piece.prompt, piece.n_tokens);
  }
  return pieces;
}

PromptProgress Prompt(uint32_t total, uint32_t computed = 0) {
  return {.total_tokens = total, .computed_tokens = computed, .may_compute_tokens = total};
}

TEST(PrefillPolicyTest, StrictOrderWithoutOvertaking) {
  std::vector<PromptProgress> prompts = {Prompt(1000, 700), Prompt(100), Prompt(300)};
  EXPECT_EQ(Plan(prompts, 512, 0), (Pieces{{0, 300}, {1, 100}, {2, 112}}));
  EXPECT_EQ(prompts[0].overtaken_tokens, 0u);
}

TEST(PrefillPolicyTest, LongPromptsGoInPieces) {
  std::vector<PromptProgress> prompts = {Prompt(2000), Prompt(100)};
  EXPECT_EQ(Plan(prompts, 512, 0), (Pieces{{0, 512}}));
}

TEST(PrefillPolicyTest, AShortPromptPassesALongOne) {
  std::vector<PromptProgress> prompts = {Prompt(2000), Prompt(100)};
  EXPECT_EQ(Plan(prompts, 512, 1000), (Pieces{{1, 100}, {0, 412}}));
  EXPECT_EQ(prompts[0].overtaken_tokens, 100u);
}

TEST(PrefillPolicyTest, AShortPromptOfAnotherTenantWaits) {
  std::vector<PromptProgress> prompts = {Prompt(2000), Prompt(100), Prompt(50)};
  prompts[1].tenant = "other";
  EXPECT_EQ(Plan(prompts, 512, 1000), (Pieces{{0, 512}}));
  EXPECT_EQ(prompts[0].overtaken_tokens, 0u);
}

TEST(PrefillPolicyTest, NobodyIsPassedByMoreThanTheAllowance) {
  std::vector<PromptProgress> prompts = {Prompt(2000)};
  prompts[0].overtaken_tokens = 950;
  prompts.push_back(Prompt(100));
  prompts.push_back(Prompt(50));
  EXPECT_EQ(Plan(prompts, 512, 1000), (Pieces{{2, 50}, {0, 462}}));
  EXPECT_EQ(prompts[0].overtaken_tokens, 1000u);
  EXPECT_EQ(prompts[1].overtaken_tokens, 50u);
}

TEST(PrefillPolicyTest, EqualsKeepTheirOrder) {
  std::vector<PromptProgress> prompts = {Prompt(100), Prompt(100), Prompt(100)};
  EXPECT_EQ(Plan(prompts, 150, 1000), (Pieces{{0, 100}, {1, 50}}));
}

TEST(PrefillPolicyTest, WhoWaitsForChunksHoldsNobodyUp) {
  std::vector<PromptProgress> prompts = {Prompt(1000, 256), Prompt(600)};
  prompts[0].may_compute_tokens = 256;
  EXPECT_EQ(Plan(prompts, 512, 0), (Pieces{{1, 512}}));
  prompts[0].may_compute_tokens = 300;
  EXPECT_EQ(Plan(prompts, 512, 0), (Pieces{{0, 44}, {1, 468}}));
  prompts[0].may_compute_tokens = prompts[1].may_compute_tokens = 0;
  EXPECT_EQ(Plan(prompts, 512, 0), Pieces());
}

TEST(PrefillPolicyTest, RandomPromptsAllEndAndTheBoundHolds) {
  for (uint64_t seed = 0; seed < 50; ++seed) {
    std::mt19937_64 random(seed);
    const uint64_t overtake = random() % 3 == 0 ? 0 : random() % 2000;
    std::vector<PromptProgress> prompts;
    uint64_t total = 0, steps = 0;
    while (prompts.size() < 40 || !prompts.empty()) {
      if (steps < 40) {
        prompts.push_back(Prompt(1 + random() % (random() % 4 == 0 ? 3000 : 200)));
        total += prompts.back().total_tokens;
      }
      const Pieces pieces = Plan(prompts, 256, overtake);
      ASSERT_FALSE(pieces.empty());
      uint32_t in_step = 0;
      for (const auto& [at, n] : pieces) {
        in_step += n;
        prompts[at].computed_tokens += n;
        ASSERT_LE(prompts[at].computed_tokens, prompts[at].total_tokens);
        ASSERT_TRUE(overtake > 0 || at == 0 || prompts[at - 1].computed_tokens > 0);
      }
      ASSERT_LE(in_step, 256u);
      total -= in_step;
      for (const PromptProgress& prompt : prompts) ASSERT_LE(prompt.overtaken_tokens, overtake);
      std::erase_if(prompts,
                    [](const PromptProgress& p) { return p.computed_tokens == p.total_tokens; });
      if (++steps > 40 && prompts.empty()) break;
    }
    EXPECT_EQ(total, 0u);
  }
}

TEST(PrefillPolicyTest, PieceThatFitsABudget) {
  const PrefillCost cost = {.base_s = 0.002, .per_token_s = 1e-4, .per_position_s = 1e-8};
  for (const uint64_t first : {0, 500, 1500}) {
    const uint32_t n = PieceTokens(cost, first, 0.03, 16, 2048);
    EXPECT_LE(cost.Seconds(n, first), 0.03);
    EXPECT_GT(cost.Seconds(n + 1, first), 0.03);
  }
  EXPECT_EQ(PieceTokens(cost, 0, 0.001, 16, 2048), 16u);  // always some progress
  EXPECT_EQ(PieceTokens(cost, 0, 0.001, 16, 8), 8u);
  EXPECT_EQ(PieceTokens(cost, 0, 1e9, 16, 2048), 2048u);
  EXPECT_EQ(PieceTokens(cost, 0, HUGE_VAL, 16, 2048), 2048u);
  EXPECT_EQ(PieceTokens({0, 0, 0}, 0, 1, 16, 2048), 2048u);
}

}  // namespace
}  // namespace tandem::scheduler
