// Tandem's simulator: times that can be followed by hand, and what must hold for any of them.
#include "scheduler/planner/simulator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

namespace tandem::planner {
namespace {

using testing::HasSubstr;

constexpr double kTolerance = 1e-9;

/// 1 ms and 0.1 ms a token; steps of 10 ms and 1 ms a sequence.
WorkerSpeed Speed() {
  WorkerSpeed speed;
  speed.latency.prefill = {.base_s = 1e-3, .per_token_s = 1e-4, .per_position_s = 0};
  speed.latency.decode.base_s = 10e-3;
  speed.latency.decode.per_sequence_s = 1e-3;
  speed.latency.decode.per_context_token_s = 0;
  speed.latency.saturation_tokens = 512;
  return speed;
}

std::vector<SimulatedWorker> Workers(const std::vector<Phase>& phases) {
  std::vector<SimulatedWorker> workers;
  for (const Phase phase : phases) {
    workers.push_back(
        {.node = static_cast<uint32_t>(workers.size()), .phase = phase, .speed = Speed()});
  }
  return workers;
}

const LinkTable kLinks(8, {.bytes_per_s = 1e8, .rtt_s = 1e-3});
/// A prompt is computed where one expects it.
const SimulatorOptions kOptions = {
    .kv_bytes_per_token = 1e4, .codec_bytes_per_s = 1e9, .prefill_on_decode = false};

SimulationResult Played(const std::vector<SimulatedWorker>& workers, const Workload& workload,
                        const SimulatorOptions& options = kOptions) {
  auto result = Simulate(workers, kLinks, workload, options);
  EXPECT_TRUE(result.ok()) << result.status();
  return *std::move(result);
}

TEST(PlannerSimulator, ARequestAloneOverTwoWorkers) {
  const auto result = Played(Workers({Phase::kPrefill, Phase::kDecode}),
                             {{.arrival_s = 5, .prompt_tokens = 1000, .output_tokens = 5}});
  // Steps of 512 and 488 tokens.
  EXPECT_NEAR(result.ttft_s[0], 2e-3 + 0.1, kTolerance);
  // All but the last chunk has come by then; it takes 25.6 ms, its decoding 2.56, the way back 1.
  const double handoff = 256 * 1e4 / 1e8 + 256 * 1e4 / 1e9 + 1e-3;
  EXPECT_NEAR(result.tpot_s[0], (handoff + 4 * 11e-3) / 4, kTolerance);
  EXPECT_NEAR(result.handoff_s, handoff, kTolerance);
  EXPECT_NEAR(result.workers[0].prefill_busy_s, 0.102, kTolerance);
  EXPECT_NEAR(result.workers[1].decode_busy_s, 0.044, kTolerance);
  EXPECT_EQ(result.pairs.at({0, 1}), 1u);
  EXPECT_EQ(result.attainment.both, 1);
}

TEST(PlannerSimulator, AMixedWorkerHandsNothingOver) {
  const auto result =
      Played(Workers({Phase::kMixed}), {{.prompt_tokens = 512, .output_tokens = 3}});
  EXPECT_NEAR(result.ttft_s[0], 1e-3 + 0.0512, kTolerance);
  EXPECT_NEAR(result.tpot_s[0], 11e-3, kTolerance);
  EXPECT_EQ(result.handoff_s, 0);
}

/// When the second of two prompts begins on a mixed worker, and how many tokens its first step has.
std::pair<double, uint32_t> SecondPrompt(double ttft_slo_s) {
  SimulatorOptions options = kOptions;
  options.ttft_slo_s = ttft_slo_s;
  options.tpot_slo_s = 0.02;
  options.keep_steps_until_s = 1;
  const auto result = Played(Workers({Phase::kMixed}),
                             {{.prompt_tokens = 100, .output_tokens = 40},
                              {.arrival_s = 0.012, .prompt_tokens = 512, .output_tokens = 2}},
                             options);
  for (const SimulatedStep& step : result.steps) {
    if (step.prefill && step.begin_s > 0) return {step.begin_s, step.size};
  }
  return {};
}

TEST(PlannerSimulator, AMixedWorkersPromptsWaitUntilTimeIsSaved) {
  // Of 20 ms a token 14 may be used; steps take 11: 3 ms are saved a step. A piece of 128 tokens
  // takes 13.8 ms, saved after five steps; 140 tokens take the 15 ms.
  const auto [begin_s, tokens] = SecondPrompt(10);
  EXPECT_NEAR(begin_s, 0.011 + 5 * 0.011, kTolerance);
  EXPECT_EQ(tokens, 140u);
  const auto [late_s, least] = SecondPrompt(0.05);
  EXPECT_NEAR(late_s, 0.011 + 0.011, kTolerance) << "its first token is late otherwise";
  EXPECT_EQ(least, 128u);
}

TEST(PlannerSimulator, AMixedWorkersPromptsDoNotWaitForAPlaceToDecode) {
  auto workers = Workers({Phase::kMixed});
  workers[0].speed.max_sequences = 1;
  SimulatorOptions options = kOptions;
  options.dispatch_ahead_steps = 100;
  Workload workload = {{.prompt_tokens = 2500, .output_tokens = 41},
                       {.prompt_tokens = 2500, .output_tokens = 11}};
  // Most are short, so that the router expects no long wait.
  for (int i = 0; i < 20; ++i) {
    workload.push_back({.arrival_s = 100.0 + i, .prompt_tokens = 10, .output_tokens = 1});
  }
  const auto result = Played(workers, workload, options);
  EXPECT_LT(result.ttft_s[1], 0.75);
  // The rest of the first one's forty steps.
  EXPECT_GT(result.tpot_s[1] * 10, 0.3);
  EXPECT_EQ(result.handoff_s, 0);
}

TEST(PlannerSimulator, ASingleTokenNeedsNoDecodeWorker) {
  const auto result = Played(Workers({Phase::kPrefill, Phase::kDecode}),
                             {{.prompt_tokens = 100, .output_tokens = 1, .cached_tokens = 60}});
  EXPECT_NEAR(result.ttft_s[0], 1e-3 + 40e-4, kTolerance) << "what is cached is not computed";
  EXPECT_EQ(result.tpot_s[0], 0);
  EXPECT_EQ(result.workers[1].decode_busy_s, 0);
}

TEST(PlannerSimulator, PromptsShareStepsAndSequencesToo) {
  const auto result = Played(
      Workers({Phase::kMixed}),
      {{.prompt_tokens = 100, .output_tokens = 3}, {.prompt_tokens = 100, .output_tokens = 3}});
  // The first begins at once; the second comes in the same instant, but after it.
  EXPECT_NEAR(result.ttft_s[0], 11e-3, kTolerance);
  EXPECT_GT(result.ttft_s[1], result.ttft_s[0]);
  EXPECT_LT(result.workers[0].decode_busy_s, 4 * 11e-3) << "a step of both costs 12 ms, not 22";
}

TEST(PlannerSimulator, PromptsWaitInTheRouterWhileTheirSequencesWouldWaitForAPlace) {
  auto workers = Workers({Phase::kPrefill, Phase::kDecode});
  workers[1].speed.max_sequences = 1;
  const auto result = Played(workers, Workload(2, {.prompt_tokens = 400, .output_tokens = 50}));
  EXPECT_LT(result.ttft_s[0], 0.1);
  // The first one's sequence takes half a second.
  EXPECT_GT(result.ttft_s[1], 0.5);
  EXPECT_THAT(result.tpot_s, testing::Each(testing::Lt(0.015)));
}

TEST(PlannerSimulator, PromptsWaitInTheRouterWhileMuchWorkIsAhead) {
  SimulatorOptions options = kOptions;
  const auto workers = Workers({Phase::kMixed, Phase::kMixed});
  const Workload workload(9, {.arrival_s = 0.001, .prompt_tokens = 512, .output_tokens = 1});
  // One of them comes back when all have arrived. What waits in the router is still to be had.
  options.failures = {{.worker = 1, .at_s = 0, .back_s = 0.04}};
  const auto result = Played(workers, workload, options);
  EXPECT_GE(result.workers[1].prompts, 3u);
  options.dispatch_ahead_steps = 100;
  const auto at_once = Played(workers, workload, options);
  EXPECT_EQ(at_once.workers[1].prompts, 0u);
}

TEST(PlannerSimulator, BurstsWaitInThePrefillWorkersMemory) {
  auto workers = Workers({Phase::kPrefill, Phase::kDecode});
  workers[1].speed.max_sequences = 1;
  workers[0].speed.kv_capacity_tokens = 1'000;
  SimulatorOptions options = kOptions;
  options.tpot_slo_s = 1;
  // Two prompts of 400 fill the prefill worker while the first one's KV is on its way.
  const auto result = Simulate(workers, LinkTable(2, {.bytes_per_s = 1e7}),
                               Workload(3, {.prompt_tokens = 400, .output_tokens = 5}), options);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_LT(result->ttft_s[1], 0.1);
  EXPECT_GT(result->ttft_s[2], 0.4) << "it began only when the first had been pulled";
  EXPECT_THAT(result->tpot_s, testing::Each(testing::Lt(1)));
}

TEST(PlannerSimulator, DecodeWorkersComputePromptsTooWhereThatIsBetter) {
  SimulatorOptions options = kOptions;
  options.prefill_on_decode = true;
  const auto workers = Workers({Phase::kPrefill, Phase::kDecode});
  const Workload burst(6, {.prompt_tokens = 1000, .output_tokens = 5});
  const auto result = Played(workers, burst, options);
  EXPECT_GT(result.workers[0].prompts, 0u);
  EXPECT_GT(result.workers[1].prompts, 0u);
  EXPECT_LT(result.ttft_s.back(), Played(workers, burst).ttft_s.back());
}

TEST(PlannerSimulator, SequencesAreParkedWhenMemoryRunsOutAndComeBack) {
  auto workers = Workers({Phase::kPrefill, Phase::kDecode});
  workers[1].speed.kv_capacity_tokens = 1'500;
  // Each needs 1,100 in the end, which the first estimate (outputs of 240) does not know.
  const auto result = Played(workers, Workload(2, {.prompt_tokens = 100, .output_tokens = 1'000}));
  EXPECT_GT(result.workers[1].parked, 0u);
  EXPECT_THAT(result.tpot_s, testing::Each(testing::Lt(100)));
}

TEST(PlannerSimulator, SlowLinksAreSeen) {
  const Workload workload(6, {.prompt_tokens = 1000, .output_tokens = 20});
  const auto workers = Workers({Phase::kPrefill, Phase::kDecode});
  const auto fast = Simulate(workers, LinkTable(2, {.bytes_per_s = 1e9}), workload, kOptions);
  const auto slow = Simulate(workers, LinkTable(2, {.bytes_per_s = 1e6}), workload, kOptions);
  ASSERT_TRUE(fast.ok() && slow.ok());
  EXPECT_THAT(fast->ttft_s, testing::Pointwise(testing::DoubleNear(0.01), slow->ttft_s));
  // 60 MB at 1 MB/s.
  EXPECT_GT(slow->end_s, 60);
  EXPECT_LT(fast->end_s, 2);
}

TEST(PlannerSimulator, WhatFitsNowhereGetsNothing) {
  auto workers = Workers({Phase::kPrefill, Phase::kDecode});
  workers[1].speed.kv_capacity_tokens = 500;
  const auto result = Played(workers, {{.prompt_tokens = 600, .output_tokens = 5},
                                       {.prompt_tokens = 60, .output_tokens = 5}});
  EXPECT_TRUE(std::isinf(result.ttft_s[0]));
  EXPECT_LT(result.tpot_s[1], 1);
  EXPECT_EQ(result.attainment.both, 0.5);
}

Workload Chat(uint32_t requests, double rate_rps) {
  return Generate(
      {.shape = NamedShape("chat").value(), .requests = requests, .rate_rps = rate_rps});
}

TEST(PlannerSimulator, EveryTokenIsMadeOnceAndTheSameEveryTime) {
  const auto workers =
      Workers({Phase::kPrefill, Phase::kPrefill, Phase::kDecode, Phase::kDecode, Phase::kMixed});
  const Workload workload = Chat(400, 20);
  const auto result = Played(workers, workload);
  uint64_t tokens = 0, expected = 0;
  for (const WorkerUse& use : result.workers) tokens += use.tokens;
  for (const WorkloadRequest& one : workload) expected += one.prompt_tokens + one.output_tokens - 1;
  EXPECT_EQ(tokens, expected);
  uint64_t pairs = 0;
  for (const auto& [pair, n] : result.pairs) pairs += n;
  EXPECT_EQ(pairs, workload.size());
  const auto again = Played(workers, workload);
  EXPECT_EQ(result.ttft_s, again.ttft_s);
  EXPECT_EQ(result.tpot_s, again.tpot_s);
}

TEST(PlannerSimulator, StepsOfAWorkerDoNotOverlap) {
  SimulatorOptions options = kOptions;
  options.keep_steps_until_s = 5;
  const auto result = Played(Workers({Phase::kMixed, Phase::kMixed}), Chat(60, 6), options);
  std::vector<double> until(2, 0);
  for (const SimulatedStep& step : result.steps) {
    ASSERT_GE(step.begin_s, until[step.worker]);
    ASSERT_GT(step.end_s, step.begin_s);
    ASSERT_LT(step.begin_s, 5);
    until[step.worker] = step.end_s;
  }
  EXPECT_GT(result.steps.size(), 100u);
}

TEST(PlannerSimulator, RequestsOutliveTheirWorkers) {
  const auto workers = Workers({Phase::kPrefill, Phase::kPrefill, Phase::kDecode, Phase::kDecode,
                                Phase::kMixed, Phase::kMixed});
  const Workload workload = Chat(300, 20);
  SimulatorOptions options = kOptions;
  for (uint32_t i = 0; i < 40; ++i) {
    const double at_s = 0.3 + 0.37 * i;
    options.failures.push_back({.worker = i % 6, .at_s = at_s, .back_s = at_s + 0.5});
  }
  const auto result = Played(workers, workload, options);
  EXPECT_THAT(result.tpot_s, testing::Each(testing::Lt(1000)));
  uint64_t tokens = 0, expected = 0;
  for (const WorkerUse& use : result.workers) tokens += use.tokens;
  for (const WorkloadRequest& one : workload) expected += one.prompt_tokens + one.output_tokens - 1;
  EXPECT_GT(tokens, expected) << "some were computed twice";
}

TEST(PlannerSimulator, WithoutAWorkerThereAreNoTokens) {
  SimulatorOptions options = kOptions;
  options.failures = {{.worker = 1, .at_s = 0.01}};
  const auto result = Played(Workers({Phase::kPrefill, Phase::kDecode}),
                             Workload(3, {.prompt_tokens = 500, .output_tokens = 5}), options);
  EXPECT_EQ(result.attainment.both, 0);
  for (const double tpot_s : result.tpot_s) EXPECT_TRUE(std::isinf(tpot_s));
}

TEST(PlannerSimulator, RefusesWhatIsNoCluster) {
  const auto fault = [](const std::vector<SimulatedWorker>& workers, const Workload& workload,
                        const SimulatorOptions& options = kOptions) {
    return std::string(Simulate(workers, kLinks, workload, options).status().message());
  };
  const Workload one = {{}};
  EXPECT_EQ(fault({}, one), "no worker prefills");
  EXPECT_EQ(fault(Workers({Phase::kPrefill}), one), "no worker decodes");
  EXPECT_EQ(fault(Workers({Phase::kMixed}), {}), "there is no request");
  EXPECT_THAT(fault({{.node = 9}}, one), HasSubstr("node 9"));
  EXPECT_THAT(fault(Workers({Phase::kMixed}), one, {.failures = {{.worker = 3}}}),
              HasSubstr("worker 3 cannot fail: there are 1"));
}

}  // namespace
}  // namespace tandem::planner
