// Requests outlive their workers: while workers are killed, stopped and cut off, one every few
// seconds, every request ends well, with every token once and faithful to the bare engine, and
// nothing is left behind. TANDEM_SURVIVAL_REQUESTS sets how many requests there are.
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <iostream>
#include <mutex>
#include <random>
#include <thread>

#include "base/clock.h"
#include "tests/fault/scheduler/fleet.h"
#include "tests/support/bare_engine.h"
#include "workers/engine/sampler.h"

namespace tandem::e2e {
namespace {

constexpr size_t kAtOnce = 8;
constexpr uint32_t kStepTokens = 512;
constexpr double kTemperature = 0.8;
/// How long a worker is away. Longer than the router needs to find out.
constexpr double kFaultS = 2.5;
/// Connections between workers that are kept for the next use: four at most to, and four from, each
/// of the other three. One left behind by each request would be more.
constexpr size_t kKept = 24;

size_t WantedRequests() {
  const char* given = std::getenv("TANDEM_SURVIVAL_REQUESTS");
  return given != nullptr ? std::strtoul(given, nullptr, 10) : 40;
}

struct Asked {
  v1::GenerateRequest request;
  Generated got;
};

v1::GenerateRequest RandomRequest(uint32_t number, bool sampled) {
  std::mt19937 random(number);
  v1::GenerateRequest request;
  request.mutable_prompt_tokens()->add_ids(1);
  const uint32_t n = 20 + random() % 700;
  for (uint32_t i = 1; i < n; ++i) {
    request.mutable_prompt_tokens()->add_ids(260 + static_cast<int32_t>(random() % 3800));
  }
  request.set_max_tokens(50 + random() % 300);
  request.mutable_sampling()->set_temperature(sampled ? kTemperature : 0);
  request.mutable_sampling()->set_seed(number);
  request.mutable_sampling()->set_ignore_eos(true);
  request.set_kv_floor("lossless");
  return request;
}

double LogOdds(double p) { return std::log(p / (1 - p)); }

/// How far, in logits, the token is from being the draw: 0 when the bare engine's own distribution
/// gives it. A change of the logits by at most d against one another moves the log odds of each
/// share of the probability mass by at most d / temperature.
double DrawGap(const std::vector<float>& logits, int32_t token, uint64_t seed, uint32_t position) {
  const float top = *std::max_element(logits.begin(), logits.end());
  double total = 0, below = 0, own = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    const double p = std::exp((logits[i] - top) / kTemperature);
    total += p;
    if (static_cast<int32_t>(i) < token) below += p;
    if (static_cast<int32_t>(i) == token) own = p;
  }
  const double draw = workers::UniformAt(seed, position);
  const double low = below / total, high = (below + own) / total;
  if (draw < low) return kTemperature * (LogOdds(low) - LogOdds(draw));
  if (draw > high) return kTemperature * (LogOdds(draw) - LogOdds(high));
  return 0;
}

class SurvivalTest : public testing::TestWithParam<bool> {
 protected:
  static bool sampled() { return GetParam(); }

  void SetUp() override {
    auto bare = oracle::BareEngine::Load({.model_path = DemoModel()});
    ASSERT_TRUE(bare.ok()) << bare.status();
    bare_ = *std::move(bare);
  }

  /// Sends requests, kAtOnce at a time, until there were enough and `done` says so.
  std::vector<Asked> AskWhile(Fleet& fleet, const std::function<bool()>& done) {
    std::atomic<uint32_t> next{0};
    std::mutex mutex;
    std::vector<Asked> all;
    std::vector<std::thread> clients;
    for (size_t i = 0; i < kAtOnce; ++i) {
      clients.emplace_back([&] {
        Client client(fleet.RouterAddress());
        while (next < WantedRequests() || !done()) {
          Asked asked{.request = RandomRequest(++next, sampled()), .got = {}};
          asked.got = client.Generate(asked.request, nullptr, 2 * kWaitLimitS);
          std::lock_guard lock(mutex);
          all.push_back(std::move(asked));
        }
      });
    }
    for (std::thread& client : clients) client.join();
    return all;
  }

  /// The largest distance of a token from the bare engine's choice, in logits.
  float WorstGap(const Asked& asked) {
    const auto& prompt = asked.request.prompt_tokens().ids();
    std::vector<int32_t> sequence(prompt.begin(), prompt.end());
    sequence.insert(sequence.end(), asked.got.tokens.begin(), asked.got.tokens.end());
    const auto n_prompt = static_cast<size_t>(prompt.size());
    const auto logits = bare_->TeacherForced(sequence, n_prompt, {.step_tokens = kStepTokens});
    EXPECT_TRUE(logits.ok()) << logits.status();
    double worst = 0;
    for (size_t i = 0; logits.ok() && n_prompt + i < sequence.size(); ++i) {
      const auto& row = (*logits)[i];
      const int32_t token = sequence[n_prompt + i];
      const double gap = sampled() ? DrawGap(row, token, asked.request.sampling().seed(),
                                             static_cast<uint32_t>(n_prompt + i))
                                   : *std::max_element(row.begin(), row.end()) - row[token];
      worst = std::max(worst, gap);
    }
    return static_cast<float>(worst);
  }

  /// What rounding does to these very sequences, measured on some of them since it is slow.
  float Noise(const std::vector<Asked>& all) {
    constexpr size_t kMeasured = 4, kTokens = 40;
    float noise = 0;
    for (size_t i = 0; i < all.size(); i += std::max<size_t>(1, all.size() / kMeasured)) {
      const auto& prompt = all[i].request.prompt_tokens().ids();
      const auto& tokens = all[i].got.tokens;
      std::vector<int32_t> sequence(prompt.begin(), prompt.end());
      sequence.insert(sequence.end(), tokens.begin(),
                      tokens.begin() + static_cast<long>(std::min(kTokens, tokens.size())));
      const auto measured =
          bare_->StepShapeNoise(sequence, static_cast<size_t>(prompt.size()),
                                {.step_tokens = kStepTokens}, oracle::BusyShapes(kStepTokens));
      EXPECT_TRUE(measured.ok()) << measured.status();
      noise = std::max(noise, measured.value_or(0));
    }
    return noise;
  }

  std::unique_ptr<oracle::BareEngine> bare_;
};

TEST_P(SurvivalTest, EveryRequestEndsWellWhateverHappensToWorkers) {
  Fleet fleet({"--worker-timeout", "1s", "--stall-timeout", "1s"}, {"--kv-floor", "lossless"});
  ASSERT_TRUE(fleet.WaitWhole());
  AskWhile(fleet, [] { return true; });  // connections between all of them are there
  ASSERT_TRUE(fleet.WaitEmpty());
  const std::vector<size_t> files_before = fleet.OpenFiles();

  std::atomic<bool> struck_all{false}, asked_all{false};
  std::map<Fault, int> struck;
  std::thread striker([&] {
    std::mt19937 random(sampled() ? 2 : 1);
    for (size_t i = 0; !asked_all || !struck_all; ++i) {
      const std::vector<Fault> possible = fleet.Possible();
      const Fault fault = possible[i % possible.size()];
      fleet.Strike(fault, random, kFaultS);
      ++struck[fault];
      EXPECT_TRUE(fleet.WaitWhole()) << "a worker has not come back after: " << FaultName(fault);
      struck_all = i + 1 >= std::max(possible.size(), WantedRequests() / 10);
    }
  });
  const std::vector<Asked> all = AskWhile(fleet, [&] { return struck_all.load(); });
  asked_all = true;
  striker.join();

  float worst = 0;
  size_t tokens = 0, resumed = 0;
  for (const Asked& asked : all) {
    ASSERT_TRUE(asked.got.status.ok())
        << asked.got.request_id << ": " << asked.got.status.error_message();
    EXPECT_EQ(asked.got.terminal_messages, 1);
    EXPECT_EQ(asked.got.finish, v1::FINISH_REASON_LENGTH);
    EXPECT_EQ(asked.got.tokens.size(), asked.request.max_tokens());
    EXPECT_EQ(asked.got.usage.generated_tokens(), asked.request.max_tokens());
    worst = std::max(worst, WorstGap(asked));
    tokens += asked.got.tokens.size();
    if (asked.got.timings.resumptions() > 0) ++resumed;
  }
  EXPECT_GT(resumed, 0u) << "no request was on a worker that something happened to";
  const float noise = Noise(all);
  EXPECT_LE(worst, noise) << "a token is further from the bare engine's than rounding explains";

  EXPECT_TRUE(fleet.client().WaitIdle());
  EXPECT_TRUE(fleet.WaitEmpty()) << "a worker still holds something";
  EXPECT_TRUE(WaitFor([&] {
    const std::vector<size_t> files = fleet.OpenFiles();
    return files[0] <= files_before[0] + kKept && files[1] <= files_before[1] + kKept;
  })) << "descriptors: router "
      << files_before[0] << " before, " << fleet.OpenFiles()[0] << " now; a worker "
      << files_before[1] << " before, " << fleet.OpenFiles()[1] << " now";

  std::cout << "survived: " << all.size() << " requests, " << tokens << " tokens, " << resumed
            << " requests resumed; faults:";
  for (const auto& [fault, n] : struck) std::cout << " " << n << " " << FaultName(fault);
  std::cout << "; largest gap " << worst << ", rounding " << noise << "\n";
}

INSTANTIATE_TEST_SUITE_P(Tokens, SurvivalTest, testing::Bool(),
                         [](const auto& info) { return info.param ? "sampled" : "greedy"; });

}  // namespace
}  // namespace tandem::e2e
