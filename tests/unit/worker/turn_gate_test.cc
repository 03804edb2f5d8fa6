#include "workers/turn_gate.h"

#include <gtest/gtest.h>

#include <chrono>
#include <thread>

namespace tandem::workers {
namespace {

constexpr std::chrono::milliseconds kAtOnce{0};

TurnGate::Time Now() { return std::chrono::steady_clock::now(); }
TurnGate::Time Far() { return Now() + std::chrono::hours(1); }

/// True, and the turn taken and ended, when a prefill step of so many seconds may begin.
bool Prefill(TurnGate& gate, double step_s, TurnGate::Time begin_by) {
  if (!gate.AwaitPrefill(step_s, begin_by, kAtOnce)) return false;
  const TurnGate::Turn turn(&gate, TurnGate::Side::kPrefill);
  return true;
}

TEST(TurnGateTest, PromptsAreComputedFreelyWhileNothingIsDecoded) {
  TurnGate gate(absl::Milliseconds(100));
  EXPECT_TRUE(Prefill(gate, 10, Far()));
  EXPECT_TRUE(Prefill(gate, 10, Far()));
  EXPECT_GT(gate.PrefillSeconds(), 1e9);
}

TEST(TurnGateTest, AStepIsLetInOnceItsTimeIsSaved) {
  TurnGate gate(absl::Milliseconds(100));
  gate.SetDecoding(2, 0.01);
  { const TurnGate::Turn turn = gate.EnterDecode(); }
  EXPECT_FALSE(Prefill(gate, 0.05, Far()));
  gate.SetDecoding(2, 0.06);
  EXPECT_DOUBLE_EQ(gate.PrefillSeconds(), 0.06);
  EXPECT_TRUE(Prefill(gate, 0.05, Far()));
  EXPECT_FALSE(Prefill(gate, 0.05, Far())) << "not twice without a token between";
  { const TurnGate::Turn turn = gate.EnterDecode(); }
  EXPECT_TRUE(Prefill(gate, 0.05, Far()));
}

TEST(TurnGateTest, ALatePromptIsLetInEverySecondTurn) {
  TurnGate gate(absl::Milliseconds(100));
  gate.SetDecoding(2, -1);
  { const TurnGate::Turn turn = gate.EnterDecode(); }
  EXPECT_TRUE(Prefill(gate, 0.05, Now()));
  { const TurnGate::Turn turn = gate.EnterDecode(); }
  EXPECT_TRUE(Prefill(gate, 0.05, Now()));
}

TEST(TurnGateTest, WithoutAnObjectiveStepsAlternate) {
  TurnGate gate(absl::ZeroDuration());
  gate.SetDecoding(1, -1);
  { const TurnGate::Turn turn = gate.EnterDecode(); }
  EXPECT_TRUE(Prefill(gate, 0.05, Far()));
  EXPECT_FALSE(Prefill(gate, 0.05, Far()));
}

TEST(TurnGateTest, APromptWaitsForTheSequenceThatIsAboutToJoin) {
  TurnGate gate(absl::Milliseconds(100), std::chrono::hours(1));
  gate.Pulls("a");
  gate.Completed("a");
  std::thread decode([&] {
    gate.SetDecoding(1, 0);
    { const TurnGate::Turn turn = gate.EnterDecode(); }
    gate.Joined("a");
  });
  EXPECT_FALSE(Prefill(gate, 10, Far())) << "nothing is saved yet";
  decode.join();
}

TEST(TurnGateTest, APromptDoesNotWaitForSequencesThatAreNotAboutToJoin) {
  TurnGate gate(absl::Milliseconds(100), std::chrono::milliseconds(1));
  gate.Pulls("from elsewhere");
  gate.Completed("for elsewhere");
  EXPECT_TRUE(Prefill(gate, 10, Far()));
  gate.Pulls("lost");
  gate.Completed("lost");
  EXPECT_TRUE(Prefill(gate, 10, Far())) << "for ever";
}

TEST(TurnGateTest, ASequenceSavesWhatItsObjectiveLeaves) {
  const TurnGate gate(absl::Milliseconds(100));
  EXPECT_EQ(gate.SavedSeconds(0, 0), 0);
  EXPECT_GT(gate.SavedSeconds(10, 0.2), 0.3);
  EXPECT_LT(gate.SavedSeconds(10, 0.2), 0.8) << "a part is kept back";
  EXPECT_LT(gate.SavedSeconds(10, 2), 0);
}

}  // namespace
}  // namespace tandem::workers
