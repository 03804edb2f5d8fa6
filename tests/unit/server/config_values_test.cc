// Sizes, durations and addresses as text.
#include "server/config_values.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace tandem::server {
namespace {

TEST(ParseBytes, ReadsEveryUnit) {
  EXPECT_EQ(*ParseBytes("0"), 0u);
  EXPECT_EQ(*ParseBytes("4096"), 4096u);
  EXPECT_EQ(*ParseBytes("7B"), 7u);
  EXPECT_EQ(*ParseBytes("3KiB"), 3u << 10);
  EXPECT_EQ(*ParseBytes("64MiB"), 64u << 20);
  EXPECT_EQ(*ParseBytes("64 MiB"), 64u << 20);
  EXPECT_EQ(*ParseBytes("2Gi"), uint64_t{2} << 30);
  EXPECT_EQ(*ParseBytes("5TiB"), uint64_t{5} << 40);
  EXPECT_EQ(*ParseBytes("10kB"), 10'000u);
  EXPECT_EQ(*ParseBytes("10MB"), 10'000'000u);
  EXPECT_EQ(*ParseBytes("18446744073709551615"), UINT64_MAX);
}

TEST(ParseBytes, RefusesTheRest) {
  for (const char* text : {"", "MiB", "-1", "1.5GiB", "1 GiB B", "64mib", "1e3", "0x10", "١MiB",
                           "18446744073709551616", "18014398509481984KiB"}) {
    EXPECT_EQ(ParseBytes(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

TEST(FormatBytes, IsReadBack) {
  for (const uint64_t bytes : {uint64_t{0}, uint64_t{1}, uint64_t{1000}, uint64_t{1024},
                               uint64_t{1536}, uint64_t{3} << 30, uint64_t{1} << 50, UINT64_MAX}) {
    EXPECT_EQ(*ParseBytes(FormatBytes(bytes)), bytes);
  }
  EXPECT_EQ(FormatBytes(128 << 20), "128MiB");
}

TEST(ParseDuration, WantsAUnit) {
  EXPECT_EQ(*ParseDuration("250ms"), absl::Milliseconds(250));
  EXPECT_EQ(*ParseDuration("1.5s"), absl::Milliseconds(1500));
  EXPECT_EQ(*ParseDuration("1h30m"), absl::Minutes(90));
  EXPECT_EQ(*ParseDuration("0"), absl::ZeroDuration());
  for (const char* text : {"", "5", "-5s", "inf", "s", "5 s", "5parsecs"}) {
    EXPECT_EQ(ParseDuration(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

TEST(ParseHostPort, ReadsNamesAndBothAddressFamilies) {
  EXPECT_EQ(ParseHostPort("127.0.0.1:8470")->host, "127.0.0.1");
  EXPECT_EQ(ParseHostPort("127.0.0.1:8470")->port, 8470);
  EXPECT_EQ(ParseHostPort("[::1]:0")->host, "::1");
  EXPECT_EQ(ParseHostPort("router-0.router.svc:65535")->port, 65535);
}

TEST(ParseHostPort, SaysWhatIsWrong) {
  const auto fault = [](const char* text) {
    return std::string(ParseHostPort(text).status().message());
  };
  EXPECT_THAT(fault("localhost"), testing::HasSubstr("port is missing"));
  for (const char* text : {"a:", "a:x", "a:65536", "a:-1", "a:1 ", "a:+1"}) {
    EXPECT_THAT(fault(text), testing::HasSubstr("0 to 65535")) << text;
  }
  for (const char* text : {":1", "::1:80", "[::1:80", "[x]:80", "a b:1", "http://a:1"}) {
    EXPECT_THAT(fault(text), testing::HasSubstr("the host is neither")) << text;
  }
}

TEST(Loopback, IsToldFromTheRest) {
  for (const char* host : {"localhost", "127.0.0.1", "127.8.9.10", "::1"}) {
    EXPECT_TRUE(IsLoopback(host)) << host;
  }
  for (const char* host :
       {"0.0.0.0", "::", "10.0.0.1", "127.evil.example", "localhost.x", "1.27"}) {
    EXPECT_FALSE(IsLoopback(host)) << host;
  }
  EXPECT_TRUE(IsAnyAddress("0.0.0.0"));
  EXPECT_TRUE(IsAnyAddress("::"));
  EXPECT_FALSE(IsAnyAddress("127.0.0.1"));
}

}  // namespace
}  // namespace tandem::server
