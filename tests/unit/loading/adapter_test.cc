// The adapter's arithmetic: what it believes of a link, and what it chooses.
#include "kvstore/loading/adapter.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

namespace tandem::kvstore {
namespace {

using codec::Level;

/// Feeds the estimator for `seconds` with a link that carries `rate(t)`, a sample every 4 ms.
struct Link {
  RateEstimator estimator{1e6};
  double now_s = 0, bytes = 0;

  explicit Link(double prior = 1e6) : estimator(prior) { estimator.Resume(0, 0); }
  void Run(double seconds, double bytes_per_s) {
    for (const double end = now_s + seconds; now_s < end - 1e-9;) {
      now_s += 0.004;
      bytes += 0.004 * bytes_per_s;
      estimator.Observe(now_s, static_cast<uint64_t>(bytes));
    }
  }
};

TEST(RateEstimator, BelievesThePriorUntilItHasMeasured) {
  EXPECT_EQ(RateEstimator(5e6).bytes_per_s(), 5e6);
  Link link(1e6);
  link.Run(0.2, 50e6);
  EXPECT_NEAR(link.estimator.bytes_per_s() / 50e6, 1, 0.05);
}

TEST(RateEstimator, AStepShowsWithinItsWindow) {
  Link link;
  link.Run(0.5, 50e6);
  link.Run(RateEstimator::kLeastWindowS + 0.01, 5e6);
  EXPECT_NEAR(link.estimator.bytes_per_s() / 5e6, 1, 0.1);
  link.Run(RateEstimator::kLeastWindowS + 0.01, 50e6);
  EXPECT_NEAR(link.estimator.bytes_per_s() / 50e6, 1, 0.1);
}

TEST(RateEstimator, ItsWindowSpansRoundTrips) {
  // Bursts of 20 ms, then nothing for 20 ms: half of what a burst carries.
  Link link;
  link.estimator.SetRoundTrip(0.04);
  for (int burst = 0; burst < 10; ++burst) {
    link.Run(0.02, 50e6);
    EXPECT_GT(link.estimator.bytes_per_s(), 15e6) << burst;
    link.Run(0.02, 0);
  }
  EXPECT_NEAR(link.estimator.bytes_per_s() / 25e6, 1, 0.1);
  link.estimator.SetRoundTrip(0);
  EXPECT_EQ(link.estimator.window_s(), RateEstimator::kLeastWindowS);
}

TEST(RateEstimator, ACutShowsAsNothingAtAll) {
  Link link;
  link.Run(0.5, 50e6);
  link.Run(0.3, 0);
  EXPECT_LT(link.estimator.bytes_per_s(), 1);
}

TEST(RateEstimator, IdleTimeIsNoSlowLink) {
  Link link;
  link.Run(0.2, 50e6);
  link.estimator.Pause(link.now_s, static_cast<uint64_t>(link.bytes));
  link.now_s += 10;
  link.bytes += 1e9;  // somebody else's, on the same connection
  link.estimator.Resume(link.now_s, static_cast<uint64_t>(link.bytes));
  EXPECT_NEAR(link.estimator.bytes_per_s() / 50e6, 1, 0.05);
  link.Run(0.05, 50e6);
  EXPECT_NEAR(link.estimator.bytes_per_s() / 50e6, 1, 0.05);
}

/// Eight chunks: 900 kB lossless, 95 kB at q1; computing one takes 30 ms.
LoadState Context(double bytes_per_s, double left_s) {
  return {.n_chunks = 8,
          .chunk_bytes = {900e3, 95e3, 0, 0, 0},
          .bytes_per_s = bytes_per_s,
          .decode_s = {1e-3, 1e-3, 1e-3, 1e-3, 1e-3},
          .text_s = 0.03,
          .text_all_s = 8 * 0.03,
          .left_s = left_s};
}

TEST(Adapter, TakesTheFinestLevelThatIsInTime) {
  EXPECT_EQ(ChooseLevel(Context(125e6, 1), Level::kQ1), Level::kLossless);
  EXPECT_EQ(ChooseLevel(Context(125e6, 0.03), Level::kQ1), Level::kQ1);
  EXPECT_EQ(ChooseLevel(Context(125e6, 0.03), Level::kLossless), Level::kLossless)
      << "never below the floor";
  EXPECT_EQ(ChooseLevel(Context(125e6, 1), Level::kQ4), Level::kLossless);
}

TEST(Adapter, IsPreparedForALinkThatSlowsDown) {
  // Lossless takes 58 ms if nothing changes. At a tenth of the rate one lossless chunk takes 72 ms,
  // and seven at q1 another 53; computing everything 240 ms.
  EXPECT_NEAR(WorstSeconds(Context(125e6, 0), Level::kLossless, Level::kQ1), 0.1262, 1e-4);
  EXPECT_EQ(ChooseLevel(Context(125e6, 0.1), Level::kQ1), Level::kQ1);
  EXPECT_EQ(ChooseLevel(Context(125e6, 0.13), Level::kQ1), Level::kLossless);
  // On a slower link only the engine could help.
  EXPECT_EQ(ChooseLevel(Context(40e6, 0.25), Level::kQ1), Level::kQ1);
  EXPECT_EQ(ChooseLevel(Context(40e6, 0.27), Level::kQ1), Level::kLossless);
  // Without one, nothing but a smaller chunk.
  LoadState busy = Context(40e6, 0.27);
  busy.text_s = 0;
  EXPECT_EQ(ChooseLevel(busy, Level::kQ1), Level::kQ1);
}

TEST(Adapter, TakesTheQuickestWhenNoneIsInTime) {
  EXPECT_EQ(ChooseLevel(Context(2.5e6, -1), Level::kQ1), Level::kQ1);
  LoadState only_lossless = Context(2.5e6, -1);
  only_lossless.chunk_bytes[1] = 0;
  EXPECT_EQ(ChooseLevel(only_lossless, Level::kQ1), Level::kLossless);
}

TEST(Adapter, LinkAndEngineTogetherAreQuickerThanEach) {
  const LoadState both = Context(2.5e6, 0);
  LoadState link = both;
  link.text_s = 0;
  const double engine_s = both.n_chunks * both.text_s;
  const double together_s = PredictSeconds(both, Level::kQ1);
  EXPECT_LT(together_s, PredictSeconds(link, Level::kQ1));
  EXPECT_LT(together_s, engine_s);
  EXPECT_TRUE(std::isinf(PredictSeconds(both, Level::kQ3))) << "nobody holds it";
}

TEST(Adapter, ComputesOnlyWhereThatIsSooner) {
  EXPECT_FALSE(PreferText(Context(125e6, 0), Level::kQ1, false));
  EXPECT_TRUE(PreferText(Context(2.5e6, 0), Level::kQ1, false));
  EXPECT_TRUE(PreferText(Context(0, 0), Level::kQ1, false)) << "the link is cut";
  LoadState unmeasured = Context(2.5e6, 0);
  unmeasured.text_s = 0;
  EXPECT_FALSE(PreferText(unmeasured, Level::kQ1, false));
}

TEST(Adapter, WaitsForTheLastChunkOnItsWayUnlessItStalls) {
  LoadState last = Context(2.5e6, 0);
  last.n_chunks = 0;
  last.in_flight_bytes = 20e3;  // 8 ms
  EXPECT_FALSE(PreferText(last, Level::kQ1, true));
  last.bytes_per_s = 1e3;
  EXPECT_TRUE(PreferText(last, Level::kQ1, true));
}

/// A context of `n` chunks over a link whose rate at time t is `rate(t)`, computed and loaded as
/// the loader does it; returns when it is ready. Steps of 0.1 ms.
double Simulate(uint32_t n, double deadline_s, const std::function<double(double)>& rate) {
  constexpr double kStepS = 1e-4, kTextS = 0.03;
  const std::array<double, 5> sizes = {900e3, 95e3, 0, 0, 0};
  RateEstimator estimator(rate(0));
  estimator.Resume(0, 0);
  double received = 0, coming = 0, computing_until = -1;
  uint32_t front = 0, back = n;  // [front, back) is nobody's yet
  for (double now = 0; now < 30; now += kStepS) {
    const double got = std::min(coming, rate(now) * kStepS);
    coming -= got;
    received += got;
    estimator.Observe(now, static_cast<uint64_t>(received));
    LoadState state{.n_chunks = back - front,
                    .chunk_bytes = sizes,
                    .in_flight_bytes = coming,
                    .bytes_per_s = estimator.bytes_per_s(),
                    .text_s = kTextS,
                    .text_all_s = (back - front + (coming >= 1 ? 1 : 0)) * kTextS,
                    .left_s = deadline_s - now};
    if (coming < 1 && back > front) {
      coming = sizes[static_cast<size_t>(ChooseLevel(state, Level::kQ1))];
      --back;
      continue;
    }
    const bool computing = now < computing_until;
    if (computing) continue;
    if (back > front && PreferText(state, Level::kQ1, false)) {
      ++front;
      computing_until = now + kTextS;
    } else if (back == front && coming >= 1 && PreferText(state, Level::kQ1, true)) {
      coming = 0;  // it is computed after all
      computing_until = now + kTextS;
    } else if (back == front && coming < 1) {
      return now;
    }
  }
  return 30;
}

TEST(Adapter, KeepsToItsTimeWhenTheLinkChanges) {
  constexpr double kFast = 12.5e6, kSlow = 1.25e6;
  for (double at = 0; at < 0.2; at += 0.02) {
    const auto down = [&](double t) { return t < at ? kFast : kSlow; };
    const auto cut = [&](double t) { return t >= at && t < at + 0.3 ? 0 : kFast; };
    // Computing everything takes 0.24 s; a change costs at most the estimator's window and a chunk.
    EXPECT_LT(Simulate(8, 0.25, down), 0.25 + RateEstimator::kLeastWindowS) << at;
    EXPECT_LT(Simulate(8, 0.25, cut), 0.25 + RateEstimator::kLeastWindowS + 0.03) << at;
  }
}

}  // namespace
}  // namespace tandem::kvstore
