#include "workers/turn_gate.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <string>
#include <thread>

namespace tandem::workers {
namespace {

using Side = TurnGate::Side;

TEST(TurnGateTest, TurnsAlternateWhileBothHaveWork) {
  TurnGate gate(absl::Milliseconds(100));
  constexpr size_t kTurns = 2000;
  std::string order;  // guarded by the gate itself: that is what is tested
  std::atomic<int> inside = 0;
  gate.SetDecoding(1, 0.01);
  std::thread prefill([&] {
    for (size_t i = 0; i < kTurns; ++i) {
      const TurnGate::Turn turn = gate.Enter(Side::kPrefill);
      EXPECT_EQ(++inside, 1);
      order += 'p';
      --inside;
    }
  });
  for (size_t i = 0; i < kTurns; ++i) {
    const TurnGate::Turn turn = gate.Enter(Side::kDecode);
    EXPECT_EQ(++inside, 1);
    order += 'd';
    --inside;
  }
  gate.SetDecoding(0, 0);
  prefill.join();
  // Prefill never goes twice while sequences wait for their tokens.
  const size_t last_decode = order.rfind('d');
  EXPECT_EQ(order.substr(0, last_decode).find("pp"), std::string::npos);
  EXPECT_EQ(order.size(), 2 * kTurns);
}

TEST(TurnGateTest, ASideAloneNeedNotWait) {
  TurnGate gate(absl::Milliseconds(100));
  for (const Side side : {Side::kPrefill, Side::kPrefill, Side::kDecode, Side::kDecode}) {
    const TurnGate::Turn turn = gate.Enter(side);
  }
}

TEST(TurnGateTest, PrefillHasWhatTheDecodeStepLeavesOfTheObjective) {
  TurnGate gate(absl::Milliseconds(100));
  EXPECT_TRUE(std::isinf(gate.PrefillSeconds()));
  gate.SetDecoding(3, 0.03);
  EXPECT_NEAR(gate.PrefillSeconds(), 0.07, 1e-9);
  gate.SetDecoding(9, 0.3);
  EXPECT_EQ(gate.PrefillSeconds(), 0);
  gate.SetDecoding(0, 0);
  EXPECT_TRUE(std::isinf(gate.PrefillSeconds()));
}

}  // namespace
}  // namespace tandem::workers
