// The rules of DistServe's simulator, one by one, on requests small enough to follow by hand.
#include "scheduler/planner/compat/simulator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace tandem::planner::compat {
namespace {

using testing::HasSubstr;

constexpr double kTolerance = 1e-9;
// With the costs below and prompts of a token: the first stage of a single-stage pipeline.
constexpr double kPrefillMs = 10 + 1 + 2 + 1e-4, kRoundMs = 5 + 2 + 1e-4;

/// A prefill batch costs 10 ms, a round 5 ms, or 50 ms from 95 requests on; tokens cost nothing but
/// the first stage's 1e-4 ms.
Placement Simple(Mode mode = Mode::kDisaggregated) {
  return {.mode = mode,
          .costs = {.prefill = {.a = 10}, .decode_small = {.a = 5}, .decode_large = {.a = 50}},
          .limits = {.prefill_tokens = 1000, .decode_requests = 1000}};
}

Simulated Played(const Placement& placement, const std::vector<Request>& requests) {
  auto simulated = Simulate(placement, requests);
  EXPECT_TRUE(simulated.ok()) << simulated.status();
  return *std::move(simulated);
}

std::string Error(const Placement& placement, const std::vector<Request>& requests) {
  return std::string(Simulate(placement, requests).status().message());
}

std::vector<Request> Times(int64_t n, Request request) {
  return std::vector<Request>(static_cast<size_t>(n), request);
}

TEST(Simulate, ARequestAlone) {
  Placement placement = Simple();
  placement.costs.prefill = {.a = 10, .b = 0.1, .c = 1e-3};
  placement.costs.decode_small = {.a = 5, .b = 0.01, .c = 0.5};
  const Latencies times =
      Played(placement, {{.arrival_ms = 100, .prompt_tokens = 200, .output_tokens = 2}}).latencies;
  EXPECT_NEAR(times.ttft_ms[0], 10 + 20 + 40 + 1 + 2 + 0.02, kTolerance);
  const double first = 5 + 0.01 * 201 + 0.5 + 2 + 0.02, second = 5 + 0.01 * 202 + 0.5 + 2 + 0.0201;
  EXPECT_NEAR(times.tpot_ms[0], (first + second) / 2, kTolerance);
  EXPECT_NEAR(times.finish_ms[0], 100 + times.ttft_ms[0] + first + second, kTolerance);
}

TEST(Simulate, PrefillBatchesEndAtTheFirstMisfit) {
  Placement placement = Simple();
  placement.limits.prefill_tokens = 100;
  // The third would fit beside the first, but is not taken before the second.
  const Simulated simulated = Played(placement, {{.prompt_tokens = 60, .output_tokens = 1},
                                                 {.prompt_tokens = 60, .output_tokens = 1},
                                                 {.prompt_tokens = 40, .output_tokens = 1}});
  EXPECT_EQ(simulated.counters.prefill_batches, 2);
  EXPECT_EQ(simulated.counters.max_prefill_batch_tokens, 100);
  EXPECT_LT(simulated.latencies.ttft_ms[0], simulated.latencies.ttft_ms[1]);
  EXPECT_EQ(simulated.latencies.ttft_ms[1], simulated.latencies.ttft_ms[2]);
}

TEST(Simulate, ArrivalsOfOneInstantAreBatchedTogether) {
  EXPECT_EQ(Played(Simple(), Times(5, {.arrival_ms = 3, .prompt_tokens = 1, .output_tokens = 1}))
                .counters.max_prefill_batch_requests,
            5);
}

TEST(Simulate, AnArrivalAtTheEndOfABatchJoinsTheNext) {
  const double end_ms =
      Played(Simple(), {{.prompt_tokens = 1, .output_tokens = 1}}).latencies.ttft_ms[0];
  const Simulated simulated =
      Played(Simple(), {{.prompt_tokens = 1, .output_tokens = 1},
                        {.arrival_ms = 5, .prompt_tokens = 1, .output_tokens = 1},
                        {.arrival_ms = end_ms, .prompt_tokens = 1, .output_tokens = 1}});
  EXPECT_EQ(simulated.counters.prefill_batches, 2);
  EXPECT_EQ(simulated.counters.max_prefill_batch_requests, 2);
}

TEST(Simulate, LargeDecodeBatchesHaveTheirOwnCosts) {
  for (const auto& [size, whole] : {std::pair{94, 5.0}, {95, 50.0}}) {
    const Simulated simulated =
        Played(Simple(Mode::kDecodeOnly), Times(size, {.prompt_tokens = 1, .output_tokens = 1}));
    EXPECT_EQ(simulated.counters.max_decode_batch_requests, size);
    EXPECT_NEAR(simulated.latencies.tpot_ms[0], whole + 2 + 1e-4 * size, kTolerance) << size;
  }
}

TEST(Simulate, ContextLimitsADecodeBatch) {
  // Each counts one token more than its context: two fill the 50,000.
  const Simulated simulated =
      Played(Simple(Mode::kDecodeOnly), Times(3, {.prompt_tokens = 24'999, .output_tokens = 1}));
  EXPECT_EQ(simulated.counters.max_decode_batch_requests, 2);
  EXPECT_EQ(simulated.counters.decode_batches, 2);
  EXPECT_EQ(simulated.latencies.finish_ms[0], simulated.latencies.finish_ms[1]);
  EXPECT_GT(simulated.latencies.finish_ms[2], simulated.latencies.finish_ms[1]);
}

TEST(Simulate, ArrivalsAreAheadOfSequencesThatGoOn) {
  Placement placement = Simple(Mode::kDecodeOnly);
  placement.limits.decode_requests = 1;
  const Latencies times =
      Played(placement, {{.prompt_tokens = 1, .output_tokens = 2},
                         {.arrival_ms = 1, .prompt_tokens = 1, .output_tokens = 1}})
          .latencies;
  EXPECT_NEAR(times.finish_ms[1], 2 * kRoundMs, kTolerance);
  EXPECT_NEAR(times.finish_ms[0], 3 * kRoundMs + 1e-4, kTolerance);
}

TEST(Simulate, PrefillDispatchCountsQueueAndBatch) {
  Placement placement = Simple();
  placement.prefill_instances = 2;
  const auto at = [](double ms) {
    return Request{.arrival_ms = ms, .prompt_tokens = 1, .output_tokens = 1};
  };
  // 0 → first; 1 → second, since the first is busy; 2 → first, a tie; 3 → second.
  const Simulated simulated = Played(placement, {at(0), at(1), at(2), at(3)});
  const Latencies& times = simulated.latencies;
  EXPECT_EQ(simulated.counters.prefill_batches, 4);
  EXPECT_NEAR(times.ttft_ms[1], kPrefillMs, kTolerance);
  EXPECT_NEAR(times.ttft_ms[2] + 2, 2 * kPrefillMs, kTolerance);
  EXPECT_NEAR(times.ttft_ms[3] + 3, 1 + 2 * kPrefillMs, kTolerance);
}

TEST(Simulate, DecodeDispatchDoesNotCountTheBatch) {
  Placement placement = Simple(Mode::kDecodeOnly);
  placement.decode_instances = 2;
  const Latencies times =
      Played(placement, {{.prompt_tokens = 1, .output_tokens = 1},
                         {.arrival_ms = 1, .prompt_tokens = 1, .output_tokens = 1}})
          .latencies;
  // The second instance was free.
  EXPECT_NEAR(times.finish_ms[1], 2 * kRoundMs, kTolerance);
}

TEST(Simulate, ColocatedPromptsGoFirst) {
  // It arrives in the first's first round, and is computed before the second one.
  const Latencies times =
      Played(Simple(Mode::kColocated),
             {{.prompt_tokens = 1, .output_tokens = 2},
              {.arrival_ms = kPrefillMs + 1, .prompt_tokens = 1, .output_tokens = 1}})
          .latencies;
  const double second_prefilled = kPrefillMs + kRoundMs + kPrefillMs;
  EXPECT_NEAR(times.ttft_ms[1], second_prefilled - (kPrefillMs + 1), kTolerance);
  // Then both share a round, with 2 + 1 tokens of context.
  EXPECT_NEAR(times.finish_ms[0], second_prefilled + 7 + 3e-4, kTolerance);
  EXPECT_EQ(times.finish_ms[0], times.finish_ms[1]);
}

TEST(Simulate, ColocatedDispatchDoesNotCountDecoding) {
  Placement placement = Simple(Mode::kColocated);
  placement.prefill_instances = 2;
  // When the second arrives the first one only decodes: the first instance is as good as idle.
  const Latencies times =
      Played(placement, {{.prompt_tokens = 1, .output_tokens = 10},
                         {.arrival_ms = kPrefillMs + 1, .prompt_tokens = 1, .output_tokens = 1}})
          .latencies;
  EXPECT_NEAR(times.ttft_ms[1], kRoundMs - 1 + kPrefillMs, kTolerance);
}

TEST(Simulate, StagesWorkAtTheSameTime) {
  Placement placement = Simple();
  placement.prefill_stages = 2;
  placement.decode_stages = 5;
  const Latencies times =
      Played(placement, {{.prompt_tokens = 1, .output_tokens = 1},
                         {.arrival_ms = 1, .prompt_tokens = 1, .output_tokens = 1}})
          .latencies;
  const double stage = 10.0 / 2 + 2, first = stage + 2 + 1e-4;
  EXPECT_NEAR(times.ttft_ms[0], first + stage, kTolerance);
  EXPECT_NEAR(times.ttft_ms[1] + 1, first + first + stage, kTolerance);
  EXPECT_NEAR(times.tpot_ms[0], 5 + 2 + 1e-4, kTolerance);
}

TEST(Simulate, PrefillAloneEndsThere) {
  const Latencies times =
      Played(Simple(Mode::kPrefillOnly), {{.prompt_tokens = 1, .output_tokens = 50'000}}).latencies;
  EXPECT_NEAR(times.ttft_ms[0], kPrefillMs, kTolerance);
  EXPECT_EQ(times.finish_ms[0], times.ttft_ms[0]);
  EXPECT_EQ(times.tpot_ms[0], 0);
}

TEST(Simulate, NoRequestsNoTimes) { EXPECT_TRUE(Played(Simple(), {}).latencies.ttft_ms.empty()); }

TEST(Simulate, RefusesWhatWouldNeverEnd) {
  EXPECT_THAT(Error(Simple(), {{.prompt_tokens = 1, .output_tokens = 1},
                               {.prompt_tokens = 1001, .output_tokens = 1}}),
              HasSubstr("request 1: the prompt of 1001 tokens can never run: a prefill batch holds "
                        "1000"));
  EXPECT_THAT(Error(Simple(), {{.prompt_tokens = 1, .output_tokens = 50'000}}),
              HasSubstr("request 0: with a prompt of 1 and an output of 50000 tokens it can never "
                        "end"));
  EXPECT_EQ(Error(Simple(), {{.prompt_tokens = 1, .output_tokens = 0}}),
            "request 0: output is 0; allowed are 1 to 10000000");
  EXPECT_EQ(Error(Simple(), {{.arrival_ms = 2, .prompt_tokens = 1, .output_tokens = 1},
                             {.arrival_ms = 1, .prompt_tokens = 1, .output_tokens = 1}}),
            "request 1: it arrives at 1 ms, the one before at 2");
  Placement backwards = Simple();
  backwards.costs.decode_small.b = -1;
  EXPECT_THAT(Error(backwards, {{.prompt_tokens = 100, .output_tokens = 1}}),
              HasSubstr("ms for a batch of 1 sequences"));
  Placement none = Simple();
  none.decode_instances = 0;
  EXPECT_EQ(Error(none, {}), "number of decode instances is 0; allowed are 1 to 100000");
  none.mode = Mode::kColocated;
  EXPECT_EQ(Error(none, {}), "") << "it has none";
}

}  // namespace
}  // namespace tandem::planner::compat
