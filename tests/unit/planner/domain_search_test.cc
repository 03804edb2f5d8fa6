// Plans for clusters of all sizes: against trying everything where that can be done, against plans
// made by hand where it cannot.
#include "scheduler/planner/domain_search.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "scheduler/planner/local_search.h"
#include "scheduler/planner/placement_goodput.h"
#include "scheduler/planner/random.h"

namespace tandem::planner {
namespace {

const std::atomic<bool> kGoOn = false;

/// `prefill`, `decode`: times as fast as a usual node.
WorkerSpeed Speed(double prefill = 1, double decode = 1) {
  WorkerSpeed speed;
  speed.latency.prefill = {
      .base_s = 18e-3 / prefill, .per_token_s = 1e-4 / prefill, .per_position_s = 1e-8 / prefill};
  speed.latency.decode.base_s = 20e-3 / decode;
  speed.latency.decode.per_sequence_s = 4e-5 / decode;
  speed.latency.decode.per_context_token_s = 6e-7 / decode;
  speed.max_sequences = 64;
  return speed;
}

/// Links of so many bytes per second within each of some groups, and between them.
std::vector<Link> Links(uint32_t groups, double within, double between) {
  std::vector<Link> links;
  for (uint32_t i = 0; i < groups * groups; ++i) {
    const bool own = i % (groups + 1) == 0;
    links.push_back({.bytes_per_s = own ? within : between, .rtt_s = own ? 1e-4 : 1e-3});
  }
  return links;
}

PlanTask Task(std::vector<NodeClass> classes, uint32_t groups, double between, const char* workload,
              double ttft_s, double tpot_s, uint32_t requests = 60) {
  return {.classes = std::move(classes),
          .groups = groups,
          .links = Links(groups, 1.25e9, between),
          .workload = Generate({.shape = NamedShape(workload).value(), .requests = requests}),
          .simulator = {.ttft_slo_s = ttft_s, .tpot_slo_s = tpot_s, .kv_bytes_per_token = 1e5},
          .threads = 2};
}

/// Kinds, links, workloads and objectives of small clusters.
std::vector<PlanTask> SmallClusters() {
  const WorkerSpeed usual = Speed(), quick = Speed(3, 1.2), slow = Speed(0.5, 1);
  const auto nodes = [](uint32_t count, const WorkerSpeed& speed, uint32_t group = 0) {
    return NodeClass{.name = "n", .count = count, .group = group, .speed = speed};
  };
  WorkerSpeed half = Speed(0.55, 0.7);
  half.max_sequences = 32;
  NodeClass wide = nodes(2, usual);
  wide.devices = 2;
  wide.widths = {{.devices = 1, .speed = half}, {.devices = 2, .speed = usual}};
  return {Task({nodes(2, usual)}, 1, 0, "chat", 0.4, 0.03),
          Task({nodes(3, usual)}, 1, 0, "code", 0.3, 0.05),
          Task({nodes(4, usual)}, 1, 0, "summarisation", 1.5, 0.04),
          Task({nodes(5, usual)}, 1, 0, "chat", 4, 0.2),
          Task({nodes(6, usual)}, 1, 0, "chat", 0.4, 0.03),
          Task({nodes(2, usual), nodes(2, quick)}, 1, 0, "chat", 0.3, 0.035),
          Task({nodes(3, quick), nodes(2, slow)}, 1, 0, "summarisation", 1, 0.05),
          Task({nodes(1, quick), nodes(1, usual), nodes(1, slow)}, 1, 0, "code", 0.2, 0.03),
          Task({nodes(2, usual, 0), nodes(2, usual, 1)}, 2, 1.25e7, "chat", 0.4, 0.03),
          Task({nodes(3, usual, 0), nodes(3, quick, 1)}, 2, 1.25e8, "chat", 0.4, 0.03),
          Task({nodes(1, quick, 0), nodes(3, slow, 1)}, 2, 1e6, "code", 0.5, 0.05),
          Task({wide}, 1, 0, "chat", 0.5, 0.04)};
}

TEST(PlanOfASmallCluster, IsWhatTryingEveryPlacementFinds) {
  int number = 0;
  for (const PlanTask& task : SmallClusters()) {
    SCOPED_TRACE(++number);
    double best_rps = 0;
    uint64_t simulations = 0;
    const auto placements = EnumeratePlacements(task);
    ASSERT_TRUE(placements.ok()) << placements.status();
    for (const PlannedPlacement& one : *placements) {
      best_rps = std::max(best_rps, PlacementGoodput(task, one.counts, 0, simulations).value());
    }
    const auto plan = SearchPlan(task, kGoOn);
    ASSERT_TRUE(plan.ok()) << plan.status();
    EXPECT_EQ(plan->best.goodput_rps, best_rps);
    EXPECT_GT(best_rps, 0);
    EXPECT_TRUE(plan->complete);
  }
}

TEST(PlanOfASmallCluster, ChoosesWidthsThatFillTheNodes) {
  const PlanTask task = SmallClusters().back();
  const auto variants = VariantsOf(task);
  ASSERT_EQ(variants.size(), 2u);
  EXPECT_EQ(variants[0].per_node, 2u);
  const auto placements = EnumeratePlacements(task);
  // No node of width 1: 6 ways, two of them of one phase only; one: 6 × 3; two: 15, less two.
  ASSERT_TRUE(placements.ok());
  EXPECT_EQ(placements->size(), 6u - 2 + 6 * 3 - 2 + 15 - 2);
  for (const PlannedPlacement& one : *placements) {
    EXPECT_EQ(one.counts[0].workers() / 2 + one.counts[1].workers(), 2u);
  }
  PlanTask odd = task;
  odd.classes[0].widths[0].devices = 3;
  EXPECT_EQ(SearchPlan(odd, kGoOn).status().message(),
            "n: a width of 3 does not divide the node's 2 devices");
}

/// Racks of two kinds; the plan of each is a domain's.
PlanTask Racks(uint32_t racks, uint32_t a = 6, uint32_t b = 4) {
  std::vector<NodeClass> classes;
  for (uint32_t rack = 0; rack < racks; ++rack) {
    classes.push_back({.name = "a", .count = a, .group = rack, .speed = Speed()});
    classes.push_back({.name = "b", .count = b, .group = rack, .speed = Speed(3, 1.2)});
  }
  return Task(std::move(classes), racks, 1.25e7, "chat", 0.6, 0.05, 200);
}

/// With one dispatcher for all racks, and a sample that lasts as long as for a rack.
PlanTask Whole(PlanTask task) {
  task.workload = Repeated(task.workload, task.groups);
  return task;
}

/// The best of plans made by hand, on the cluster as a whole.
double BestByHand(const PlanTask& task, const std::vector<PhaseCounts>& plan) {
  std::vector<std::vector<PhaseCounts>> tries = PhasesApart(task, 0, 4);  // as Algorithm 1
  std::vector<PhaseCounts> mixed;
  for (const NodeClass& nodes : task.classes) mixed.push_back({.mixed = nodes.count});
  tries.push_back(mixed);
  const uint32_t of_a = task.classes[0].count, of_b = task.classes[1].count;
  for (uint32_t a = 0; a <= of_a; ++a) {  // as Algorithm 2, the same in every rack
    for (uint32_t b = a == 0 ? 1 : 0; b <= of_b && a + b < of_a + of_b; ++b) {
      std::vector<PhaseCounts>& counts = tries.emplace_back();
      for (size_t c = 0; c < task.classes.size(); c += 2) {
        counts.push_back({.prefill = a, .decode = of_a - a});
        counts.push_back({.prefill = b, .decode = of_b - b});
      }
    }
  }
  Random random(7);
  for (int i = 0; i < 12; ++i) {
    std::vector<PhaseCounts>& counts = tries.emplace_back(plan);
    PhaseCounts& one = counts[random() % counts.size()];
    uint32_t* const fields[] = {&one.prefill, &one.decode, &one.mixed};
    uint32_t& from = *fields[random() % 3];
    if (from == 0) continue;
    --from;
    ++*fields[random() % 3];
  }
  double best_rps = 0;
  uint64_t simulations = 0;
  for (const std::vector<PhaseCounts>& counts : tries) {
    if (!Serves(counts)) continue;
    best_rps =
        std::max(best_rps, PlacementGoodput(Whole(task), counts, best_rps, simulations).value());
  }
  return best_rps;
}

TEST(PlanOfALargeCluster, IsNoWorseThanPlansMadeByHand) {
  const PlanTask task = Racks(2);
  const auto plan = SearchPlan(task, kGoOn);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_GE(plan->best.goodput_rps, 0.98 * BestByHand(task, plan->best.counts));
  EXPECT_GT(plan->best.goodput_rps, plan->colocated.goodput_rps);
  for (size_t c = 0; c < task.classes.size(); ++c) {
    EXPECT_EQ(plan->best.counts[c].workers(), task.classes[c].count);
  }
}

TEST(PlanOfALargeCluster, RacksOfFewNodesArePlannedTogether) {
  const PlanTask task = Racks(4, 3, 2);
  const auto plan = SearchPlan(task, kGoOn);
  ASSERT_TRUE(plan.ok()) << plan.status();
  ASSERT_EQ(plan->domains.size(), 1u);
  EXPECT_EQ(plan->domains[0].members.size(), 1u);
  const auto apart = SearchDomains(task, kGoOn);
  ASSERT_TRUE(apart.ok()) << apart.status();
  uint64_t simulations = 0;
  const double apart_rps =
      PlacementGoodput(Whole(task), apart->best.counts, 0, simulations).value();
  EXPECT_GE(plan->best.goodput_rps, apart_rps);
  EXPECT_GE(plan->best.goodput_rps, 0.98 * BestByHand(task, plan->best.counts));
}

TEST(PlanOfALargeCluster, GroupsThatCanBeExchangedAreOneKind) {
  PlanTask task = Racks(4);
  EXPECT_EQ(GroupKinds(task), (std::vector<uint32_t>{0, 0, 0, 0}));
  task.classes[2].count = 5;
  EXPECT_EQ(GroupKinds(task), (std::vector<uint32_t>{0, 1, 0, 0}));
  task.links[0 * 4 + 3].bytes_per_s *= 2;  // from the first to the last
  EXPECT_EQ(GroupKinds(task), (std::vector<uint32_t>{0, 1, 2, 3}));
}

TEST(PlanOfALargeCluster, EqualRacksAreSearchedOnce) {
  const auto few = SearchDomains(Racks(2), kGoOn), many = SearchDomains(Racks(40), kGoOn);
  ASSERT_TRUE(few.ok() && many.ok());
  EXPECT_NEAR(many->best.goodput_rps, 20 * few->best.goodput_rps, 1e-6 * many->best.goodput_rps);
  EXPECT_LE(many->simulations, few->simulations + 200);
  size_t members = 0;
  for (const PlannedDomain& domain : many->domains) {
    members += domain.members.size() * domain.members[0].size();
  }
  EXPECT_EQ(members, 80u) << "every class is in a domain";
}

TEST(PlanOfALargeCluster, IsTheSameWithAnyNumberOfThreads) {
  PlanTask task = Racks(2);
  const auto together = SearchDomains(task, kGoOn);
  task.threads = 1;
  const auto alone = SearchDomains(task, kGoOn);
  ASSERT_TRUE(alone.ok() && together.ok());
  EXPECT_EQ(alone->best.counts, together->best.counts);
  EXPECT_EQ(alone->simulations, together->simulations);
}

TEST(PlanOfALargeCluster, LargeGroupsAreCutAndLonelyNodesJoined) {
  const auto whole = SearchDomains(
      Task({{.name = "a", .count = 70, .speed = Speed()}}, 1, 0, "chat", 0.4, 0.03), kGoOn);
  ASSERT_TRUE(whole.ok()) << whole.status();
  EXPECT_EQ(whole->best.counts[0].workers(), 70u);
  EXPECT_GE(whole->domains[0].members.size(), 2u);
  // Alone they can only be mixed, which tight objectives forbid.
  std::vector<NodeClass> alone;
  for (uint32_t i = 0; i < 8; ++i) alone.push_back({.name = "a", .group = i, .speed = Speed()});
  const auto joined = SearchDomains(Task(alone, 8, 1.25e9, "chat", 0.4, 0.03), kGoOn);
  ASSERT_TRUE(joined.ok()) << joined.status();
  EXPECT_LT(joined->domains[0].members.size(), 8u);
  EXPECT_GT(joined->best.goodput_rps, 1.5 * joined->colocated.goodput_rps);
}

TEST(PlanOfALargeCluster, TellsWhatMoreNodesAndLinksWouldBuy) {
  const PlanTask task = Racks(4);
  const auto plan = SearchPlan(task, kGoOn);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->one_more.size(), task.classes.size());
  for (const Plan::OneMore& one : plan->one_more) {
    EXPECT_GE(one.goodput_rps, plan->best.goodput_rps);
  }
  EXPECT_GE(plan->at_goodput.attainment.both, 0.9);
  EXPECT_GE(plan->with_fast_links_rps, plan->best.goodput_rps);
}

TEST(PlanOfALargeCluster, AStoppedSearchIsAnErrorUnlessItsPlanIsWanted) {
  PlanTask task = Racks(4);
  const std::atomic<bool> stop = true;
  EXPECT_EQ(SearchPlan(task, stop).status().code(), absl::StatusCode::kCancelled);
  task.keep_when_stopped = true;
  const auto plan = SearchPlan(task, stop);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_FALSE(plan->complete);
  EXPECT_GT(plan->best.goodput_rps, 0);
}

}  // namespace
}  // namespace tandem::planner
