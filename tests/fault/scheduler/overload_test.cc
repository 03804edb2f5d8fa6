// Five times as many requests as can be served: those that are let in are served as well as ever,
// the others are told at once when to come back, and afterwards all is as before. Ratios only; the
// figures are `./dev bench overload`'s.
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/bench/goodput/attainment.h"
#include "tests/bench/goodput/systems.h"
#include "tests/bench/goodput/workload.h"

namespace tandem::bench {
namespace {

const Workload kShort = {.name = "short",
                         .prompt_tokens = 200,
                         .output_tokens = 40,
                         .prompt_spread = 0.4,
                         .output_spread = 0.4};
/// More than workers take at once, so that some wait in the router.
constexpr uint32_t kMaxRequests = 64;

class OverloadTest : public testing::Test {
 protected:
  void SetUp() override {
    system_ = StartSystem("split", {.model = TANDEM_SOURCE_DIR "/models/demo-q8_0.gguf",
                                    .router_flags = {"--tenants", "steady,flood", "--max-requests",
                                                     std::to_string(kMaxRequests)}});
  }

  /// `n` requests of a tenant, `rate` a second; 0: at once.
  static std::vector<Arrival> Requests(const std::string& tenant, uint32_t n, double rate,
                                       uint32_t seed) {
    std::vector<Arrival> trace = MakeTrace(kShort, {.requests = n, .seed = seed});
    for (Arrival& arrival : trace) {
      arrival.at_s = rate > 0 ? arrival.at_s / rate : 0;
      arrival.tenant = tenant;
    }
    return trace;
  }
  std::vector<Outcome> Send(const std::vector<Arrival>& requests) {
    return system_->client().Run(requests, 1);
  }

  static std::vector<Outcome> Served(const std::vector<Outcome>& outcomes) {
    std::vector<Outcome> served;
    std::copy_if(outcomes.begin(), outcomes.end(), std::back_inserter(served),
                 [](const Outcome& each) { return each.complete(); });
    return served;
  }
  static double Ttft(const std::vector<Outcome>& outcomes, double share) {
    std::vector<double> ttft;
    for (const Outcome& outcome : outcomes) ttft.push_back(outcome.ttft_s());
    return Quantile(ttft, share);
  }
  /// Requests a second when the system is as full as it may be.
  double Capacity() { return ServedRate(Send(Requests("steady", kMaxRequests / 2, 0, 1))); }

  std::unique_ptr<System> system_;
};

TEST_F(OverloadTest, RefusesAtOnceWithAdviceAndRecovers) {
  Capacity();  // warm
  const double capacity = Capacity();
  ASSERT_GT(capacity, 0);
  const auto before = Send(Requests("steady", 10, 0.4 * capacity, 2));
  ASSERT_EQ(Served(before).size(), before.size()) << before.back().error;
  const uint64_t memory_before = system_->ResidentBytes();

  const double seconds = 4;
  const auto during =
      Send(Requests("steady", static_cast<uint32_t>(5 * capacity * seconds), 5 * capacity, 3));
  std::vector<double> refusal_s;
  for (const Outcome& outcome : during) {
    EXPECT_TRUE(outcome.complete() || outcome.refused) << outcome.error;
    if (!outcome.refused) continue;
    refusal_s.push_back(outcome.end_s - outcome.due_s);
    EXPECT_GT(outcome.retry_after_s, 0) << "no advice: " << outcome.error;
  }
  ASSERT_GT(refusal_s.size(), during.size() / 3);
  EXPECT_LT(Quantile(refusal_s, 0.5), Ttft(before, 0.5)) << "a refusal takes as long as an answer";
  EXPECT_GT(ServedRate(during), 0.5 * capacity);
  EXPECT_LT(static_cast<double>(system_->ResidentBytes()),
            1.5 * static_cast<double>(memory_before));

  const auto after = Send(Requests("steady", 10, 0.4 * capacity, 2));
  EXPECT_EQ(Served(after).size(), after.size());
  EXPECT_LT(Ttft(after, 0.5), 3 * Ttft(before, 0.5));
}

TEST_F(OverloadTest, ATenantThatFloodsDoesNotShutOutAnother) {
  Capacity();  // warm
  const double capacity = Capacity();
  std::vector<Arrival> all = Requests("steady", 12, 0.3 * capacity, 4);
  const double seconds = all.back().at_s;
  const auto flood =
      Requests("flood", static_cast<uint32_t>(5 * capacity * seconds), 5 * capacity, 5);
  all.insert(all.end(), flood.begin(), flood.end());
  std::stable_sort(all.begin(), all.end(),
                   [](const Arrival& a, const Arrival& b) { return a.at_s < b.at_s; });
  const auto outcomes = Send(all);
  size_t steady = 0, steady_served = 0, flood_refused = 0;
  for (size_t i = 0; i < all.size(); ++i) {
    if (all[i].tenant == "steady") {
      ++steady;
      steady_served += outcomes[i].complete();
    } else {
      flood_refused += outcomes[i].refused;
    }
  }
  EXPECT_GT(flood_refused, flood.size() / 3);
  EXPECT_EQ(steady_served, steady) << "refused because another tenant sends too much";
}

}  // namespace
}  // namespace tandem::bench
