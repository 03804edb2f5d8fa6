// A running cluster, written as the file that `tandem plan search` reads, and read again.
#include "cli/plan_cluster.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "tests/unit/planner/online_fixture.h"

namespace tandem::cli {
namespace {

using planner::ClusterNow;
using planner::Phase;
using planner::PlanTask;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

ClusterNow Cluster(size_t n) { return planner::TestCluster(std::vector<Phase>(n, Phase::kMixed)); }

PlanTask ThereAndBack(const ClusterNow& cluster) {
  const auto yaml = ClusterYaml(cluster);
  EXPECT_TRUE(yaml.ok()) << yaml.status();
  auto task = ParseCluster(*yaml, "c");
  EXPECT_TRUE(task.ok()) << task.status() << "\n" << *yaml;
  return *std::move(task);
}

/// The file tells no samples.
planner::WorkerSpeed WithoutSamples(planner::WorkerSpeed speed) {
  speed.latency.prefill_samples = speed.latency.decode_samples = 0;
  return speed;
}

TEST(ClusterYaml, IsReadAsItWasWritten) {
  ClusterNow cluster = Cluster(5);
  cluster.nodes[1].speed = planner::TestSpeed(4);
  cluster.nodes[1].speed.kv_capacity_tokens = 12'345;
  cluster.nodes[1].speed.max_sequences = 7;
  cluster.nodes[1].speed.prefill_sequences = 3;
  cluster.nodes[1].speed.step_tokens = 256;
  cluster.nodes[1].speed.latency.saturation_tokens = 192;
  cluster.nodes[1].speed.latency.decode.factor[2] = 1.5F;
  cluster.nodes[1].speed.latency.decode.factor[32] = 0.25F;
  for (planner::MeasuredLink& measured : cluster.links) {  // slow, and slower one way
    if (measured.to == 3) measured.link = {.bytes_per_s = 1e7, .rtt_s = 0.025};
    if (measured.from == 3) measured.link = {.bytes_per_s = 2e6, .rtt_s = 0.025};
  }
  const auto classes = planner::Classify(cluster);
  ASSERT_TRUE(classes);
  ASSERT_THAT(classes->class_of, ElementsAre(0, 1, 0, 2, 0));

  const PlanTask task = ThereAndBack(cluster);
  EXPECT_EQ(task.simulator.kv_bytes_per_token, cluster.kv_bytes_per_token);
  EXPECT_EQ(task.groups, 3u);
  EXPECT_EQ(task.links, classes->links);
  EXPECT_THAT(task.group_names, ElementsAre("w0+2", "w1", "w3"));
  ASSERT_EQ(task.classes.size(), 3u);
  for (size_t c = 0; c < 3; ++c) {
    EXPECT_EQ(task.classes[c].name, task.group_names[c]);
    EXPECT_EQ(task.classes[c].count, classes->classes[c].count);
    EXPECT_EQ(task.classes[c].group, c);
    EXPECT_EQ(task.classes[c].speed, WithoutSamples(classes->classes[c].speed));
  }
}

TEST(ClusterYaml, SaysWhoIsMeantAndWhatWasMeasured) {
  const std::string yaml = *ClusterYaml(Cluster(3));
  EXPECT_THAT(yaml, HasSubstr("# w0, w1, w2\n"));
  EXPECT_THAT(yaml, HasSubstr("# 3 workers; 6 of the 6 links between them were measured\n"));
  EXPECT_THAT(yaml, HasSubstr("{kind: w0+2, count: 3, group: w0+2}"));
  EXPECT_THAT(yaml, Not(HasSubstr("pairs:")));
  EXPECT_THAT(yaml, Not(HasSubstr("decode_factors")));
}

TEST(ClusterYaml, AnyNamesWillDo) {
  ClusterNow cluster = Cluster(6);
  const char* const names[] = {"same", "same", "null", "1e3", "a: [b]", "\a\n"};
  for (uint32_t i = 0; i < 6; ++i) {
    cluster.nodes[i].name = names[i];
    cluster.nodes[i].speed.kv_capacity_tokens = 1000 + i;  // a class each
  }
  EXPECT_THAT(ThereAndBack(cluster).group_names,
              ElementsAre("same", "same#1", "null", "1e3", "a: [b]", "worker"));
}

TEST(ClusterYaml, WhatIsOutOfRangeIsPutAtItsEnd) {
  ClusterNow cluster = Cluster(2);
  cluster.kv_bytes_per_token = 0;
  planner::WorkerSpeed& speed = cluster.nodes[0].speed;
  speed.latency.prefill.per_token_s = 0;
  speed.latency.decode.base_s = 0;
  speed.latency.decode.per_sequence_s = 1e9;
  speed.kv_capacity_tokens = std::numeric_limits<uint64_t>::max();
  speed.max_sequences = 100'000;
  cluster.links = {{.from = 0, .to = 1, .link = {.bytes_per_s = 1, .rtt_s = 100}}};
  const PlanTask task = ThereAndBack(cluster);
  EXPECT_EQ(task.simulator.kv_bytes_per_token, 1);
  EXPECT_EQ(task.classes[0].speed.latency.prefill.per_token_s, 1e-9);
  EXPECT_EQ(task.classes[0].speed.latency.decode.per_sequence_s, 10);
  EXPECT_EQ(task.classes[0].speed.kv_capacity_tokens, 1'000'000'000'000u);
  EXPECT_EQ(task.classes[0].speed.max_sequences, 4096u);
  EXPECT_EQ(task.links[1].bytes_per_s, 1e3);
  EXPECT_EQ(task.links[1].rtt_s, 10);
}

TEST(ClusterYaml, NothingIsMadeUp) {
  EXPECT_EQ(ClusterYaml(ClusterNow()).status().message(), "there is no worker");
  ClusterNow cluster = Cluster(2);
  for (planner::Node& node : cluster.nodes) node.speed.latency.decode_samples = 0;
  EXPECT_TRUE(absl::IsFailedPrecondition(ClusterYaml(cluster).status()));
}

}  // namespace
}  // namespace tandem::cli
