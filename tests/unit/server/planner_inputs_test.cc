// What the planner is told of workers' reports.
#include "server/planner_inputs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace tandem::server {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;

v1::WorkerState Worker(const std::string& name, v1::Phase phase) {
  v1::WorkerState worker;
  worker.mutable_info()->set_worker_id(name);
  worker.mutable_info()->set_name(name);
  worker.mutable_info()->set_phase(phase);
  worker.mutable_info()->set_data_address(name + ":1");
  worker.mutable_info()->set_kv_bytes_per_token(1000);
  worker.mutable_load()->set_phase(phase);
  worker.mutable_load()->set_phase_planned(true);
  worker.mutable_load()->add_routers("r1");
  return worker;
}

TEST(ClusterFrom, LeavesOutThoseThatCannotBeUsed) {
  std::vector<v1::WorkerState> workers = {
      Worker("a", v1::PHASE_PREFILL), Worker("drains", v1::PHASE_DECODE),
      Worker("silent", v1::PHASE_DECODE), Worker("new", v1::PHASE_UNSPECIFIED),
      Worker("store", v1::PHASE_STORE)};
  workers[1].mutable_load()->set_draining(true);
  workers[2].set_report_age_s(6);
  EXPECT_THAT(ClusterFrom(workers, absl::Seconds(5)).nodes, SizeIs(1));
  EXPECT_THAT(RoutersFrom(workers, absl::Seconds(5)), ElementsAre(ElementsAre("r1")));
}

TEST(ClusterFrom, TellsWhatAWorkerDoesAndMayDo) {
  std::vector<v1::WorkerState> workers = {
      Worker("a", v1::PHASE_PREFILL), Worker("b", v1::PHASE_DECODE), Worker("c", v1::PHASE_MIXED)};
  workers[0].mutable_load()->set_changing_to(v1::PHASE_DECODE);
  workers[1].mutable_info()->set_phase_pinned(true);
  workers[2].mutable_load()->set_phase_unassigned(true);
  workers[2].mutable_load()->set_running(2);
  workers[2].mutable_load()->set_waiting(3);
  const planner::ClusterNow cluster = ClusterFrom(workers, absl::Seconds(5));
  ASSERT_THAT(cluster.nodes, SizeIs(3));
  EXPECT_EQ(cluster.nodes[0].phase, planner::Phase::kDecode);
  EXPECT_TRUE(cluster.nodes[0].changing);
  EXPECT_TRUE(cluster.nodes[0].movable);
  EXPECT_FALSE(cluster.nodes[1].movable);
  EXPECT_TRUE(cluster.nodes[1].assigned);
  EXPECT_FALSE(cluster.nodes[2].assigned);
  EXPECT_EQ(cluster.nodes[2].requests, 5u);
  EXPECT_EQ(cluster.kv_bytes_per_token, 1000);
}

TEST(ClusterFrom, TakesSpeedsAndLinksAsMeasured) {
  std::vector<v1::WorkerState> workers = {Worker("a", v1::PHASE_PREFILL),
                                          Worker("b", v1::PHASE_DECODE)};
  v1::LatencyModel& latency = *workers[0].mutable_load()->mutable_latency();
  latency.set_prefill_base_s(0.1);
  latency.set_prefill_samples(7);
  latency.set_decode_base_s(99);  // of no samples
  workers[0].mutable_info()->set_decode_sequences(3);
  workers[0].mutable_info()->set_decode_kv_tokens(1234);
  for (const char* from : {"a:1", "b:1", "elsewhere:1"}) {
    v1::LinkEstimate& link = *workers[1].mutable_load()->add_links();
    link.set_data_address(from);
    link.set_bytes_per_s(5e6);
    link.set_rtt_s(-1);
  }
  const planner::ClusterNow cluster = ClusterFrom(workers, absl::Seconds(5));
  const planner::WorkerSpeed& speed = cluster.nodes[0].speed;
  EXPECT_EQ(speed.latency.prefill.base_s, 0.1);
  EXPECT_EQ(speed.latency.saturation_tokens, 1u) << "none was told: never zero";
  EXPECT_LT(speed.latency.decode.base_s, 1);
  EXPECT_EQ(speed.latency.decode_samples, 0u);
  EXPECT_EQ(speed.max_sequences, 3u);
  EXPECT_EQ(speed.kv_capacity_tokens, 1234u);
  ASSERT_THAT(cluster.links, SizeIs(1)) << "neither to itself nor from nobody";
  EXPECT_EQ(cluster.links[0].from, 0u);
  EXPECT_EQ(cluster.links[0].to, 1u);
  EXPECT_EQ(cluster.links[0].link.bytes_per_s, 5e6);
  EXPECT_EQ(cluster.links[0].link.rtt_s, 0);
}

TEST(ClusterFrom, TakesTheSpeedThatIsUsualNotThatOfTheLastSeconds) {
  std::vector<v1::WorkerState> workers = {Worker("a", v1::PHASE_PREFILL)};
  v1::WorkerLoad& load = *workers[0].mutable_load();
  for (auto [latency, base_s] :
       {std::pair(load.mutable_latency(), 0.3), std::pair(load.mutable_usual_latency(), 0.1)}) {
    latency->set_prefill_base_s(base_s);
    latency->set_prefill_samples(7);
  }
  EXPECT_EQ(ClusterFrom(workers, absl::Seconds(5)).nodes[0].speed.latency.prefill.base_s, 0.1);
}

TEST(ToProto, TellsADecisionWithItsAge) {
  const planner::PlanDecision decision = {
      .at_s = 10,
      .outcome = planner::Outcome::kDryRun,
      .trigger = "t",
      .changes = {{.worker_id = "id", .name = "a", .to = planner::Phase::kDecode}},
      .wanted = "1 decode",
      .wanted_rps = 3};
  const v1::PlanDecision told = ToProto(decision, 14);
  EXPECT_EQ(told.age_s(), 4);
  EXPECT_EQ(told.outcome(), "dry_run");
  ASSERT_EQ(told.changes_size(), 1);
  EXPECT_EQ(told.changes(0).worker(), "a");
  EXPECT_EQ(told.changes(0).to(), v1::PHASE_DECODE);
  EXPECT_EQ(told.wanted(), "1 decode");
  EXPECT_THAT(told.reason(), IsEmpty());
}

}  // namespace
}  // namespace tandem::server
