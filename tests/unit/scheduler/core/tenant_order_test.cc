// In which order prompts of several tenants are computed.
#include "scheduler/core/tenant_order.h"

#include <gtest/gtest.h>

#include <map>

namespace tandem::scheduler {
namespace {

TEST(TenantOrderTest, OneTenantsPromptsKeepTheirOrder) {
  TenantOrder order;
  double last = order.Enter("a", 100, 1).tag;
  for (int i = 0; i < 100; ++i) {
    if (i % 3 == 0) order.Begin(last);
    const double tag = order.Enter("a", i % 7 == 0 ? 2000 : 10, 1).tag;
    EXPECT_GT(tag, last);
    last = tag;
  }
}

TEST(TenantOrderTest, AFewPromptsGoBeforeAFlood) {
  TenantOrder order;
  const double being_computed = order.Enter("flood", 200, 1).tag;
  order.Begin(being_computed);
  for (int i = 0; i < 20; ++i) order.Begin(order.Enter("flood", 200, 1).tag);
  const double next_of_flood = order.Enter("flood", 200, 1).tag;
  for (double tokens = 0; tokens < TenantOrder::kCredit; tokens += 200) {
    EXPECT_LT(order.Enter("steady", 200, 1).tag, next_of_flood);
  }
  order.Enter("steady", 200, 1);
  EXPECT_GT(order.Enter("steady", 200, 1).tag, next_of_flood) << "its credit is spent";
}

TEST(TenantOrderTest, TenantsThatAlwaysHavePromptsShareByWeight) {
  TenantOrder order;
  std::map<std::string, double> weight = {{"one", 1}, {"three", 3}}, next, computed;
  for (const auto& [tenant, w] : weight) next[tenant] = order.Enter(tenant, 100, w).tag;
  for (int i = 0; i < 4000; ++i) {
    const std::string turn = next["one"] <= next["three"] ? "one" : "three";
    order.Begin(next[turn]);
    computed[turn] += 100;
    next[turn] = order.Enter(turn, 100, weight[turn]).tag;
  }
  EXPECT_NEAR(computed["three"] / computed["one"], 3, 0.05);
}

TEST(TenantOrderTest, WhoComesAnewIsNotAheadOfWhoFoundTheWorkerIdle) {
  TenantOrder order;
  for (int i = 0; i < 10; ++i) {
    order.Idle();
    order.Begin(order.Enter("steady", 200, 1).tag);
  }
  EXPECT_LT(order.Enter("flood", 200, 1).tag, order.Enter("steady", 200, 1).tag);
  order.Idle();
  EXPECT_EQ(order.Enter("flood", 200, 1).tag, order.Enter("steady", 200, 1).tag);
}

TEST(TenantOrderTest, WhoHasHadItsShareYieldsWhileAnotherIsAbout) {
  TenantOrder order;
  const auto flood = [&order] {
    const TenantOrder::Place place = order.Enter("flood", 200, 1);
    order.Begin(place.tag);
    return place.yields;
  };
  for (int i = 0; i < 20; ++i) EXPECT_FALSE(flood()) << "nobody else was ever here";
  EXPECT_FALSE(order.Enter("steady", 200, 1).yields);
  for (uint32_t i = 1; i < TenantOrder::kExpected; ++i) EXPECT_TRUE(flood());
  EXPECT_TRUE(flood());
  EXPECT_FALSE(flood()) << "the other one has not been here for long";
}

TEST(TenantOrderTest, RemembersOnlyThoseWhoMatter) {
  TenantOrder order;
  for (int i = 0; i < 100'000; ++i) order.Begin(order.Enter(std::to_string(i % 5000), 600, 1).tag);
  EXPECT_LT(order.remembered(), 2048u);
}

}  // namespace
}  // namespace tandem::scheduler
