#include "server/decision_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace tandem::server {
namespace {

constexpr absl::Time kStart = absl::UnixEpoch();

v1::Decision Dispatch(uint32_t number) {
  v1::Decision decision;
  decision.set_dispatch(number);
  return decision;
}

TEST(DecisionLogTest, TellsARequestsDecisionsWithTheirAge) {
  DecisionLog log(10);
  log.Add("r", Dispatch(1), kStart);
  log.Add("other", Dispatch(1), kStart);
  log.Add("r", Dispatch(2), kStart + absl::Seconds(2));
  const auto found = log.Find("r", kStart + absl::Seconds(3));
  ASSERT_TRUE(found.ok());
  ASSERT_EQ(found->decisions_size(), 2);
  EXPECT_DOUBLE_EQ(found->decisions(0).age_s(), 3);
  EXPECT_EQ(found->decisions(1).dispatch(), 2u);
}

TEST(DecisionLogTest, ForgetsTheOldestRequest) {
  DecisionLog log(2);
  for (const char* id : {"a", "b", "c"}) log.Add(id, Dispatch(1), kStart);
  EXPECT_TRUE(absl::IsNotFound(log.Find("a", kStart).status()));
  EXPECT_THAT(std::string(log.Find("a", kStart).status().message()), testing::HasSubstr("last 2"));
  EXPECT_TRUE(log.Find("b", kStart).ok());
  EXPECT_TRUE(log.Find("c", kStart).ok());
}

TEST(DecisionLogTest, KeepsTheFirstAndTheLatestOfARequestThatGoesOnAndOn) {
  DecisionLog log(2);
  for (uint32_t i = 1; i <= 100; ++i) log.Add("r", Dispatch(i), kStart);
  const auto found = log.Find("r", kStart);
  ASSERT_TRUE(found.ok());
  EXPECT_LT(found->decisions_size(), 20);
  EXPECT_EQ(found->decisions(0).dispatch(), 1u);
  EXPECT_EQ(found->decisions(found->decisions_size() - 1).dispatch(), 100u);
}

}  // namespace
}  // namespace tandem::server
