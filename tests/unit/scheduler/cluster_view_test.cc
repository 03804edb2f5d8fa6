#include "scheduler/cluster_view.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

namespace tandem::scheduler {
namespace {

using testing::HasSubstr;

constexpr absl::Time kStart = absl::UnixEpoch();

v1::WorkerInfo Info(const std::string& id, v1::Phase phase) {
  v1::WorkerInfo info;
  info.set_worker_id(id);
  info.set_name(id);
  info.set_phase(phase);
  return info;
}

v1::WorkerLoad Load(uint32_t running, uint32_t waiting) {
  v1::WorkerLoad load;
  load.set_running(running);
  load.set_waiting(waiting);
  return load;
}

class ClusterViewTest : public testing::Test {
 protected:
  std::string ChosenPrefill() {
    auto pair = view_.Assign(kStart);
    EXPECT_TRUE(pair.ok()) << pair.status();
    return pair.ok() ? pair->prefill.worker_id() : "";
  }
  ClusterView view_{absl::Seconds(5)};
};

TEST_F(ClusterViewTest, NamesThePhaseThatIsMissing) {
  EXPECT_THAT(std::string(view_.Assign(kStart).status().message()), HasSubstr("no prefill worker"));
  view_.Add(Info("p", v1::PHASE_PREFILL), kStart);
  EXPECT_THAT(std::string(view_.Assign(kStart).status().message()), HasSubstr("no decode worker"));
  EXPECT_FALSE(view_.Ready(kStart));
  view_.Add(Info("d", v1::PHASE_DECODE), kStart);
  EXPECT_TRUE(view_.Ready(kStart));
  EXPECT_TRUE(view_.Assign(kStart).ok());
}

TEST_F(ClusterViewTest, EqualsTakeTurns) {
  view_.Add(Info("d", v1::PHASE_DECODE), kStart);
  for (const char* id : {"a", "b", "c"}) view_.Add(Info(id, v1::PHASE_PREFILL), kStart);
  std::map<std::string, int> chosen;
  for (int i = 0; i < 30; ++i) ++chosen[ChosenPrefill()];
  EXPECT_THAT(chosen, testing::UnorderedElementsAre(testing::Pair("a", 10), testing::Pair("b", 10),
                                                    testing::Pair("c", 10)));
}

TEST_F(ClusterViewTest, TheLeastLoadedIsChosenByReportOrByOwnCount) {
  view_.Add(Info("d", v1::PHASE_DECODE), kStart);
  view_.Add(Info("busy", v1::PHASE_PREFILL), kStart);
  view_.Add(Info("idle", v1::PHASE_PREFILL), kStart);
  view_.Report("busy", Load(1, 2), kStart);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(ChosenPrefill(), "idle");
  // No report has come, but this router knows what it has sent there: now both have three.
  EXPECT_EQ(ChosenPrefill(), "busy");
  for (int i = 0; i < 3; ++i) view_.Release("idle");
  EXPECT_EQ(ChosenPrefill(), "idle");
}

TEST_F(ClusterViewTest, DrainingAndSilentWorkersAreNotChosen) {
  view_.Add(Info("d", v1::PHASE_DECODE), kStart);
  view_.Add(Info("p", v1::PHASE_PREFILL), kStart);
  v1::WorkerLoad draining;
  draining.set_draining(true);
  view_.Report("p", draining, kStart);
  EXPECT_FALSE(view_.Assign(kStart).ok());
  view_.Report("p", Load(0, 0), kStart);
  EXPECT_TRUE(view_.Assign(kStart).ok());
  EXPECT_EQ(view_.Usable(v1::PHASE_PREFILL, kStart + absl::Seconds(5)), 1u);
  EXPECT_EQ(view_.Usable(v1::PHASE_PREFILL, kStart + absl::Seconds(5.1)), 0u);
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
  ASSERT_TRUE(view_.Assign(kStart).ok());
  const auto states = view_.List(kStart + absl::Seconds(2));
  ASSERT_EQ(states.size(), 2u);
  EXPECT_EQ(states[0].info().name(), "a");
  EXPECT_EQ(states[0].assigned(), 1u);
  EXPECT_DOUBLE_EQ(states[0].report_age_s(), 2);
  view_.Release("gone");  // no worker, no harm
}

}  // namespace
}  // namespace tandem::scheduler
