// In which order prompts of several tenants are computed.
#include "scheduler/core/tenant_order.h"

#include <gtest/gtest.h>

#include <map>

namespace tandem::scheduler {
namespace {

TEST(TenantOrderTest, OneTenantsPromptsKeepTheirOrder) {
  TenantOrder order;
  double last = order.Enter("a", 100, 1, 0).tag;
  for (int i = 0; i < 100; ++i) {
    if (i % 3 == 0) order.Begin(last);
    const double tag = order.Enter("a", i % 7 == 0 ? 2000 : 10, 1, i).tag;
    EXPECT_GT(tag, last);
    last = tag;
  }
}

TEST(TenantOrderTest, ABurstGoesBeforeAFlood) {
  TenantOrder order;
  order.Begin(order.Enter("steady", 200, 1, 0).tag);
  for (int i = 0; i < 20; ++i) order.Begin(order.Enter("flood", 200, 1, 1).tag);
  const double next_of_flood = order.Enter("flood", 200, 1, 2).tag;
  for (double tokens = 0; tokens < TenantOrder::kCredit; tokens += 200) {
    EXPECT_LT(order.Enter("steady", 200, 1, 2).tag, next_of_flood);
  }
  order.Enter("steady", 200, 1, 2);
  EXPECT_GT(order.Enter("steady", 200, 1, 2).tag, next_of_flood) << "its credit is spent";
}

TEST(TenantOrderTest, ABurstGoesBeforeAFloodThatLeavesTheWorkerIdle) {
  TenantOrder order;
  for (int i = 0; i < 20; ++i) {
    order.Begin(order.Enter("flood", 400, 1, i).tag);
    if (i % 2 == 0) order.Begin(order.Enter("steady", 200, 1, i).tag);
    order.Idle(i + 0.5);
  }
  const double next_of_flood = order.Enter("flood", 200, 1, 20).tag;
  for (int i = 0; i < 5; ++i) EXPECT_LT(order.Enter("steady", 200, 1, 20).tag, next_of_flood);
}

TEST(TenantOrderTest, TenantsThatAlwaysHavePromptsShareByWeight) {
  TenantOrder order;
  std::map<std::string, double> weight = {{"one", 1}, {"three", 3}}, next, computed;
  for (const auto& [tenant, w] : weight) next[tenant] = order.Enter(tenant, 100, w, 0).tag;
  for (int i = 0; i < 4000; ++i) {
    const std::string turn = next["one"] <= next["three"] ? "one" : "three";
    order.Begin(next[turn]);
    computed[turn] += 100;
    next[turn] = order.Enter(turn, 100, weight[turn], 0.01 * i).tag;
  }
  EXPECT_NEAR(computed["three"] / computed["one"], 3, 0.05);
}

TEST(TenantOrderTest, WhoWasAloneAndLeftTheWorkerIdleIsAheadOfAFloodThatBegins) {
  TenantOrder order;
  double now_s = 0;
  for (int times = 0; times < 2; ++times) {
    for (const double end_s = now_s + 2 * TenantOrder::kAboutS; now_s < end_s; ++now_s) {
      order.Begin(order.Enter("steady", 200, 1, now_s).tag);
      order.Idle(now_s + 0.5);
    }
    const double flood = order.Enter("flood", 200, 1, now_s).tag;
    for (int i = 0; i < 5; ++i) EXPECT_LT(order.Enter("steady", 200, 1, now_s).tag, flood);
    order.Idle(now_s);
  }
}

TEST(TenantOrderTest, WhoIsNotAloneIsNotAheadOfAStranger) {
  TenantOrder order;
  order.Enter("other", 200, 1, 0);
  for (double now_s = 0; now_s < TenantOrder::kAboutS / 2; ++now_s) {
    order.Begin(order.Enter("steady", 200, 1, now_s).tag);
    order.Idle(now_s + 0.5);
  }
  EXPECT_EQ(order.Enter("stranger", 200, 1, 5).tag, order.Enter("steady", 200, 1, 5).tag);
}

TEST(TenantOrderTest, WhoHasHadItsShareYieldsWhileAnotherIsAbout) {
  TenantOrder order;
  const auto flood = [&order](double now_s) {
    const TenantOrder::Place place = order.Enter("flood", 200, 1, now_s);
    order.Begin(place.tag);
    return place.yields;
  };
  for (int i = 0; i < 20; ++i) EXPECT_FALSE(flood(1)) << "nobody else was ever here";
  order.Enter("steady", 200, 1, 2);
  for (int i = 0; i < 20; ++i) EXPECT_TRUE(flood(3));
  EXPECT_FALSE(order.Enter("steady", 200, 1, 4).yields) << "it has had less";
  EXPECT_TRUE(flood(5));
  EXPECT_FALSE(flood(4 + TenantOrder::kAboutS)) << "the other one has not been here for long";
}

TEST(TenantOrderTest, RemembersOnlyThoseWhoMatter) {
  TenantOrder order;
  for (int i = 0; i < 100'000; ++i) {
    order.Begin(order.Enter(std::to_string(i % 5000), 600, 1, 0.001 * i).tag);
  }
  EXPECT_LT(order.remembered(), 2048u);
}

}  // namespace
}  // namespace tandem::scheduler
