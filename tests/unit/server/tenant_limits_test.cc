#include "server/tenant_limits.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace tandem::server {
namespace {

TEST(TenantLimitsTest, ReadsEveryLimit) {
  const auto parsed = ParseTenantLimits("alice  weight=2.5 rate=10 burst=20 running=8");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->first, "alice");
  EXPECT_DOUBLE_EQ(parsed->second.weight, 2.5);
  EXPECT_DOUBLE_EQ(parsed->second.requests_per_s, 10);
  EXPECT_DOUBLE_EQ(parsed->second.burst, 20);
  EXPECT_EQ(parsed->second.max_running, 8u);
}

TEST(TenantLimitsTest, ASecondsRequestsMayComeAtOnce) {
  EXPECT_DOUBLE_EQ(ParseTenantLimits("alice rate=10")->second.burst, 10);
  EXPECT_DOUBLE_EQ(ParseTenantLimits("alice rate=0.5")->second.burst, 1);
}

TEST(TenantLimitsTest, SaysWhatIsWrong) {
  for (const auto& [text, fault] : {std::pair("alice", "a limit"),
                                    {"", "a limit"},
                                    {"alice weight", "KEY=VALUE"},
                                    {"alice weight=0", "not a number from 0.01"},
                                    {"alice rate=nan", "rate is 'nan'"},
                                    {"alice speed=1", "no limit 'speed'"}}) {
    const auto parsed = ParseTenantLimits(text);
    ASSERT_FALSE(parsed.ok()) << text;
    EXPECT_THAT(std::string(parsed.status().message()), testing::HasSubstr(fault)) << text;
  }
}

}  // namespace
}  // namespace tandem::server
