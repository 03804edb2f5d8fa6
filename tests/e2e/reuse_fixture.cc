#include "tests/e2e/reuse_fixture.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>

#include "tests/support/bare_engine.h"

namespace tandem::e2e {

std::vector<int32_t> Text(uint32_t seed, size_t n) {
  std::mt19937 random(seed);
  std::vector<int32_t> tokens = {1};
  while (tokens.size() < n) tokens.push_back(260 + static_cast<int32_t>(random() % 3800));
  return tokens;
}

v1::GenerateRequest RequestFor(const std::vector<int32_t>& prompt, uint32_t max_tokens) {
  v1::GenerateRequest request = Greedy("", max_tokens);
  request.mutable_prompt_tokens()->mutable_ids()->Add(prompt.begin(), prompt.end());
  return request;
}

uint32_t Cached(const v1::PromptCache& cache) {
  return cache.engine_tokens() + cache.memory_tokens() + cache.disk_tokens() +
         cache.redis_tokens() + cache.peer_tokens();
}

Generated Ask(Client& client, const v1::GenerateRequest& request) {
  const Generated got = client.Generate(request);
  EXPECT_TRUE(got.status.ok()) << got.status.error_message();
  EXPECT_EQ(Cached(got.prompt_cache) + got.prompt_cache.computed_tokens(),
            got.usage.prompt_tokens());
  EXPECT_EQ(Cached(got.prompt_cache), got.usage.cached_tokens());
  return got;
}

bool WaitChunks(DaemonProcess& router, double n) {
  return WaitFor([&] {
    return MetricSum(router.Metrics(), "tandem_router_directory_chunks").value_or(0) >= n;
  });
}

std::vector<std::string> StoreOnly(const std::vector<std::string>& more) {
  std::vector<std::string> flags = {"--retained-prompts", "0"};
  flags.insert(flags.end(), more.begin(), more.end());
  return flags;
}

void ExpectFaithful(const std::vector<int32_t>& prompt, const std::vector<int32_t>& answer) {
  static const auto bare = [] {
    auto loaded = oracle::BareEngine::Load({.model_path = DemoModel()});
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    return *std::move(loaded);
  }();
  const oracle::StepShape alone{.step_tokens = kStepTokens};
  std::vector<int32_t> sequence = prompt;
  sequence.insert(sequence.end(), answer.begin(), answer.end());
  // The same answer is as good as it was: judging one takes longer than giving it.
  static std::set<std::vector<int32_t>> judged;
  if (!judged.insert(sequence).second) return;
  const auto gaps = bare->Gaps(sequence, prompt.size(), alone);
  ASSERT_TRUE(gaps.ok()) << gaps.status();
  ASSERT_FALSE(gaps->empty());
  const float worst = *std::max_element(gaps->begin(), gaps->end());
  if (worst == 0) return;
  static const float noise = [&] {
    const auto measured =
        bare->StepShapeNoise(Text(99, 1800), 1770, alone, oracle::BusyShapes(kStepTokens));
    EXPECT_TRUE(measured.ok()) << measured.status();
    return measured.value_or(0);
  }();
  EXPECT_LE(worst, noise);
}

}  // namespace tandem::e2e
