// The oracle itself: it agrees with itself, sees a wrong token, and its f16 model is one.
#include "tests/support/bare_engine.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "tests/integration/engine/engine_fixture.h"

namespace tandem::workers {
namespace {

std::unique_ptr<oracle::BareEngine> Bare(oracle::BareEngine::Options options) {
  if (options.model_path.empty()) options.model_path = DemoModelPath();
  auto bare = oracle::BareEngine::Load(options);
  EXPECT_TRUE(bare.ok()) << bare.status();
  return *std::move(bare);
}

TEST(BareEngineTest, ItsGreedyTokensHaveNoGapAndOthersHave) {
  auto bare = Bare({});
  const auto prompt = bare->Tokenize("Once upon a time there was a king who");
  const oracle::StepShape shape{.step_tokens = 4};
  const auto generated = bare->Greedy(prompt, 24, shape);
  ASSERT_TRUE(generated.ok()) << generated.status();
  ASSERT_EQ(generated->size(), 24u);
  EXPECT_FALSE(bare->Text(*generated).empty());

  std::vector<int32_t> tokens = prompt;
  tokens.insert(tokens.end(), generated->begin(), generated->end());
  const auto gaps = bare->Gaps(tokens, prompt.size(), shape);
  ASSERT_TRUE(gaps.ok()) << gaps.status();
  ASSERT_EQ(gaps->size(), 24u);
  EXPECT_EQ(*std::max_element(gaps->begin(), gaps->end()), 0);

  tokens.back() = tokens.back() == 300 ? 301 : 300;
  const auto wrong = bare->Gaps(tokens, prompt.size(), shape);
  ASSERT_TRUE(wrong.ok()) << wrong.status();
  EXPECT_GT(wrong->back(), 0);
}

TEST(BareEngineTest, StepShapesMakeNoiseButLittle) {
  for (bool flash_attention : {true, false}) {
    auto bare = Bare({.flash_attention = flash_attention});
    const auto prompt = Prompt(150);
    const oracle::StepShape shape{.step_tokens = 512};
    const auto generated = bare->Greedy(prompt, 12, shape, /*ignore_eos=*/true);
    ASSERT_TRUE(generated.ok()) << generated.status();
    std::vector<int32_t> tokens = prompt;
    tokens.insert(tokens.end(), generated->begin(), generated->end());
    const auto none = bare->StepShapeNoise(tokens, prompt.size(), shape, {{shape}});
    ASSERT_TRUE(none.ok()) << none.status();
    EXPECT_EQ(*none, 0) << "the same shape gives the same bits";
    const auto shapes = oracle::BusyShapes(512);
    const auto noise = bare->StepShapeNoise(tokens, prompt.size(), shape, shapes);
    ASSERT_TRUE(noise.ok()) << noise.status();
    RecordProperty(flash_attention ? "noise_flash" : "noise_no_flash", std::to_string(*noise));
    if (flash_attention) {  // without it, q8_0 weights make none
      EXPECT_GT(*noise, 0);
    }
    EXPECT_LT(*noise, 2) << "more than rounding";
  }
}

TEST(BareEngineTest, F16ModelGeneratesAndIsLarger) {
  const std::string path = ::testing::TempDir() + std::to_string(getpid()) + "-demo-f16.gguf";
  ASSERT_OK(oracle::MakeF16Model(DemoModelPath(), path));
  EXPECT_GT(std::filesystem::file_size(path), 13u << 20);
  auto bare = Bare({.model_path = path});
  const auto generated = bare->Greedy(Prompt(20), 8, {}, /*ignore_eos=*/true);
  ASSERT_TRUE(generated.ok()) << generated.status();
  EXPECT_EQ(generated->size(), 8u);
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace tandem::workers
