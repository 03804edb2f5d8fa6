// The window of recent requests, and the tests for a shift in it.
#include "scheduler/planner/workload_shift.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "scheduler/planner/random.h"
#include "scheduler/planner/workload_window.h"

namespace tandem::planner {
namespace {

using testing::HasSubstr;

Workload Requests(const char* shape, double rate_rps, uint32_t n, uint64_t seed = 1,
                  double gap_cv = 1) {
  return Generate({.shape = NamedShape(shape).value(),
                   .requests = n,
                   .rate_rps = rate_rps,
                   .gap_cv = gap_cv,
                   .seed = seed});
}

/// `b` after `a`.
Workload Then(Workload a, const Workload& b) {
  const double begin_s = a.back().arrival_s;
  for (WorkloadRequest request : b) {
    request.arrival_s += begin_s;
    a.push_back(request);
  }
  return a;
}

TEST(WorkloadWindow, RemembersTheLastRequestsAndHowTheyEnded) {
  WorkloadWindow window({.max_requests = 3, .max_age_s = 100});
  EXPECT_TRUE(window.Recent(10, 0).empty());
  const uint64_t first = window.Arrived(10, 1);
  window.Arrived(20, 2);
  const uint64_t third = window.Arrived(30, 3);
  const uint64_t fourth = window.Arrived(0, 2.5);  // the clock went back; there is no empty prompt
  window.Ended(first, 7, 0);                       // forgotten already
  window.Ended(third, 8, 300);
  window.Ended(99, 1, 1);
  const Workload all = window.Recent(10, 4);
  ASSERT_EQ(all.size(), 3u);
  EXPECT_EQ(all[0].prompt_tokens, 20u);
  EXPECT_EQ(all[0].output_tokens, kUnknownTokens);
  EXPECT_EQ(all[1].output_tokens, 8u);
  EXPECT_EQ(all[1].cached_tokens, 30u) << "no more than the prompt has";
  EXPECT_EQ(all[2].arrival_s, 3);
  EXPECT_EQ(all[2].prompt_tokens, 1u);
  EXPECT_EQ(window.Recent(2, 4).front().prompt_tokens, 30u);
  EXPECT_EQ(window.arrivals(), 4u);

  window.Ended(fourth, 5, 0);
  const Workload finished = window.Finished(4);
  ASSERT_EQ(finished.size(), 2u);
  EXPECT_EQ(finished[0].arrival_s, 0);
  EXPECT_TRUE(ParseWorkload(WorkloadCsv(finished), "csv").ok());
  EXPECT_TRUE(window.Recent(10, 200).empty()) << "too old";
}

TEST(SameDistribution, IsTheTestOfKolmogorovAndSmirnov) {
  std::vector<double> low, high, same;
  for (int i = 0; i < 20; ++i) {
    low.push_back(i);
    high.push_back(i + 100);
    same.push_back(i + 0.5);
  }
  double distance = 0;
  EXPECT_LT(SameDistribution(low, high, &distance), 1e-8);
  EXPECT_EQ(distance, 1);
  EXPECT_GT(SameDistribution(low, same, &distance), 0.99);
  EXPECT_NEAR(distance, 0.05, 1e-12);
  EXPECT_EQ(SameDistribution(low, low), 1);
  EXPECT_EQ(SameDistribution(low, {}), 1);
  // Table: the critical distance for a significance of 0.05 is 1.358 sqrt(2/n) for large n.
  std::vector<double> a, b;
  for (int i = 0; i < 1000; ++i) {
    a.push_back(i);
    b.push_back(i + 60.73);
  }
  EXPECT_NEAR(SameDistribution(a, b), 0.05, 0.005);
}

TEST(SameDistribution, FalseAlarmsAreAsRareAsItSays) {
  Random random(7);
  int alarms = 0;
  for (int i = 0; i < 1000; ++i) {
    std::vector<double> a(50), b(80);
    for (double& value : a) value = random.Uniform();
    for (double& value : b) value = random.Uniform();
    std::sort(a.begin(), a.end());
    std::sort(b.begin(), b.end());
    alarms += SameDistribution(a, b) < 0.05;
  }
  EXPECT_GT(alarms, 20);
  EXPECT_LT(alarms, 70);
}

TEST(FindShift, SaysWhatIsDifferentAndSinceWhen) {
  const Workload planned = Requests("chat", 4, 256);
  const Workload after = Then(Requests("chat", 4, 100, 2), Requests("summarisation", 4, 40));
  const auto shift = FindShift(planned, after, after.back().arrival_s);
  ASSERT_TRUE(shift);
  EXPECT_THAT(shift->what, HasSubstr("prompt lengths"));
  EXPECT_NEAR(static_cast<double>(shift->requests), 40, 15);

  const Workload faster = Then(Requests("chat", 4, 100, 2), Requests("chat", 12, 100, 3));
  const auto rate = FindShift(planned, faster, faster.back().arrival_s);
  ASSERT_TRUE(rate);
  EXPECT_THAT(rate->what, HasSubstr("rate"));
  EXPECT_NEAR(static_cast<double>(rate->requests), 100, 50);
}

TEST(FindShift, SeesThatRequestsStayAway) {
  const Workload planned = Requests("chat", 4, 256), recent = Requests("chat", 4, 100, 2);
  EXPECT_FALSE(FindShift(planned, recent, recent.back().arrival_s));
  EXPECT_TRUE(FindShift(planned, recent, recent.back().arrival_s + 300));
}

TEST(FindShift, AnswersOfOtherLengthAreAShiftToo) {
  const Workload planned = Requests("chat", 4, 256);
  Workload longer = Requests("chat", 4, 100, 2);
  for (WorkloadRequest& request : longer) request.output_tokens *= 3;
  const auto shift = FindShift(planned, longer, longer.back().arrival_s);
  ASSERT_TRUE(shift);
  EXPECT_THAT(shift->what, HasSubstr("output lengths"));
  for (WorkloadRequest& request : longer) request.output_tokens = kUnknownTokens;
  EXPECT_FALSE(FindShift(planned, longer, longer.back().arrival_s)) << "none has ended";
}

TEST(FindShift, BurstsOfBurstyRequestsAreNone) {
  for (const uint64_t seed : {1, 2, 3, 4, 5}) {
    const Workload planned = Requests("chat", 4, 512, seed, 3);
    const Workload recent = Requests("chat", 4, 1000, seed + 100, 3);
    int alarms = 0;
    for (size_t n = 100; n < recent.size(); n += 10) {
      alarms += FindShift(planned, std::span(recent).first(n), recent[n - 1].arrival_s).has_value();
    }
    EXPECT_LE(alarms, 2) << seed;
  }
}

TEST(FindShift, TooFewRequestsSayNothing) {
  const Workload few = Requests("summarisation", 4, 10), planned = Requests("chat", 4, 256);
  EXPECT_FALSE(FindShift(planned, few, 100));
  EXPECT_FALSE(FindShift(few, planned, 100));
  EXPECT_FALSE(FindShift(planned, {}, 100));
}

}  // namespace
}  // namespace tandem::planner
