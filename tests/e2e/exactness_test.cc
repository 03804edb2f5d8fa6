// The words of the design, checked through three processes against the bare engine: exact when a
// request runs alone with the same step shapes, faithful when many run at once.
#include <gtest/gtest.h>

#include <filesystem>
#include <random>
#include <thread>

#include "tests/e2e/harness.h"
#include "tests/support/bare_engine.h"

namespace tandem::e2e {
namespace {

constexpr uint32_t kContextTokens = 2048, kChunkTokens = 256, kStepTokens = 512;

struct Setting {
  std::string weights;  // "q8_0" or "f16"
  std::string cache;    // of K and V
};

void PrintTo(const Setting& setting, std::ostream* out) {
  *out << setting.weights << " weights, " << setting.cache << " cache";
}

/// A model with f16 weights, made from the one in the repository.
std::string F16Model() {
  static const std::string path = [] {
    std::string made = testing::TempDir() + "tandem-demo-f16-" + std::to_string(getpid()) + ".gguf";
    const absl::Status status = oracle::MakeF16Model(DemoModel(), made);
    EXPECT_TRUE(status.ok()) << status;
    return made;
  }();
  return path;
}

std::vector<int32_t> Filler(std::mt19937& random, size_t n) {
  std::vector<int32_t> tokens = {1};
  while (tokens.size() < n) tokens.push_back(260 + static_cast<int32_t>(random() % 3800));
  return tokens;
}

/// Text with every width of UTF-8, empty lines, and whatever else trips tokenizers.
const std::vector<std::string> kTexts = {
    "a",
    " ",
    "\n",
    "\n\n\n",
    "Once upon a time",
    "The king said: \"No!\"\n\nAnd then",
    "Grüße aus Köln, très élégant, señor",
    "Привет, мир! Как дела?",
    "Γειά σου Κόσμε",
    "שלום עולם",
    "你好，世界。很久很久以前",
    "こんにちは世界、昔々あるところに",
    "안녕하세요 세계",
    "🌍🚀👩‍👩‍👧‍👦 flags 🇩🇪🇫🇷",
    "e\u0301 combining \u200b zero width",
    "tab\tand\r\nCRLF\r\n",
    "1 + 1 = 2; x^2 - y_{3} <= 10%",
    "<s> </s> <unk> [INST] {{curly}}",
    "    indented\n\tcode()",
    "A very long word: Donaudampfschifffahrtsgesellschaftskapitänsmütze"};

/// At least 200 prompts as token ids: texts of every kind and lengths around every edge.
std::vector<std::vector<int32_t>> Prompts(const oracle::BareEngine& bare) {
  std::mt19937 random(20260101);
  std::vector<std::vector<int32_t>> prompts;
  for (const std::string& text : kTexts) {
    prompts.push_back(bare.Tokenize(text));
    prompts.push_back(bare.Tokenize("The story begins.\n\n" + text + "\n\nAnd so"));
  }
  for (const uint32_t n :
       {1u, 2u, 3u, kChunkTokens - 1, kChunkTokens, kChunkTokens + 1, 2 * kChunkTokens - 1,
        2 * kChunkTokens, 2 * kChunkTokens + 1, 3 * kChunkTokens, 5 * kChunkTokens + 17,
        kContextTokens - 16, kContextTokens - 1, kContextTokens}) {
    prompts.push_back(Filler(random, n));
  }
  while (prompts.size() < 204) prompts.push_back(Filler(random, 4 + random() % 400));
  return prompts;
}

/// Most tokens that may follow.
uint32_t RoomAfter(const std::vector<int32_t>& prompt, uint32_t wanted) {
  return std::min<uint32_t>(wanted, kContextTokens - static_cast<uint32_t>(prompt.size()) + 1);
}

v1::GenerateRequest RequestFor(const std::vector<int32_t>& prompt, uint32_t max_tokens) {
  v1::GenerateRequest request = Greedy("", max_tokens);
  request.mutable_prompt_tokens()->mutable_ids()->Add(prompt.begin(), prompt.end());
  return request;
}

class ExactnessTest : public testing::TestWithParam<Setting> {
 protected:
  void SetUp() override {
    model_ = GetParam().weights == "f16" ? F16Model() : DemoModel();
    auto bare = oracle::BareEngine::Load({.model_path = model_,
                                          .context_tokens = kContextTokens,
                                          .k_type = GetParam().cache,
                                          .v_type = GetParam().cache});
    ASSERT_TRUE(bare.ok()) << bare.status();
    bare_ = *std::move(bare);
    cluster_ = std::make_unique<Cluster>(Cluster::Options{
        .model = model_,
        // A prompt retained from before moves the next one's cells, and with them the rounding.
        .worker_flags = {"--kv-floor", "lossless", "--retained-prompts", "0", "--k-type",
                         GetParam().cache, "--v-type", GetParam().cache, "--step-tokens",
                         std::to_string(kStepTokens), "--chunk-tokens",
                         std::to_string(kChunkTokens), "--context-tokens",
                         std::to_string(kContextTokens)}});
  }

  std::string model_;
  std::unique_ptr<oracle::BareEngine> bare_;
  std::unique_ptr<Cluster> cluster_;
};

TEST_P(ExactnessTest, OneAtATimeEqualsTheBareEngineTokenForToken) {
  const auto prompts = Prompts(*bare_);
  ASSERT_GE(prompts.size(), 200u);
  size_t tokens = 0;
  for (size_t i = 0; i < prompts.size(); ++i) {
    const uint32_t n = RoomAfter(prompts[i], 16);
    auto expected = bare_->Greedy(prompts[i], n, {.step_tokens = kStepTokens});
    ASSERT_TRUE(expected.ok()) << expected.status();
    const Generated got = cluster_->client().Generate(RequestFor(prompts[i], n));
    ASSERT_TRUE(got.status.ok()) << got.status.error_message();
    EXPECT_EQ(got.tokens, *expected) << "prompt " << i << " of " << prompts[i].size() << " tokens";
    tokens += got.tokens.size();
  }
  std::cout << "exact: " << prompts.size() << " prompts, " << tokens << " tokens\n";
}

TEST_P(ExactnessTest, SixteenAtOnceAreFaithful) {
  constexpr size_t kAtOnce = 16, kRounds = 2;
  constexpr uint32_t kTokens = 24;
  std::mt19937 random(7);
  std::vector<std::vector<int32_t>> prompts;
  for (size_t i = 0; i < kAtOnce * kRounds; ++i) {
    prompts.push_back(
        i % 2 == 0 ? bare_->Tokenize(kTexts[i % kTexts.size()] + " once upon a time there was")
                   : Filler(random, 20 + random() % 500));
  }
  std::vector<Generated> got(prompts.size());
  for (size_t round = 0; round < kRounds; ++round) {
    std::vector<std::thread> clients;
    for (size_t i = round * kAtOnce; i < (round + 1) * kAtOnce; ++i) {
      clients.emplace_back([&, i] {
        Client client(cluster_->router().RouterAddress());
        got[i] = client.Generate(RequestFor(prompts[i], kTokens));
      });
    }
    for (std::thread& client : clients) client.join();
  }

  const oracle::StepShape alone{.step_tokens = kStepTokens};
  const auto busy = oracle::BusyShapes(kStepTokens);
  float noise = 0, worst_gap = 0;
  size_t identical = 0, tokens = 0;
  for (size_t i = 0; i < prompts.size(); ++i) {
    ASSERT_TRUE(got[i].status.ok()) << got[i].status.error_message();
    auto expected = bare_->Greedy(prompts[i], kTokens, alone);
    ASSERT_TRUE(expected.ok()) << expected.status();
    if (got[i].tokens == *expected) ++identical;
    if (got[i].tokens.empty()) continue;
    std::vector<int32_t> sequence = prompts[i];
    sequence.insert(sequence.end(), got[i].tokens.begin(), got[i].tokens.end());
    // What rounding can do is measured on these very sequences, on a share of them since it is
    // slow: mostly on the long ones, whose prompts may be cut anywhere.
    if (i < kAtOnce && (i % 2 == 1 || i % 8 == 0)) {
      auto measured = bare_->StepShapeNoise(sequence, prompts[i].size(), alone, busy);
      ASSERT_TRUE(measured.ok()) << measured.status();
      noise = std::max(noise, *measured);
    }
    auto gaps = bare_->Gaps(sequence, prompts[i].size(), alone);
    ASSERT_TRUE(gaps.ok()) << gaps.status();
    for (const float gap : *gaps) worst_gap = std::max(worst_gap, gap);
    tokens += got[i].tokens.size();
  }
  EXPECT_LE(worst_gap, noise) << "a token is further below the top than rounding explains";
  std::cout << "faithful: " << tokens << " tokens, largest gap to the top " << worst_gap
            << ", step-shape noise " << noise << "; " << identical << " of " << prompts.size()
            << " sequences identical outright\n";
}

INSTANTIATE_TEST_SUITE_P(WeightsAndCaches, ExactnessTest,
                         testing::Values(Setting{"q8_0", "f16"}, Setting{"q8_0", "q8_0"},
                                         Setting{"f16", "f16"}, Setting{"f16", "q8_0"}),
                         [](const auto& info) {
                           return info.param.weights + "_weights_" + info.param.cache + "_cache";
                         });

}  // namespace
}  // namespace tandem::e2e
