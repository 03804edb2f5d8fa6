// What the peer's search tries, and what it prefers.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "scheduler/planner/compat/builtin_profile.h"
#include "scheduler/planner/compat/placement_search.h"

namespace tandem::planner::compat {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

ModelProfile Model() {
  ModelProfile model;
  model.layers = 4;
  model.heads = 2;
  const StageCosts costs = {
      .prefill = {.a = 10}, .decode_small = {.a = 5}, .decode_large = {.a = 5}};
  model.distserve = {{1, costs}, {2, costs}};
  model.max_tokens = {{{1, 1}, 1000}, {{1, 2}, 1000}, {{2, 1}, 1000}};
  return model;
}

TEST(EnumerateConfigs, HighAffinitySpansNodes) {
  const auto configs =
      EnumerateConfigs(Model(), {.nodes = 3, .gpus_per_node = 1, .high_affinity = true});
  ASSERT_TRUE(configs.ok()) << configs.status();
  EXPECT_THAT(*configs, ElementsAre(JointConfig{1, 1, 1, 1, 1}, JointConfig{1, 1, 1, 1, 2},
                                    JointConfig{1, 1, 1, 2, 1}, JointConfig{1, 1, 2, 1, 1},
                                    JointConfig{1, 2, 1, 1, 1}));
}

TEST(EnumerateConfigs, LowAffinityCutsBothOverNodes) {
  const auto configs =
      EnumerateConfigs(Model(), {.nodes = 3, .gpus_per_node = 3, .high_affinity = false});
  ASSERT_TRUE(configs.ok()) << configs.status();
  // Three segments do not divide four layers; two stages in two segments do.
  EXPECT_THAT(*configs, ElementsAre(JointConfig{1, 1, 1, 1, 1}, JointConfig{1, 1, 1, 1, 2},
                                    JointConfig{1, 1, 1, 2, 1}, JointConfig{1, 1, 2, 1, 1},
                                    JointConfig{1, 2, 1, 1, 1}, JointConfig{2, 1, 1, 1, 1},
                                    JointConfig{2, 1, 1, 1, 2}, JointConfig{2, 1, 1, 2, 1},
                                    JointConfig{2, 1, 2, 1, 1}, JointConfig{2, 2, 1, 1, 1}));
}

TEST(EnumerateConfigs, RefusesWhatItCannotKnow) {
  EXPECT_THAT(EnumerateConfigs({}, {}).status().message(), HasSubstr("layers and heads"));
  EXPECT_THAT(EnumerateConfigs(Model(), {.nodes = 5000, .gpus_per_node = 8}).status().message(),
              HasSubstr("5000 nodes of 8 GPUs"));
}

TEST(SearchPlacement, PrefersFewerGpusAmongEqualsAndSkipsTheUnknown) {
  const SearchTask task{.nodes = 1,
                        .gpus_per_node = 4,
                        .slo = {.ttft_ms = 1000, .tpot_ms = 1000},
                        .max_per_gpu_rate = 1,
                        .eps = 0.5};
  const std::vector<ScalableRequest> requests(
      3, {.unit_gap_s = 1, .prompt_tokens = 10, .output_tokens = 2});
  const auto result = SearchPlacement(Model(), task, requests);
  ASSERT_TRUE(result.ok()) << result.status();
  ASSERT_TRUE(result->best);
  const SearchedConfig& best = result->configs[*result->best];
  EXPECT_EQ(best.config, (JointConfig{1, 1, 1, 1, 1})) << "every one passes at every rate";
  EXPECT_EQ(best.goodput->best_per_gpu_rate, 0.5);
  for (const SearchedConfig& searched : result->configs) {
    const bool known = searched.config.tp_prefill * searched.config.pp_prefill <= 2 &&
                       searched.config.tp_decode * searched.config.pp_decode <= 2;
    EXPECT_EQ(searched.goodput.has_value(), known);
    EXPECT_EQ(searched.skipped.empty(), known);
  }
}

TEST(SearchPlacement, SkipsWhatCannotRunARequest) {
  ModelProfile model = Model();
  model.max_tokens[{1, 1}] = 5;
  const SearchTask task{
      .nodes = 1, .gpus_per_node = 3, .slo = {1000, 1000}, .max_per_gpu_rate = 1, .eps = 0.5};
  const std::vector<ScalableRequest> requests = {{.prompt_tokens = 10, .output_tokens = 2}};
  const auto result = SearchPlacement(model, task, requests);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->configs[0].skipped, HasSubstr("can never run"));
  ASSERT_TRUE(result->best);
  EXPECT_EQ(result->configs[*result->best].config, (JointConfig{1, 1, 2, 1, 1}));
}

TEST(RunAlgorithm1, TriesWhatFitsAndHasAProfile) {
  const SearchTask task{.nodes = 1,
                        .gpus_per_node = 2,
                        .slo = {.ttft_ms = 1000, .tpot_ms = 1000},
                        .max_per_gpu_rate = 8,
                        .eps = 4,
                        .traffic_rps = 10};
  const std::vector<ScalableRequest> requests(
      3, {.unit_gap_s = 1, .prompt_tokens = 10, .output_tokens = 2});
  const auto result = RunAlgorithm1(Model(), task, requests);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->configs.size(), 3u);
  EXPECT_EQ(result->plan.prefill.parallelism, (Parallelism{1, 1}));
  EXPECT_EQ(result->plan.prefill.instances, 3) << "4 rps each";
}

TEST(GoodputCriteria, PercentilesAreStrictSharesAreNot) {
  Placement placement{.costs = {.prefill = {.a = 10}, .decode_small = {.a = 5}},
                      .limits = {.prefill_tokens = 100, .decode_requests = 10}};
  const std::vector<ScalableRequest> one = {{.prompt_tokens = 1, .output_tokens = 1}};
  const auto alone = Simulate(placement, AtRate(one, 1));
  ASSERT_TRUE(alone.ok());
  const GoodputTask task{.placement = placement,
                         .slo = {alone->latencies.ttft_ms[0], alone->latencies.tpot_ms[0]},
                         .max_per_gpu_rate = 2,
                         .eps = 1};
  EXPECT_EQ(FindGoodput(task, one, Criterion::kPerPhasePercentile)->best_per_gpu_rate, 0);
  EXPECT_EQ(FindGoodput(task, one, Criterion::kJointAttainment)->best_per_gpu_rate, 1);
}

TEST(BuiltinPeerProfile, KnowsThePeersModels) {
  const auto profile = ParsePeerProfile(BuiltinPeerProfile());
  ASSERT_TRUE(profile.ok()) << profile.status();
  EXPECT_EQ(profile->at("facebook/opt-13b").MaxTokens(1, 1), 66144);
  EXPECT_EQ(profile->at("facebook/opt-66b").MaxTokens(1, 1), std::nullopt);
  EXPECT_EQ(profile->at("facebook/opt-66b").heads, 72);
  EXPECT_TRUE(profile->at("facebook/opt-175b").vllm.contains(8));
}

}  // namespace
}  // namespace tandem::planner::compat
