// The online planner's decisions: what must not wait, what a shift leads to, and that nothing
// happens where nothing has changed.
#include "scheduler/planner/replanner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "scheduler/planner/placement_moves.h"
#include "tests/unit/planner/online_fixture.h"

namespace tandem::planner {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::SizeIs;

constexpr Phase P = Phase::kPrefill, D = Phase::kDecode, M = Phase::kMixed;

/// With these, TestCluster carries chat with one prefill worker of four and summarisation with two.
Replanner::Options Objectives() { return {.ttft_slo_s = 1, .tpot_slo_s = 0.04}; }

GeneratedWorkload Requests(const char* shape, double rate_rps, uint64_t seed = 1,
                           double gap_cv = 1) {
  return {.shape = NamedShape(shape).value(), .rate_rps = rate_rps, .gap_cv = gap_cv, .seed = seed};
}

// ------------------------------------------------------------------ at once

TEST(FindUrgent, SomebodyTakesOverFromTheLastOne) {
  EXPECT_FALSE(FindUrgent(TestCluster({P, D})));
  EXPECT_FALSE(FindUrgent(TestCluster({M})));
  ClusterNow cluster = TestCluster({P, P, P});
  cluster.nodes[0].requests = 5;
  cluster.nodes[1].requests = 2;
  cluster.nodes[2].requests = 9;
  const auto urgent = FindUrgent(cluster);
  ASSERT_TRUE(urgent);
  EXPECT_TRUE(urgent->rescue);
  EXPECT_EQ(urgent->change.worker_id, "w1") << "the least busy";
  EXPECT_EQ(urgent->change.to, D);
  EXPECT_EQ(FindUrgent(TestCluster({D, D}))->change.to, P);
  EXPECT_EQ(FindUrgent(TestCluster({P}))->change.to, M) << "it is needed for both";
  EXPECT_EQ(FindUrgent(TestCluster({D}))->change.to, M);
  EXPECT_FALSE(FindUrgent(TestCluster({P, M}))) << "the mixed one decodes";
}

TEST(FindUrgent, ThoseThatKeepTheirPhaseStay) {
  ClusterNow cluster = TestCluster({P, P});
  cluster.nodes[0].movable = false;
  EXPECT_EQ(FindUrgent(cluster)->change.worker_id, "w1");
  cluster.nodes[1].movable = false;
  EXPECT_FALSE(FindUrgent(cluster));
}

TEST(FindUrgent, ANewWorkerGetsThePhaseThatFewerHave) {
  ClusterNow cluster = TestCluster({P, M});
  cluster.nodes[1].assigned = false;
  const auto urgent = FindUrgent(cluster);
  ASSERT_TRUE(urgent);
  EXPECT_FALSE(urgent->rescue);
  EXPECT_EQ(urgent->change.worker_id, "w1");
  EXPECT_EQ(urgent->change.to, D);
  cluster = TestCluster({P, D, D, M});
  cluster.nodes[3].assigned = false;
  EXPECT_EQ(FindUrgent(cluster)->change.to, P);
  cluster = TestCluster({M});
  cluster.nodes[0].assigned = false;
  EXPECT_FALSE(FindUrgent(cluster)) << "alone it does everything";
}

TEST(Replanner, NewWorkersGetTheirPhasesOneAfterTheOther) {
  ClusterNow cluster = TestCluster({M, M, M});
  for (Node& node : cluster.nodes) node.assigned = false;
  OnlineRun run(cluster, Objectives());
  for (int i = 0; i < 10; ++i) run.Look();
  EXPECT_EQ(Count(run.cluster(), D), 2u);
  EXPECT_EQ(Count(run.cluster(), P), 1u);
  EXPECT_THAT(run.Times(Outcome::kJoined), SizeIs(3));
  run.cluster().nodes.push_back(TestNode("late", M));
  run.cluster().nodes.back().assigned = false;
  run.Look();
  run.Look();
  EXPECT_EQ(run.cluster().nodes.back().phase, P);
}

TEST(Replanner, TheLossOfTheLastDecodeWorkerDoesNotWaitForTheDwellTime) {
  OnlineRun run(TestCluster({P, P, D}), Objectives());
  run.Look();
  run.cluster().nodes.pop_back();
  run.cluster().links.clear();
  run.Look();
  EXPECT_EQ(Count(run.cluster(), D), 1u) << "in one look";
  run.Look();
  run.cluster().nodes.erase(std::find_if(run.cluster().nodes.begin(), run.cluster().nodes.end(),
                                         [](const Node& node) { return node.phase == D; }));
  run.Look();
  EXPECT_EQ(run.cluster().nodes[0].phase, M) << "and again, at once";
  EXPECT_THAT(run.Times(Outcome::kRescued), SizeIs(2));
}

TEST(Leader, IsTheSmallestOfThoseThatMostWorkersKnow) {
  EXPECT_EQ(Leader({{"b", "a"}, {"a", "b"}, {"b"}}), "a");
  EXPECT_EQ(Leader({{"b", "a"}, {"b"}, {"b"}}), "b") << "a is cut off from most";
  EXPECT_EQ(Leader({{"a"}, {"b"}}), std::nullopt);
  EXPECT_EQ(Leader({{"a", "a"}, {"b", "b"}, {}}), std::nullopt);
  EXPECT_EQ(Leader({}), std::nullopt);
  EXPECT_EQ(CountRouters({{"b", "a"}, {"a", "b"}, {"b", "c"}}), 2u);
}

// ------------------------------------------------------------------ nothing

class Stationary : public testing::TestWithParam<std::pair<uint64_t, double>> {};

TEST_P(Stationary, AnHourOfTheSameTrafficChangesNothing) {
  const auto [seed, gap_cv] = GetParam();
  Replanner::Options options = Objectives();
  options.seed = seed;
  // Each is what the planner makes of such requests; bursts want workers that do both.
  OnlineRun run(TestCluster(gap_cv > 1 ? std::vector{P, D, M, M} : std::vector{P, D, D, D}),
                options);
  run.Play(Requests("chat", 4, seed, gap_cv), 3600);
  EXPECT_THAT(run.Times(Outcome::kChanged), IsEmpty());
  EXPECT_THAT(run.Times(Outcome::kFailed), IsEmpty());
  EXPECT_GE(run.replanner().made(), 1u) << "it has looked";
}

INSTANTIATE_TEST_SUITE_P(SeedsAndBursts, Stationary,
                         testing::Values(std::pair<uint64_t, double>(1, 1.0),
                                         std::pair<uint64_t, double>(2, 1.0),
                                         std::pair<uint64_t, double>(3, 1.0),
                                         std::pair<uint64_t, double>(4, 2.5),
                                         std::pair<uint64_t, double>(5, 2.5)));

/// Requests that become others and others again, faster than anything can follow.
TEST(Replanner, AtTheBoundaryThereIsOneChangeADwellTimeAtMost) {
  const Replanner::Options options = Objectives();
  OnlineRun run(TestCluster({P, D, D, D}), options);
  for (uint64_t i = 0; i < 16; ++i) {
    run.Play(Requests(i % 2 == 0 ? "chat" : "summarisation", 5, i), 20);
  }
  const std::vector<double> times = run.Times(Outcome::kChanged);
  EXPECT_THAT(times, Not(IsEmpty()));
  for (size_t i = 1; i < times.size(); ++i) {
    EXPECT_GE(times[i] - times[i - 1], options.min_dwell_s);
  }
}

// ------------------------------------------------------------------ shifts

TEST(Replanner, ALongerPromptMakesAPrefillWorkerOfADecodeWorker) {
  for (const uint64_t seed : {1, 2}) {
    Replanner::Options options = Objectives();
    options.seed = seed;
    OnlineRun run(TestCluster({P, D, D, D}), options);
    run.Play(Requests("chat", 5, seed), 300);
    EXPECT_THAT(run.Times(Outcome::kChanged), IsEmpty());
    const double shift_s = run.now_s();
    run.Play(Requests("summarisation", 5, seed), 200);
    const std::vector<double> times = run.Times(Outcome::kChanged);
    ASSERT_THAT(times, SizeIs(1)) << seed;
    EXPECT_LE(times[0] - shift_s, 15) << seed;
    EXPECT_EQ(Count(run.cluster(), P), 2u);
    EXPECT_GE(Count(run.cluster(), D), 1u) << "or one that does both, and decodes as well";
    // It carries the rate; predicted in steps of 2 %, for a sample of the requests.
    EXPECT_GE(run.replanner().goodput_rps(), 0.95 * 5);
    // And back.
    run.Play(Requests("chat", 7, seed), 200);
    EXPECT_EQ(Count(run.cluster(), P), 1u) << seed;
  }
}

TEST(Replanner, ADryRunDecidesAndChangesNothing) {
  Replanner::Options options = Objectives();
  options.dry_run = true;
  OnlineRun run(TestCluster({P, D, D, D}), options);
  run.Play(Requests("chat", 5), 300);
  run.Play(Requests("summarisation", 5), 60);
  const std::vector<double> times = run.Times(Outcome::kDryRun);
  ASSERT_FALSE(times.empty());
  for (size_t i = 1; i < times.size(); ++i) {
    EXPECT_GE(times[i] - times[i - 1], options.min_dwell_s) << "nor does it say so all the time";
  }
  EXPECT_THAT(run.Times(Outcome::kChanged), IsEmpty());
  EXPECT_EQ(Count(run.cluster(), P), 1u);
}

TEST(Replanner, PinnedWorkersAreNotMovedWhateverComes) {
  ClusterNow cluster = TestCluster({P, D, D, D});
  for (Node& node : cluster.nodes) node.movable = false;
  OnlineRun run(cluster, Objectives());
  run.Play(Requests("chat", 5), 300);
  run.Play(Requests("summarisation", 5), 100);
  EXPECT_THAT(run.Times(Outcome::kChanged), IsEmpty());
}

TEST(Replanner, APhaseIsNotMadeSmallerThanWhatItsLoadNeeds) {
  // Summarisation wants prefill workers; the two that decode have work for both.
  OnlineRun run(TestCluster({P, P, D, D}), Objectives());
  run.Play(Requests("summarisation", 5), 400);
  EXPECT_THAT(run.Times(Outcome::kChanged), IsEmpty());
  EXPECT_EQ(Count(run.cluster(), D), 2u);
}

TEST(Replanner, NodesThatComeAreReasonToLookAgain) {
  OnlineRun run(TestCluster({P, D}), Objectives());
  run.Play(Requests("chat", 5), 100);
  for (const char* name : {"new1", "new2"}) {
    run.cluster().nodes.push_back(TestNode(name, M));
    run.cluster().nodes.back().assigned = false;
  }
  run.Play(Requests("chat", 5), 100);
  EXPECT_THAT(run.Times(Outcome::kJoined), SizeIs(2));
  EXPECT_GE(run.replanner().goodput_rps(), 5);
  bool seen = false;
  for (const PlanDecision& decision : run.replanner().decisions()) {
    seen |= decision.trigger == "nodes have come or gone";
  }
  EXPECT_TRUE(seen);
}

TEST(Replanner, LinksThatBecomeSlowAreReasonToLookAgain) {
  OnlineRun run(TestCluster({P, D}), Objectives());
  run.Play(Requests("chat", 1), 300);
  const auto made = run.replanner().made();
  for (MeasuredLink& link : run.cluster().links) link.link.bytes_per_s = 2e6;
  run.Play(Requests("chat", 1), 100);
  ASSERT_GT(run.replanner().made(), made);
  EXPECT_EQ(run.replanner().decisions()[made].trigger, "the bandwidth of links");
  EXPECT_EQ(Count(run.cluster(), M), 2u) << "2 MB/s do not carry 100 kB a token";
}

TEST(Replanner, AWorkerThatDoesNotFollowIsGivenUp) {
  Replanner replanner(Objectives());
  const ClusterNow cluster = TestCluster({P, P});
  const auto never = [] { return false; };
  ASSERT_TRUE(replanner.Step(cluster, {}, 100, never));
  EXPECT_FALSE(replanner.Step(cluster, {}, 101, never)) << "it has been told";
  EXPECT_FALSE(replanner.Step(cluster, {}, 121, never));
  EXPECT_EQ(replanner.decisions().back().outcome, Outcome::kFailed);
  EXPECT_THAT(replanner.decisions().back().reason, HasSubstr("in time"));
  EXPECT_TRUE(replanner.Step(cluster, {}, 122, never)) << "and is told again";
  replanner.Refused({.worker_id = "w0", .name = "w0", .to = D}, "no", 123);
  EXPECT_EQ(replanner.decisions().back().reason, "no");
}

TEST(Replanner, NothingIsPlannedBeforeSomethingWasMeasured) {
  ClusterNow cluster = TestCluster({P, D});
  for (Node& node : cluster.nodes) node.speed.latency.decode_samples = 0;
  OnlineRun run(cluster, Objectives());
  run.Play(Requests("chat", 5), 100);
  EXPECT_EQ(run.replanner().made(), 0u);
}

TEST(Replanner, StopsWhenItIsTold) {
  WorkloadWindow window;
  for (int i = 0; i < 300; ++i) window.Ended(window.Arrived(1700, i * 0.2), 90, 0);
  Replanner replanner(Objectives());
  const ClusterNow cluster = TestCluster({P, D, D, D});
  replanner.Step(cluster, window.Recent(300, 60), 60, [] { return true; });
  ASSERT_EQ(replanner.made(), 1u);
  EXPECT_EQ(replanner.decisions()[0].outcome, Outcome::kKept);
}

// ------------------------------------------------------------------ parts

TEST(Classify, TellsFastNodesFromSlowOnesAndNearFromFar) {
  ClusterNow cluster = TestCluster({P, D, D, D});
  cluster.nodes[1].speed = TestSpeed(4);
  for (MeasuredLink& link : cluster.links) {
    if ((link.from == 3) != (link.to == 3)) link.link.bytes_per_s = 1e7;
  }
  cluster.nodes[2].movable = false;
  const auto classes = Classify(cluster);
  ASSERT_TRUE(classes);
  EXPECT_THAT(classes->class_of, ElementsAre(0, 1, 0, 2));
  EXPECT_EQ(classes->now[0], (PhaseCounts{.prefill = 1, .decode = 1}));
  EXPECT_EQ(classes->fixed[0], (PhaseCounts{.decode = 1}));
  EXPECT_EQ(classes->links[0 * 3 + 1].bytes_per_s, 1.25e9);
  EXPECT_EQ(classes->links[0 * 3 + 2].bytes_per_s, 1e7);
}

TEST(Classify, WhatWasNotMeasuredIsTakenFromTheOthers) {
  ClusterNow cluster = TestCluster({P, D});
  cluster.nodes[0].speed.latency.decode_samples = 0;
  cluster.nodes[0].speed.latency.decode.base_s = 99;
  cluster.nodes[1].speed.latency.prefill_samples = 0;
  const auto classes = Classify(cluster);
  ASSERT_TRUE(classes);
  EXPECT_THAT(classes->classes, SizeIs(1));
  EXPECT_NEAR(classes->classes[0].speed.latency.decode.base_s, 20e-3, 1e-9);
}

TEST(ChangesTo, KeepsBothPhasesServedAllTheTime) {
  ClusterNow cluster = TestCluster({P, D});
  cluster.nodes[1].speed = TestSpeed(4);
  const auto classes = Classify(cluster);
  ASSERT_TRUE(classes);
  const auto changes = ChangesTo(cluster, *classes, {{.decode = 1}, {.prefill = 1}});
  std::vector<Phase> phases = {P, D};
  for (const PhaseChange& change : changes) {
    Phase& own = phases[change.worker_id == "w0" ? 0 : 1];
    EXPECT_EQ(own, change.from);
    own = change.to;
    EXPECT_TRUE(phases[0] != phases[1] || phases[0] == M);
  }
  EXPECT_THAT(phases, ElementsAre(D, P));
}

TEST(Neighbours, AreOneStepAwayAndLeaveFixedNodesAlone) {
  ClusterNow cluster = TestCluster({P, D, D});
  cluster.nodes[0].movable = false;
  const auto classes = Classify(cluster);
  ASSERT_TRUE(classes);
  EXPECT_EQ(CountPlacements(*classes), 6);
  EXPECT_THAT(AllPlacements(*classes), SizeIs(5)) << "not with three that prefill";
  for (const auto& counts : Neighbours(*classes, classes->now)) {
    EXPECT_GE(counts[0].prefill, 1u);
    EXPECT_LE(CountMoves(classes->now, counts), 2u);
    EXPECT_EQ(counts[0].prefill + counts[0].decode + counts[0].mixed, 3u);
  }
}

TEST(Replanner, LargeClustersAreSearchedStepByStep) {
  Replanner::Options options = Objectives();
  options.max_placements = 10;
  OnlineRun run(TestCluster({P, D, D, D, D, D}), options);
  run.Play(Requests("chat", 7), 100);
  const uint32_t before = Count(run.cluster(), P);
  run.Play(Requests("summarisation", 8), 100);
  EXPECT_THAT(run.Times(Outcome::kChanged), Not(IsEmpty()));
  EXPECT_GT(Count(run.cluster(), P), before);
}

}  // namespace
}  // namespace tandem::planner
