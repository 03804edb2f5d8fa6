// Phases of a worker: one that does both, and one that changes while sequences run.
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "tests/integration/engine/engine_fixture.h"
#include "tests/integration/worker/worker_fixture.h"

namespace tandem::workers {
namespace {

std::vector<int32_t> TokensOf(const TestRequest& request) {
  static auto* const prefill = new TestWorker(v1::PHASE_PREFILL);
  static auto* const decode = new TestWorker(v1::PHASE_DECODE);
  const Outcome outcome = Serve(request, *prefill, *decode);
  EXPECT_TRUE(outcome.status.ok()) << outcome.status;
  EXPECT_EQ(outcome.tokens.size(), request.max_tokens);
  return outcome.tokens;
}

TEST(PhaseTest, AMixedWorkerServesAlone) {
  TestWorker mixed(v1::PHASE_MIXED, [](WorkerOptions& options) { options.prefill_sequences = 3; });
  std::vector<std::thread> clients;
  for (uint32_t i = 0; i < 3; ++i) {
    clients.emplace_back([&mixed, i] {
      const TestRequest request = {.prompt = Prompt(100 + 150 * i, i), .max_tokens = 24};
      const Outcome outcome = Serve(request, mixed, mixed);
      EXPECT_TRUE(outcome.status.ok()) << outcome.status;
      EXPECT_EQ(outcome.tokens.size(), 24u);
    });
  }
  for (std::thread& client : clients) client.join();
  // Alone its steps are those of two workers.
  const TestRequest request = {.prompt = Prompt(400, 9), .max_tokens = 16};
  const Outcome alone = Serve(request, mixed, mixed);
  EXPECT_TRUE(alone.status.ok()) << alone.status;
  EXPECT_EQ(alone.tokens, TokensOf(request));
  const v1::WorkerLoad load = mixed.load();
  EXPECT_EQ(load.phase(), v1::PHASE_MIXED);
  EXPECT_GT(load.steps(), 40u);
  EXPECT_GT(load.latency().decode_samples(), 0u);
  EXPECT_TRUE(Eventually([&] { return mixed.worker().unfinished() == 0; }));
  EXPECT_EQ(mixed.load().running() + mixed.load().waiting() + mixed.load().handoff_held_bytes(),
            0u);
  // It has pulled from itself.
  ASSERT_EQ(load.links_size(), 1);
  EXPECT_EQ(load.links(0).data_address(), mixed.worker().data_address());
}

TEST(PhaseTest, ADecodeWorkerPrefillsTooUnlessToldNotTo) {
  TestWorker decode(v1::PHASE_DECODE);
  const TestRequest request = {.prompt = Prompt(90), .max_tokens = 8};
  EXPECT_EQ(Serve(request, decode, decode).tokens, TokensOf(request));
  TestWorker strict(v1::PHASE_DECODE,
                    [](WorkerOptions& options) { options.prefill_on_decode = false; });
  const Outcome refused = Serve(request, strict, strict);
  EXPECT_EQ(refused.status.code(), absl::StatusCode::kUnavailable) << refused.status;
  EXPECT_NE(refused.status.message().find("does not prefill"), std::string::npos);
}

TEST(PhaseTest, SequencesMoveWhenTheWorkerTurnsToPrefill) {
  TestWorker prefill(v1::PHASE_PREFILL), leaves(v1::PHASE_DECODE), stays(v1::PHASE_DECODE);
  constexpr uint32_t kTokens = 150;
  std::atomic<int> begun = 0;
  std::vector<std::thread> clients;
  std::atomic<uint32_t> moves = 0;
  // Four run; two more wait for a place.
  for (uint32_t i = 0; i < 6; ++i) {
    clients.emplace_back([&, i] {
      const TestRequest request = {.prompt = Prompt(60 + 40 * i, i), .max_tokens = kTokens};
      const std::vector<int32_t> expected = TokensOf(request);
      const Outcome outcome = Serve(request, prefill, leaves, &stays, [&](size_t n) {
        if (n == 10) ++begun;
      });
      EXPECT_TRUE(outcome.status.ok()) << outcome.status;
      EXPECT_EQ(outcome.tokens, expected);
      EXPECT_EQ(outcome.finish, v1::FINISH_REASON_LENGTH);
      moves += outcome.moves;
    });
  }
  ASSERT_TRUE(Eventually([&] { return begun >= 2; }));
  ASSERT_TRUE(leaves.worker().AssignPhase(v1::PHASE_PREFILL).ok());
  for (std::thread& client : clients) client.join();
  EXPECT_GT(moves, 0u);
  EXPECT_TRUE(Eventually([&] { return leaves.load().phase() == v1::PHASE_PREFILL; }));
  EXPECT_EQ(leaves.load().changing_to(), v1::PHASE_UNSPECIFIED);
  EXPECT_EQ(leaves.load().handoff_held_bytes(), 0u);
  EXPECT_EQ(leaves.load().decode().kv_capacity_tokens(), 0u) << "its decode engine is gone";
  // It does now what it was told to, and can be told again.
  const TestRequest request = {.prompt = Prompt(70), .max_tokens = 8};
  EXPECT_EQ(Serve(request, leaves, stays).tokens, TokensOf(request));
  const Outcome sent_on = Serve(request, prefill, leaves, &stays);
  EXPECT_EQ(sent_on.tokens, TokensOf(request));
  EXPECT_EQ(sent_on.moves, 1u);
  const TestRequest old = {.prompt = Prompt(70), .max_tokens = 8, .can_move = false};
  EXPECT_EQ(Serve(old, prefill, leaves).status.code(), absl::StatusCode::kUnavailable);
  ASSERT_TRUE(leaves.worker().AssignPhase(v1::PHASE_MIXED).ok());
  EXPECT_TRUE(Eventually([&] { return leaves.load().phase() == v1::PHASE_MIXED; }));
  EXPECT_EQ(Serve(request, leaves, leaves).tokens, TokensOf(request));
}

TEST(PhaseTest, WhatComesBackStaysUntilItEnds) {
  TestWorker prefill(v1::PHASE_PREFILL), decode(v1::PHASE_DECODE);
  const TestRequest request = {.prompt = Prompt(120), .max_tokens = 120};
  const std::vector<int32_t> expected = TokensOf(request);
  std::atomic<bool> asked = false;
  const Outcome outcome = Serve(request, prefill, decode, nullptr, [&](size_t n) {
    if (n > 10 && !asked.exchange(true)) {
      EXPECT_TRUE(decode.worker().AssignPhase(v1::PHASE_PREFILL).ok());
    }
  });
  EXPECT_TRUE(outcome.status.ok()) << outcome.status;
  EXPECT_EQ(outcome.tokens, expected);
  EXPECT_EQ(outcome.moves, 1u);
  EXPECT_TRUE(Eventually([&] { return decode.load().phase() == v1::PHASE_PREFILL; }));
}

TEST(PhaseTest, WhoCannotGoElsewhereIsNotSentAway) {
  TestWorker prefill(v1::PHASE_PREFILL), decode(v1::PHASE_DECODE);
  const TestRequest request = {.prompt = Prompt(50), .max_tokens = 80, .can_move = false};
  bool drained = false;
  const Outcome outcome = Serve(request, prefill, decode, nullptr, [&](size_t) {
    if (!std::exchange(drained, true)) decode.worker().Drain();
  });
  EXPECT_TRUE(outcome.status.ok()) << outcome.status;
  EXPECT_EQ(outcome.moves, 0u);
  EXPECT_EQ(outcome.tokens.size(), 80u);
}

TEST(PhaseTest, AWorkerThatIsShutDownSendsItsSequencesAway) {
  TestWorker prefill(v1::PHASE_PREFILL), drains(v1::PHASE_DECODE), stays(v1::PHASE_DECODE);
  const TestRequest request = {.prompt = Prompt(300), .max_tokens = 100};
  const std::vector<int32_t> expected = TokensOf(request);
  bool drained = false;
  const Outcome outcome = Serve(request, prefill, drains, &stays, [&](size_t n) {
    if (n > 5 && !std::exchange(drained, true)) drains.worker().Drain();
  });
  EXPECT_TRUE(outcome.status.ok()) << outcome.status;
  EXPECT_EQ(outcome.tokens, expected);
  EXPECT_EQ(outcome.moves, 1u);
  EXPECT_EQ(drains.Metric("tandem_worker_moved_total"), 1);
  EXPECT_TRUE(Eventually([&] { return drains.worker().unfinished() == 0; }));
}

TEST(PhaseTest, PromptsThatWaitAreGivenBackAndThoseBegunEnd) {
  TestWorker decode(v1::PHASE_DECODE);
  TestWorker turns(v1::PHASE_PREFILL, [](WorkerOptions& options) {
    options.prefill_engine.step_tokens = 16;  // many steps: the others wait
  });
  std::atomic<int> done = 0, given_back = 0;
  std::vector<std::thread> clients;
  for (uint32_t i = 0; i < 6; ++i) {
    clients.emplace_back([&, i] {
      const Outcome outcome = Serve({.prompt = Prompt(900, i), .max_tokens = 4}, turns, decode);
      if (outcome.status.ok()) {
        EXPECT_EQ(outcome.tokens.size(), 4u);
        ++done;
      } else {
        EXPECT_EQ(outcome.status.code(), absl::StatusCode::kUnavailable) << outcome.status;
        EXPECT_NE(outcome.status.message().find("moved"), std::string::npos) << outcome.status;
        ++given_back;
      }
    });
  }
  ASSERT_TRUE(Eventually([&] {
    return turns.load().prefill().running() == 1 && turns.load().prefill().waiting() >= 3;
  }));
  ASSERT_TRUE(turns.worker().AssignPhase(v1::PHASE_DECODE).ok());
  for (std::thread& client : clients) client.join();
  EXPECT_GE(done, 1);
  EXPECT_GE(given_back, 1);
  EXPECT_TRUE(Eventually([&] { return turns.load().phase() == v1::PHASE_DECODE; }));
}

TEST(PhaseTest, APinnedPhaseStays) {
  TestWorker pinned(v1::PHASE_DECODE, [](WorkerOptions& options) { options.phase_pinned = true; });
  EXPECT_EQ(pinned.worker().AssignPhase(v1::PHASE_MIXED).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(pinned.worker().AssignPhase(v1::PHASE_STORE).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(pinned.worker().AssignPhase(v1::PHASE_DECODE).ok());
}

}  // namespace
}  // namespace tandem::workers
