#include "scheduler/cluster_view.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <map>
#include <set>

namespace tandem::scheduler {
namespace {

using testing::HasSubstr;

constexpr absl::Time kStart = absl::UnixEpoch();
constexpr uint32_t kChunk = 256;

v1::WorkerInfo Info(const std::string& id, v1::Phase phase) {
  v1::WorkerInfo info;
  info.set_worker_id(id);
  info.set_name("name of " + id);
  info.set_phase(phase);
  info.set_data_address(id + ":1");
  info.set_max_sequences(8);
  info.set_kv_capacity_tokens(16384);
  info.set_kv_bytes_per_token(1000);
  info.set_chunk_tokens(kChunk);
  info.set_kv_namespace("kv");
  return info;
}

v1::WorkerLoad Prefilling(uint64_t tokens_to_compute) {
  v1::WorkerLoad load;
  load.mutable_prefill()->set_running(1);
  load.mutable_prefill()->set_tokens_to_compute(tokens_to_compute);
  return load;
}

v1::WorkerLoad Decoding(uint32_t running, uint64_t steps) {
  v1::WorkerLoad load;
  load.mutable_decode()->set_running(running);
  load.set_steps(steps);
  return load;
}

Placement Prompt(uint32_t tokens) { return {.prompt_tokens = tokens, .max_tokens = 100}; }

class ClusterViewTest : public testing::Test {
 protected:
  std::string ChosenPrefill(const Placement& what) {
    auto pair = view_.Assign(what, kStart);
    EXPECT_TRUE(pair.ok()) << pair.status();
    if (!pair.ok()) return "";
    view_.ReleasePrefill(pair->assignment);
    view_.ReleaseDecode(pair->assignment);
    return pair->prefill.worker_id();
  }
  ChunkDirectory directory_;
  ClusterView view_{
      {.worker_timeout = absl::Seconds(5), .stall_timeout = absl::Seconds(10), .seed = 1},
      &directory_};
};

TEST_F(ClusterViewTest, NamesThePhaseThatIsMissing) {
  EXPECT_THAT(std::string(view_.Assign(Prompt(10), kStart).status().message()),
              HasSubstr("no prefill worker"));
  view_.Add(Info("p", v1::PHASE_PREFILL), kStart);
  EXPECT_THAT(std::string(view_.Assign(Prompt(10), kStart).status().message()),
              HasSubstr("no decode worker"));
  EXPECT_FALSE(view_.Ready(kStart));
  view_.Add(Info("d", v1::PHASE_DECODE), kStart);
  EXPECT_TRUE(view_.Ready(kStart));
  EXPECT_TRUE(view_.Assign(Prompt(10), kStart).ok());
}

TEST_F(ClusterViewTest, EqualsShareTheWork) {
  view_.Add(Info("d", v1::PHASE_DECODE), kStart);
  for (const char* id : {"a", "b", "c"}) view_.Add(Info(id, v1::PHASE_PREFILL), kStart);
  std::map<std::string, int> chosen;
  for (int i = 0; i < 300; ++i) ++chosen[ChosenPrefill(Prompt(10))];
  for (const char* id : {"a", "b", "c"}) EXPECT_NEAR(chosen[id], 100, 30) << id;
}

TEST_F(ClusterViewTest, TheLeastWorkQueuedIsChosenByReportOrByOwnCount) {
  view_.Add(Info("d", v1::PHASE_DECODE), kStart);
  view_.Add(Info("busy", v1::PHASE_PREFILL), kStart);
  view_.Add(Info("idle", v1::PHASE_PREFILL), kStart);
  view_.Report("busy", Prefilling(3000), kStart);
  std::vector<AssignmentId> assigned;
  for (int i = 0; i < 3; ++i) {
    auto pair = view_.Assign(Prompt(1000), kStart);
    ASSERT_TRUE(pair.ok());
    EXPECT_EQ(pair->prefill.worker_id(), "idle") << i;
    assigned.push_back(pair->assignment);
  }
  // No report has come, but this router knows what it has sent there.
  EXPECT_NEAR(view_.Predict(Prompt(1000), kStart)->steps_ahead, 3000.0 / 512, 0.1);
  auto pair = view_.Assign(Prompt(100), kStart);
  ASSERT_TRUE(pair.ok());
  assigned.push_back(pair->assignment);
  for (const AssignmentId id : assigned) {
    view_.ReleasePrefill(id);
    view_.ReleaseDecode(id);
    view_.ReleaseDecode(id);  // more than once does no harm
  }
  EXPECT_EQ(view_.assignments(), 0u);
  EXPECT_EQ(ChosenPrefill(Prompt(1000)), "idle");
}

TEST_F(ClusterViewTest, DrainingAndSilentWorkersAreNotChosen) {
  view_.Add(Info("d", v1::PHASE_DECODE), kStart);
  view_.Add(Info("p", v1::PHASE_PREFILL), kStart);
  v1::WorkerLoad draining;
  draining.set_draining(true);
  view_.Report("p", draining, kStart);
  EXPECT_FALSE(view_.Assign(Prompt(10), kStart).ok());
  view_.Report("p", Prefilling(0), kStart);
  EXPECT_TRUE(view_.Assign(Prompt(10), kStart).ok());
  EXPECT_EQ(view_.Usable(v1::PHASE_PREFILL, kStart + absl::Seconds(5)), 1u);
  EXPECT_EQ(view_.Usable(v1::PHASE_PREFILL, kStart + absl::Seconds(5.1)), 0u);
  EXPECT_FALSE(view_.Assign(Prompt(10), kStart + absl::Seconds(5.1)).ok());
}

TEST_F(ClusterViewTest, ALateRemovalDoesNotTakeANewRegistrationAway) {
  const uint64_t first = view_.Add(Info("p", v1::PHASE_PREFILL), kStart);
  const uint64_t second = view_.Add(Info("p", v1::PHASE_PREFILL), kStart);
  view_.Remove("p", first);
  EXPECT_EQ(view_.Usable(v1::PHASE_PREFILL, kStart), 1u);
  view_.Remove("p", second);
  EXPECT_EQ(view_.Usable(v1::PHASE_PREFILL, kStart), 0u);
}

TEST_F(ClusterViewTest, ListsByNameWithAgeAndAssignments) {
  view_.Add(Info("z", v1::PHASE_PREFILL), kStart);
  view_.Add(Info("a", v1::PHASE_DECODE), kStart);
  const auto pair = view_.Assign(Prompt(10), kStart);
  ASSERT_TRUE(pair.ok());
  const auto states = view_.List(kStart + absl::Seconds(2));
  ASSERT_EQ(states.size(), 2u);
  EXPECT_EQ(states[0].info().name(), "name of a");
  EXPECT_EQ(states[0].assigned(), 1u);
  EXPECT_DOUBLE_EQ(states[0].report_age_s(), 2);
}

TEST_F(ClusterViewTest, TellsOnceOfAWorkerThatFellSilent) {
  view_.Add(Info("p", v1::PHASE_PREFILL), kStart);
  EXPECT_TRUE(view_.Lost(kStart + absl::Seconds(5)).empty());
  const auto lost = view_.Lost(kStart + absl::Seconds(6));
  ASSERT_EQ(lost.size(), 1u);
  EXPECT_EQ(lost[0].worker_id, "p");
  EXPECT_THAT(lost[0].reason, HasSubstr("not reported for 6s"));
  EXPECT_TRUE(view_.Lost(kStart + absl::Seconds(7)).empty());
  view_.Report("p", {}, kStart + absl::Seconds(8));
  EXPECT_EQ(view_.Lost(kStart + absl::Seconds(14)).size(), 1u);
}

TEST_F(ClusterViewTest, AWorkerThatHasWorkAndMakesNoStepIsLost) {
  view_.Add(Info("d", v1::PHASE_DECODE), kStart);
  for (int s = 0; s <= 10; ++s) view_.Report("d", Decoding(2, 7), kStart + absl::Seconds(s));
  EXPECT_TRUE(view_.Lost(kStart + absl::Seconds(10)).empty());
  view_.Report("d", Decoding(2, 7), kStart + absl::Seconds(11));
  const auto lost = view_.Lost(kStart + absl::Seconds(11));
  ASSERT_EQ(lost.size(), 1u);
  EXPECT_THAT(lost[0].reason, HasSubstr("no step for 11s"));
  EXPECT_EQ(view_.Usable(v1::PHASE_DECODE, kStart + absl::Seconds(11)), 0u);
  // It goes on after all.
  view_.Report("d", Decoding(2, 8), kStart + absl::Seconds(12));
  EXPECT_EQ(view_.Usable(v1::PHASE_DECODE, kStart + absl::Seconds(12)), 1u);
  // Without work there is no progress to be missed.
  for (int s = 13; s < 40; ++s) view_.Report("d", Decoding(0, 8), kStart + absl::Seconds(s));
  EXPECT_TRUE(view_.Lost(kStart + absl::Seconds(40)).empty());
  view_.Report("d", Decoding(1, 8), kStart + absl::Seconds(40));
  EXPECT_TRUE(view_.Lost(kStart + absl::Seconds(41)).empty());
}

TEST_F(ClusterViewTest, AWorkerThatChangesItsPhaseTakesWhatBothPhasesTake) {
  view_.Add(Info("p", v1::PHASE_PREFILL), kStart);
  view_.Add(Info("x", v1::PHASE_MIXED), kStart);
  v1::WorkerLoad load;
  load.set_phase(v1::PHASE_MIXED);
  load.set_changing_to(v1::PHASE_DECODE);
  view_.Report("x", load, kStart);
  std::set<std::string> prefills;
  for (int i = 0; i < 50; ++i) prefills.insert(ChosenPrefill(Prompt(10)));
  EXPECT_THAT(prefills, testing::ElementsAre("p"));
  load.set_phase(v1::PHASE_DECODE);
  load.set_changing_to(v1::PHASE_PREFILL);
  view_.Report("x", load, kStart);
  EXPECT_THAT(std::string(view_.Assign(Prompt(10), kStart).status().message()),
              HasSubstr("no decode worker"));
}

TEST_F(ClusterViewTest, CachedChunksAttractUntilTheQueueCostsMore) {
  view_.Add(Info("d", v1::PHASE_DECODE), kStart);
  std::vector<kvstore::ChunkId> ids(8);
  for (size_t i = 0; i < ids.size(); ++i) ids[i].bytes[0] = static_cast<uint8_t>(i + 1);
  for (const char* id : {"a", "b"}) {
    view_.Add(Info(id, v1::PHASE_PREFILL), kStart);
    v1::ChunkEvents events;
    events.set_snapshot(true);
    events.set_first_sequence(1);
    if (id[0] == 'b') {
      for (const kvstore::ChunkId& chunk : ids) {
        events.mutable_entries()->append(reinterpret_cast<const char*>(chunk.bytes.data()), 8);
        events.mutable_entries()->push_back(1);
      }
    }
    ASSERT_TRUE(directory_.Apply(id, events));
    view_.Report(id, Prefilling(0), kStart);
  }
  Placement what = Prompt(8 * kChunk + 50);
  what.chunk_ids = ids;
  for (int i = 0; i < 20; ++i) EXPECT_EQ(ChosenPrefill(what), "b");
  const auto pair = view_.Assign(what, kStart);
  ASSERT_TRUE(pair.ok());
  EXPECT_EQ(pair->decision.candidates(0).cached_tokens(), 8 * kChunk);
  EXPECT_TRUE(pair->decision.candidates(0).chosen());
  EXPECT_EQ(pair->decision.candidates(0).prefill_worker(), "name of b");
  view_.Report("b", Prefilling(100000), kStart);
  EXPECT_EQ(ChosenPrefill(what), "a");
}

TEST_F(ClusterViewTest, ASequenceThatMovesGoesToAnotherDecodeWorker) {
  view_.Add(Info("d", v1::PHASE_DECODE), kStart);
  view_.Add(Info("e", v1::PHASE_DECODE), kStart);
  Placement what = Prompt(300);
  what.kv_address = "d:1";
  for (int i = 0; i < 20; ++i) {
    const auto pair = view_.Assign(what, kStart);
    ASSERT_TRUE(pair.ok()) << pair.status();
    EXPECT_EQ(pair->prefill.worker_id(), "d");
    EXPECT_EQ(pair->decode.worker_id(), "e");
    view_.ReleaseDecode(pair->assignment);
  }
  EXPECT_EQ(view_.assignments(), 0u);
  what.kv_address = "nobody:1";
  EXPECT_EQ(view_.Assign(what, kStart)->prefill.worker_id(), "");
}

TEST_F(ClusterViewTest, APairThatKvDidNotPassIsAvoidedForAWhile) {
  view_.Add(Info("p", v1::PHASE_PREFILL), kStart);
  view_.Add(Info("d", v1::PHASE_DECODE), kStart);
  view_.Add(Info("e", v1::PHASE_DECODE), kStart);
  view_.AvoidPair("p", "d", kStart);
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(view_.Assign(Prompt(10), kStart)->decode.worker_id(), "e");
  }
  view_.Report("d", {}, kStart + absl::Seconds(31));
  view_.Report("p", {}, kStart + absl::Seconds(31));
  EXPECT_EQ(view_.Assign(Prompt(10), kStart + absl::Seconds(31))->decode.worker_id(), "d");
}

TEST_F(ClusterViewTest, AMeasuredLinkIsPreferred) {
  view_.Add(Info("p", v1::PHASE_PREFILL), kStart);
  for (const char* id : {"slow", "fast"}) {
    view_.Add(Info(id, v1::PHASE_DECODE), kStart);
    v1::WorkerLoad load;
    v1::LinkEstimate& link = *load.add_links();
    link.set_data_address("p:1");
    link.set_bytes_per_s(id[0] == 'f' ? 1e8 : 1e6);
    view_.Report(id, load, kStart);
  }
  for (int i = 0; i < 20; ++i) {
    const auto pair = view_.Assign(Prompt(1000), kStart);
    ASSERT_TRUE(pair.ok()) << pair.status();
    EXPECT_EQ(pair->decode.worker_id(), "fast");
    view_.ReleasePrefill(pair->assignment);
    view_.ReleaseDecode(pair->assignment);
  }
}

TEST_F(ClusterViewTest, AWorkerThatHasMeasuredNothingIsTakenForOneLikeTheOthers) {
  view_.Add(Info("d", v1::PHASE_DECODE), kStart);
  view_.Add(Info("p", v1::PHASE_PREFILL), kStart);
  v1::WorkerLoad load;
  load.mutable_latency()->set_prefill_samples(100);
  load.mutable_latency()->set_prefill_per_token_s(0.01);
  load.mutable_latency()->set_saturation_tokens(128);
  view_.Report("p", load, kStart);
  view_.Add(Info("new", v1::PHASE_PREFILL), kStart);
  std::map<std::string, int> chosen;
  for (int i = 0; i < 100; ++i) ++chosen[ChosenPrefill(Prompt(100))];
  EXPECT_GT(chosen["p"], 20);
  EXPECT_GT(chosen["new"], 20);
  EXPECT_NEAR(view_.Predict(Prompt(100), kStart)->ttft_s, 1, 0.01);
}

TEST(ModelFromTest, BatchesHaveFactorsOfTheirOwn) {
  v1::LatencyModel told;
  told.set_decode_samples(10);
  told.set_decode_base_s(0.001);
  for (const float factor : {1.0F, 1.8F, std::numeric_limits<float>::quiet_NaN(), 1e9F}) {
    told.add_decode_factors(factor);
  }
  const DecodeCost cost = ModelFrom(told, {}).decode;
  EXPECT_NEAR(cost.StepSeconds(1, 0), 0.001, 1e-9);
  EXPECT_NEAR(cost.StepSeconds(2, 0), 0.0018, 1e-9);
  EXPECT_NEAR(cost.StepSeconds(3, 0), 0.001, 1e-9) << "no number";
  EXPECT_NEAR(cost.StepSeconds(4, 0), 0.001, 1e-9) << "out of bounds";
  EXPECT_NEAR(cost.StepSeconds(5, 0), 0.001, 1e-9);
  for (int i = 0; i < 100; ++i) told.add_decode_factors(2);
  EXPECT_EQ(ModelFrom(told, {}).decode.factor.size(), DecodeCost::kFactors) << "too many";
}

}  // namespace
}  // namespace tandem::scheduler
