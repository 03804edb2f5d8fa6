#include "workers/profiler.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "base/clock.h"
#include "tests/integration/engine/engine_fixture.h"
#include "tests/integration/worker/worker_fixture.h"

namespace tandem::workers {
namespace {

using Use = EngineOptions::Use;

EngineOptions SmallOptions(Use use) {
  EngineOptions options = Options(use);
  options.step_tokens = 64;
  options.context_tokens = 512;
  return options;
}

TEST(ProfilerTest, FindsWhatStepsTake) {
  for (const Use use : {Use::kPrefill, Use::kDecode}) {
    const auto engine = MakeEngine(SmallOptions(use));
    WorkerSpeed speed(engine->options().step_tokens);
    const auto steps = ProfileSteps(*engine, absl::Seconds(20), speed);
    ASSERT_OK(steps.status());
    EXPECT_EQ(engine->held_tokens(), 0u);
    const scheduler::LatencyModel model = speed.model();
    // All but the warm-up were learned from, and of the one kind only.
    EXPECT_EQ(model.prefill_samples, use == Use::kPrefill ? *steps - 3 : 0);
    EXPECT_EQ(model.decode_samples, use == Use::kDecode ? *steps - 3 : 0);
    EXPECT_GT(*steps, 20u);
    // More costs more.
    EXPECT_GT(model.prefill.Seconds(64), model.prefill.Seconds(16));
    EXPECT_GT(model.decode.StepSeconds(4, 1600), model.decode.StepSeconds(1, 20));
  }
}

TEST(ProfilerTest, EndsInTimeAndLeavesNoTrace) {
  const auto fresh = MakeEngine(SmallOptions(Use::kPrefill));
  const auto profiled = MakeEngine(SmallOptions(Use::kPrefill));
  WorkerSpeed speed(profiled->options().step_tokens);
  ASSERT_OK(ProfileSteps(*profiled, absl::ZeroDuration(), speed).status());
  EXPECT_EQ(speed.model().prefill_samples, 0u);
  ASSERT_OK(ProfileSteps(*profiled, absl::Seconds(20), speed).status());
  std::vector<float> expected, got;
  ASSERT_OK(Feed(*fresh, 0, Prompt(300), &expected));
  ASSERT_OK(Feed(*profiled, 0, Prompt(300), &got));
  EXPECT_EQ(got, expected);
}

TEST(ProfilerTest, AWorkerKeepsWhatItLearned) {
  namespace fs = std::filesystem;
  const fs::path folder = fs::path(testing::TempDir()) / "profiler_test_cache";
  fs::remove_all(folder);
  const auto change = [&](WorkerOptions& options) {
    options.profile_at_start = absl::Seconds(1);
    options.speed_cache_path = folder.string();
  };
  uint64_t measured = 0;
  {
    TestWorker prefill(v1::PHASE_PREFILL, change);
    measured = prefill.load().latency().prefill_samples();
    EXPECT_GT(measured, 0u);
    EXPECT_EQ(prefill.load().latency().decode_samples(), 0u);
    // A mixed worker has the same prefill engine, and another one besides.
    TestWorker mixed(v1::PHASE_MIXED, change);
    EXPECT_EQ(mixed.load().latency().prefill_samples(), measured);
    EXPECT_GT(mixed.load().latency().decode_samples(), 0u);
    // What requests teach is kept as well.
    ASSERT_OK(Serve({.prompt = Prompt(300), .max_tokens = 12}, prefill, mixed).status);
  }
  {
    TestWorker again(v1::PHASE_MIXED, change);
    EXPECT_GE(again.load().latency().prefill_samples(), measured);
    EXPECT_GT(again.load().latency().decode_samples(), 0u);
  }
  for (const auto& file : fs::directory_iterator(folder)) {
    std::ofstream(file.path(), std::ios::app) << "x";
  }
  TestWorker anew(v1::PHASE_MIXED, change);
  EXPECT_GT(anew.load().latency().prefill_samples(), 0u);
  fs::remove_all(folder);
}

}  // namespace
}  // namespace tandem::workers
