// The search for a placement, on clusters small enough to try everything.
#include "scheduler/planner/plan_search.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace tandem::planner {
namespace {

using testing::HasSubstr;

const std::atomic<bool> kGoOn = false;

WorkerSpeed Speed(double factor = 1) {
  WorkerSpeed speed;
  speed.latency.prefill = {
      .base_s = 18e-3 / factor, .per_token_s = 1e-4 / factor, .per_position_s = 1e-8 / factor};
  speed.latency.decode.base_s = 20e-3;
  speed.latency.decode.per_sequence_s = 4e-5;
  speed.latency.decode.per_context_token_s = 6e-7;
  speed.max_sequences = 64;
  return speed;
}

PlanTask Task(std::vector<NodeClass> classes, const char* workload, double ttft_s, double tpot_s) {
  return {.classes = std::move(classes),
          .links = {{.bytes_per_s = 1.25e9, .rtt_s = 1e-4}},
          .workload = Generate({.shape = NamedShape(workload).value(), .requests = 80}),
          .simulator = {.ttft_slo_s = ttft_s, .tpot_slo_s = tpot_s, .kv_bytes_per_token = 1e5}};
}

double Exhaustive(const PlanTask& task) {
  double best_rps = 0;
  uint64_t simulations = 0;
  const auto placements = EnumeratePlacements(task);
  EXPECT_TRUE(placements.ok()) << placements.status();
  for (const PlannedPlacement& placement : *placements) {
    const auto goodput = PlacementGoodput(task, placement.counts, 0, simulations);
    EXPECT_TRUE(goodput.ok()) << goodput.status();
    EXPECT_LE(*goodput, placement.bound_rps);
    best_rps = std::max(best_rps, *goodput);
  }
  return best_rps;
}

TEST(SearchPlan, FindsWhatTryingEverythingFinds) {
  for (const char* workload : {"chat", "summarisation"}) {
    for (const auto& [ttft_s, tpot_s] : {std::pair{0.5, 0.05}}) {
      for (const std::vector<NodeClass>& classes :
           std::vector<std::vector<NodeClass>>{{{.name = "a", .count = 4, .speed = Speed()}},
                                               {{.name = "a", .count = 2, .speed = Speed()},
                                                {.name = "b", .count = 2, .speed = Speed(3)}}}) {
        const PlanTask task = Task(classes, workload, ttft_s, tpot_s);
        const auto plan = SearchPlan(task, kGoOn);
        ASSERT_TRUE(plan.ok()) << plan.status();
        EXPECT_EQ(plan->best.goodput_rps, Exhaustive(task)) << workload << " " << ttft_s;
        EXPECT_GE(plan->best.goodput_rps, plan->colocated.goodput_rps);
        ASSERT_TRUE(plan->runner_up);
        EXPECT_LE(plan->runner_up->goodput_rps, plan->best.goodput_rps);
        EXPECT_EQ(plan->one_more.size(), classes.size());
        if (plan->best.goodput_rps > 0) {
          EXPECT_GE(plan->at_goodput.attainment.both, 0.9);
        }
      }
    }
  }
}

TEST(SearchPlan, IsTheSameWithAnyNumberOfThreads) {
  PlanTask task = Task({{.name = "a", .count = 5, .speed = Speed()}}, "chat", 0.3, 0.035);
  const auto alone = SearchPlan(task, kGoOn);
  task.threads = 3;
  const auto together = SearchPlan(task, kGoOn);
  ASSERT_TRUE(alone.ok() && together.ok());
  EXPECT_EQ(alone->best.counts, together->best.counts);
  EXPECT_EQ(alone->runner_up->counts, together->runner_up->counts);
  EXPECT_EQ(alone->simulations, together->simulations);
}

TEST(SearchPlan, TightTokensDisaggregateAndSlowLinksDoNot) {
  PlanTask task = Task({{.name = "a", .count = 4, .speed = Speed()}}, "chat", 0.4, 0.035);
  const auto fast = SearchPlan(task, kGoOn);
  task.links[0].bytes_per_s = 1e6;
  const auto slow = SearchPlan(task, kGoOn);
  ASSERT_TRUE(fast.ok() && slow.ok());
  EXPECT_GT(fast->best.counts[0].prefill, 0u);
  EXPECT_GT(fast->best.goodput_rps, 1.1 * fast->colocated.goodput_rps);
  EXPECT_LT(slow->best.goodput_rps, fast->best.goodput_rps);
  EXPECT_GE(slow->with_fast_links_rps, slow->best.goodput_rps);
}

TEST(SearchPlan, RefusesWhatItCannotSearch) {
  const auto fault = [](const PlanTask& task) {
    return std::string(SearchPlan(task, kGoOn).status().message());
  };
  EXPECT_THAT(fault(Task({}, "chat", 1, 1)), HasSubstr("there is no node"));
  EXPECT_THAT(EnumeratePlacements(Task({{.count = 700}}, "chat", 1, 1)).status().message(),
              HasSubstr("246051 placements"));
  EXPECT_THAT(fault(Task({{}}, "chat", 0, 1)), HasSubstr("objectives must be positive"));
  EXPECT_THAT(fault(Task({{.name = "x", .group = 1}}, "chat", 1, 1)),
              HasSubstr("x is in no group"));
  PlanTask still = Task({{}}, "chat", 1, 1);
  still.workload.resize(1);
  EXPECT_THAT(fault(still), HasSubstr("fewer than two arrivals"));
  const std::atomic<bool> stop = true;
  EXPECT_EQ(SearchPlan(Task({{.count = 2, .speed = Speed()}}, "chat", 1, 1), stop).status().code(),
            absl::StatusCode::kCancelled);
}

}  // namespace
}  // namespace tandem::planner
