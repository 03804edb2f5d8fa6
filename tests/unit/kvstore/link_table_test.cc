// What is made of measurements: estimates, confidence, oddities; when bytes arrived; the probes'
// budget.
#include "kvstore/transfer/link_table.h"

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "kvstore/transfer/probe_budget.h"

namespace tandem::kvstore {
namespace {

constexpr uint64_t kMB = 1'000'000;
const std::string kA = "a:1";

class LinkTableTest : public testing::Test {
 protected:
  /// A second of traffic at that rate, `after` the last.
  void Measure(double mb_per_s, absl::Duration after = absl::Seconds(1)) {
    now_ += after;
    EXPECT_TRUE(links_.AddRate(kA, {static_cast<uint64_t>(mb_per_s * kMB), 1}, now_));
  }
  LinkEstimate Get() const { return links_.Get(kA, now_); }
  double MbPerS() const { return Get().bytes_per_s / kMB; }

  LinkTable links_;
  absl::Time now_ = absl::UnixEpoch();
};

TEST_F(LinkTableTest, OneOddPullDoesNotMoveTheEstimate) {
  for (int i = 0; i < 4; ++i) Measure(10);
  Measure(1000);
  Measure(0.01);
  EXPECT_DOUBLE_EQ(MbPerS(), 10);
  EXPECT_EQ(Get().samples, 6u);
  EXPECT_EQ(Get().measured, now_);
}

TEST_F(LinkTableTest, FollowsALinkThatHasChanged) {
  for (int i = 0; i < 100; ++i) Measure(10, absl::Milliseconds(100));
  const absl::Time changed = now_;
  while (MbPerS() > 2) Measure(2, absl::Milliseconds(100));
  EXPECT_LT(now_ - changed, absl::Seconds(5));
}

TEST_F(LinkTableTest, OfFewTheNewestCounts) {
  for (int i = 0; i < 5; ++i) Measure(10, absl::Seconds(8));
  Measure(2, absl::Seconds(8));
  EXPECT_DOUBLE_EQ(MbPerS(), 2);
}

TEST_F(LinkTableTest, WhatWasShortTellsNothing) {
  EXPECT_FALSE(links_.AddRate(kA, {kMB, LinkTable::kLeastSeconds / 2}, now_));
  EXPECT_FALSE(links_.AddRate(kA, {0, 1}, now_));
  EXPECT_EQ(links_.List(now_).size(), 0u);
  EXPECT_EQ(links_.RateMeasured(kA), absl::InfinitePast());
  // Less than two round trips: TCP has not found its pace.
  links_.AddRtt(kA, 0.1, now_);
  EXPECT_FALSE(links_.AddRate(kA, {kMB, 0.15}, now_));
  EXPECT_TRUE(links_.AddRate(kA, {kMB, 0.25}, now_));
  EXPECT_EQ(links_.RateMeasured(kA), now_);
}

TEST_F(LinkTableTest, ChunksOfSeveralPullsTellTogether) {
  // A third of 1 MB at 2 GB/s: none by itself takes long enough.
  const Timed part = {330'000, 165e-6};
  int n = 0;
  while (!links_.AddPart(kA, part, now_)) {
    now_ += absl::Milliseconds(100);
    ASSERT_LT(++n, 20);
  }
  EXPECT_NEAR(MbPerS(), 2000, 1);
  EXPECT_EQ(Get().samples, 1u);
  // What came long ago is not added to.
  EXPECT_FALSE(links_.AddPart(kA, {kMB, 0.9 * LinkTable::kLeastSeconds}, now_));
  now_ += absl::Minutes(2);
  EXPECT_FALSE(links_.AddPart(kA, part, now_));
  EXPECT_FALSE(links_.AddPart(kA, {0, 1}, now_));
}

TEST_F(LinkTableTest, ConfidenceGrowsWithAgreementAndFadesWithAge) {
  EXPECT_EQ(Get().confidence, 0);
  Measure(10);
  EXPECT_DOUBLE_EQ(Get().confidence, 0.8);
  for (int i = 0; i < 20; ++i) Measure(i % 2 == 0 ? 10 : 10.5);
  const double agreed = Get().confidence;
  EXPECT_GT(agreed, 0.9);
  EXPECT_NEAR(links_.Get(kA, now_ + absl::Minutes(1)).confidence, agreed / 2, 1e-9);
  for (int i = 0; i < 20; ++i) Measure(i % 2 == 0 ? 5 : 10);
  EXPECT_LT(Get().confidence, 0.7);
}

TEST_F(LinkTableTest, TheRoundTripIsTheLeastOfTheLastThree) {
  links_.OfferRtt(kA, 0.5, now_);
  EXPECT_DOUBLE_EQ(Get().rtt_s, 0.5);
  for (const double rtt : {0.02, 0.03, 0.02}) links_.AddRtt(kA, rtt, now_);
  EXPECT_DOUBLE_EQ(Get().rtt_s, 0.02);
  links_.OfferRtt(kA, 0.001, now_);
  EXPECT_DOUBLE_EQ(Get().rtt_s, 0.02) << "one of just now is better than one of minutes";
  for (int i = 0; i < 3; ++i) links_.AddRtt(kA, 0.1, now_);
  EXPECT_DOUBLE_EQ(Get().rtt_s, 0.1);
}

TEST_F(LinkTableTest, ADegradedLinkIsNoticedAndGotUsedTo) {
  for (int i = 0; i < 200; ++i) Measure(10, absl::Seconds(5));
  EXPECT_FALSE(Get().degraded());
  for (int i = 0; i < 3; ++i) Measure(4, absl::Seconds(5));
  EXPECT_TRUE(Get().degraded());
  EXPECT_NEAR(Get().usual_bytes_per_s, 10 * kMB, kMB);
  for (int i = 0; i < 3; ++i) Measure(9, absl::Seconds(5));
  EXPECT_FALSE(Get().degraded());
  for (int i = 0; i < 2000; ++i) Measure(4, absl::Seconds(5));
  EXPECT_FALSE(Get().degraded());
}

TEST_F(LinkTableTest, AnAsymmetricLinkIsNoticed) {
  links_.SetReverse(kA, 4 * kMB, now_);  // nothing is known of it: ignored
  EXPECT_TRUE(links_.List(now_).empty());
  Measure(10);
  EXPECT_FALSE(Get().asymmetric());
  links_.SetReverse(kA, 6 * kMB, now_);
  EXPECT_FALSE(Get().asymmetric());
  links_.SetReverse(kA, 4 * kMB, now_);
  EXPECT_TRUE(Get().asymmetric());
  links_.SetReverse(kA, 30 * kMB, now_);
  EXPECT_TRUE(Get().asymmetric());
  EXPECT_FALSE(links_.Get(kA, now_ + absl::Minutes(2)).asymmetric()) << "nobody says so any more";
}

TEST_F(LinkTableTest, ForgetsTheOldestWhenThereAreTooMany) {
  for (int i = 0; i < 2000; ++i) {
    links_.AddRate(absl::StrCat("host-", i, ":1"), {kMB, 1}, now_ + absl::Seconds(i));
  }
  const auto list = links_.List(now_);
  EXPECT_EQ(list.size(), 1024u);
  for (const LinkEstimate& link : list) EXPECT_GE(link.measured, now_ + absl::Seconds(976));
}

/// Bytes that come in packets over a link of 1 MB/s, the first 100 kB at once.
Arrivals AfterABurst(int packets, int bytes) {
  Arrivals arrivals;
  const Arrivals::Clock::time_point start;
  for (int i = 1; i <= packets; ++i) {
    const int64_t late_us = std::max(0, i * bytes - 100'000);
    arrivals.Add(bytes, true, start + std::chrono::microseconds(late_us));
  }
  return arrivals;
}

TEST(ArrivalsTest, TheTailIsTheLinksOwnRate) {
  for (const auto& [packets, bytes] : {std::pair{30, 9000}, std::pair{5000, 1448}}) {
    const Timed tail = AfterABurst(packets, bytes).Tail();
    EXPECT_NEAR(static_cast<double>(tail.bytes) / tail.seconds, 1e6, 1) << packets;
    EXPECT_NEAR(static_cast<double>(tail.bytes), packets * bytes / 3.0, 0.02 * packets * bytes);
  }
}

TEST(ArrivalsTest, AShortPacketThatABucketHeldBackIsNotWaitedFor) {
  Arrivals arrivals;
  const Arrivals::Clock::time_point start;
  // 1 MB/s: each packet goes when the time of the one before it has passed, also the last.
  for (int i = 0; i < 10; ++i) {
    arrivals.Add(i < 9 ? 9000 : 1000, true, start + std::chrono::milliseconds(9 * i));
  }
  arrivals.End(start + std::chrono::milliseconds(82));
  const Timed tail = arrivals.Tail();
  EXPECT_DOUBLE_EQ(static_cast<double>(tail.bytes) / tail.seconds, 1e6);
}

TEST(ArrivalsTest, ASendersPauseIsNotTheLinks) {
  Arrivals arrivals;
  const Arrivals::Clock::time_point start;
  arrivals.Add(990'000, true, start + std::chrono::milliseconds(1));
  arrivals.Add(10'000, true, start + std::chrono::milliseconds(17));
  EXPECT_EQ(arrivals.Tail().bytes, 0u) << "10 kB in 16 ms";
}

TEST(ArrivalsTest, AReaderThatIsBehindTellsNothing) {
  Arrivals arrivals;
  for (int i = 0; i < 100; ++i) {
    arrivals.Add(65536, false, Arrivals::Clock::time_point() + std::chrono::milliseconds(i));
  }
  EXPECT_EQ(arrivals.Tail().bytes, 0u);
  EXPECT_EQ(Arrivals().Tail().bytes, 0u);
}

TEST(ProbeBudgetTest, KeepsWithinItsShare) {
  absl::Time now = absl::UnixEpoch();
  const absl::Time began = now;
  ProbeBudget budget(0.01, now);
  double spent_s = 0;
  for (int i = 0; i < 1000; ++i) {
    const double seconds = 0.001 * (1 + i % 60);
    now += budget.Until(seconds, now);
    budget.Spend(seconds, now);
    spent_s += seconds;
  }
  const double share = spent_s / absl::ToDoubleSeconds(now - began);
  EXPECT_LE(share, 0.0101);
  EXPECT_GE(share, 0.0099);
}

TEST(ProbeBudgetTest, WhatNobodyKnewIsPaidForLater) {
  const absl::Time now = absl::UnixEpoch();
  ProbeBudget budget(0.01, now);
  EXPECT_EQ(budget.Until(0, now), absl::ZeroDuration());
  budget.Spend(0.06, now);
  EXPECT_GT(budget.Until(0, now), absl::Seconds(5));
  EXPECT_GT(budget.Until(0.05, now), absl::Seconds(9));
  // After however long a rest, no more than a tenth of a second at once.
  budget.Spend(0.1, now + absl::Hours(1));
  EXPECT_GT(budget.Until(0.01, now + absl::Hours(1)), absl::ZeroDuration());
}

TEST(ProbeBudgetTest, NothingOfNothing) {
  ProbeBudget budget(0, absl::UnixEpoch());
  EXPECT_EQ(budget.Until(0, absl::UnixEpoch() + absl::Hours(1)), absl::InfiniteDuration());
}

}  // namespace
}  // namespace tandem::kvstore
