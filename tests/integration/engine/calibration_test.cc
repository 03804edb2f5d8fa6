// Replay through codecs whose outcome is known, and the sensitivity of channels.
#include <gmock/gmock.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "tests/integration/engine/engine_fixture.h"
#include "tests/support/tiny_model.h"
#include "workers/calibration/replay.h"
#include "workers/calibration/sensitivity.h"
#include "workers/engine/attention_layer.h"
#include "workers/engine/geometry.h"

namespace tandem::workers {
namespace {

using kvstore::KvChunk;
using ::testing::HasSubstr;

constexpr ReplayOptions kSmall{
    .context_tokens = 150, .continuation_tokens = 40, .windows = 3, .chunk_tokens = 64};

std::string Text(size_t tokens) { return DemoModel()->Detokenize(Prompt(tokens)); }

std::unique_ptr<Replayer> MakeReplayer(const ReplayOptions& options = kSmall) {
  auto replayer = Replayer::Create(DemoModel(), Text(800), options, {});
  if (!replayer.ok()) {
    ADD_FAILURE() << replayer.status();
    std::abort();
  }
  return *std::move(replayer);
}

absl::StatusOr<KvChunk> Identity(const KvChunk& chunk) { return chunk; }
absl::StatusOr<KvChunk> Zeroes(const KvChunk& chunk) {
  KvChunk zeroes = chunk;
  std::fill(zeroes.bytes.begin(), zeroes.bytes.end(), uint8_t{0});
  return zeroes;
}

std::vector<WindowScore> ScoreAll(Replayer& replayer, const Replayer::Codec& codec) {
  std::vector<WindowScore> scores;
  for (uint32_t i = 0; i < replayer.n_windows(); ++i) {
    EXPECT_TRUE(replayer.LoadWindow(i).ok());
    const auto score = replayer.Score(codec);
    EXPECT_TRUE(score.ok()) << score.status();
    scores.push_back(score.value_or(WindowScore()));
  }
  return scores;
}

TEST(ReplayTest, AnUnchangedCacheChangesNothing) {
  const auto replayer = MakeReplayer();
  const auto scores = ScoreAll(*replayer, Identity);
  for (const WindowScore& score : scores) {
    EXPECT_EQ(score.log_likelihoods, score.unchanged_log_likelihoods);
    EXPECT_EQ(score.top1_agreements, 40u);
    EXPECT_EQ(score.kl, 0);
    EXPECT_LT(score.log_likelihood, 0);
  }
  const Summary summary = Summarise(scores);
  EXPECT_EQ(summary.perplexity_change, 0);
  EXPECT_EQ(summary.perplexity_change_se, 0);
  EXPECT_EQ(summary.top1_agreement, 1);
  EXPECT_EQ(summary.kl, 0);
  EXPECT_GT(summary.unchanged_perplexity, 1);
}

TEST(ReplayTest, AnEmptiedCacheChangesMuch) {
  const auto replayer = MakeReplayer();
  const Summary summary = Summarise(ScoreAll(*replayer, Zeroes));
  EXPECT_GT(summary.perplexity_change, 0.05);
  EXPECT_GT(summary.perplexity_change_se, 0);
  EXPECT_LT(summary.top1_agreement, 0.95);
  EXPECT_GT(summary.kl, 0.02);
}

TEST(ReplayTest, ScoresAreThoseOfThePlainEngine) {
  const auto replayer = MakeReplayer();
  ASSERT_OK(replayer->LoadWindow(0));
  const auto score = replayer->Score(Identity);
  ASSERT_TRUE(score.ok()) << score.status();
  std::vector<int32_t> tokens = {*DemoModel()->BeginOfText()};
  const auto text = DemoModel()->Tokenize(Text(800), /*add_special=*/false);
  tokens.insert(tokens.end(), text.begin(), text.begin() + 190);
  const auto engine = MakeEngine(Options(EngineOptions::Use::kPrefill));
  ASSERT_OK(Feed(*engine, 0, std::span(tokens).first(150)));
  for (size_t i = 150; i + 1 < tokens.size(); ++i) {
    std::vector<float> logits;
    ASSERT_OK(Feed(*engine, 0, std::span(tokens).subspan(i, 1), &logits));
    double sum = 0;
    for (const float logit : logits) sum += std::exp(double{logit});
    // Other step shapes round otherwise.
    EXPECT_NEAR(score->log_likelihoods[i - 150], logits[tokens[i + 1]] - std::log(sum), 0.05);
  }
}

TEST(ReplayTest, ChunksAreTheContext) {
  const auto replayer = MakeReplayer();
  EXPECT_EQ(replayer->Score(Identity).status().code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_OK(replayer->LoadWindow(2));
  std::vector<std::pair<uint32_t, uint32_t>> cut;
  for (const KvChunk& chunk : replayer->chunks()) {
    cut.emplace_back(chunk.first_position, chunk.n_tokens);
    EXPECT_EQ(chunk.bytes.size(), chunk.n_tokens * replayer->layout().BytesPerToken());
  }
  using Pair = std::pair<uint32_t, uint32_t>;
  EXPECT_THAT(cut, testing::ElementsAre(Pair(0, 64), Pair(64, 64), Pair(128, 22)));
  EXPECT_EQ(replayer->LoadWindow(3).code(), absl::StatusCode::kOutOfRange);
}

TEST(ReplayTest, ACodecsErrorsAreReported) {
  const auto replayer = MakeReplayer();
  ASSERT_OK(replayer->LoadWindow(0));
  const auto failed = [](const KvChunk&) -> absl::StatusOr<KvChunk> {
    return absl::DataLossError("damaged");
  };
  EXPECT_EQ(replayer->Score(failed).status(), absl::DataLossError("damaged"));
  const auto cut = [](const KvChunk& chunk) -> absl::StatusOr<KvChunk> {
    KvChunk shorter = chunk;
    shorter.bytes.pop_back();
    return shorter;
  };
  EXPECT_EQ(replayer->Score(cut).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(replayer->Score(Identity).ok());
}

TEST(ReplayTest, SaysWhatIsWrong) {
  const auto error = [](std::string_view text, const ReplayOptions& options) {
    const auto replayer = Replayer::Create(DemoModel(), text, options, {});
    EXPECT_EQ(replayer.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(replayer.status().message());
  };
  EXPECT_THAT(error("Once upon a time", kSmall),
              HasSubstr("it has 4 tokens, one window takes 190 (a context of 150, a continuation "
                        "of 40 and one to start it), 3 windows at least 192 and 570"));
  ReplayOptions none = kSmall;
  none.windows = 0;
  EXPECT_THAT(error(Text(800), none), HasSubstr("0 windows (1)"));
}

TEST(SummariseTest, ComparesEachWindowWithItself) {
  const std::vector<WindowScore> scores = {{.log_likelihoods = {-1, -2},
                                            .log_likelihood = -3,
                                            .unchanged_log_likelihood = -2.9,
                                            .top1_agreements = 2,
                                            .kl = 0.02},
                                           {.log_likelihoods = {-5, -5},
                                            .log_likelihood = -10,
                                            .unchanged_log_likelihood = -9.7,
                                            .top1_agreements = 1,
                                            .kl = 0.06}};
  const Summary summary = Summarise(scores);
  EXPECT_NEAR(summary.unchanged_perplexity, std::exp(12.6 / 4), 1e-9);
  EXPECT_NEAR(summary.perplexity_change, std::exp(0.1) - 1, 1e-9);  // means 0.05 and 0.15
  EXPECT_NEAR(summary.perplexity_change_se, std::exp(0.1) * 0.05, 1e-9);
  EXPECT_EQ(summary.top1_agreement, 0.75);
  EXPECT_NEAR(summary.kl, 0.02, 1e-12);
}

TEST(AllLogitsTest, AreThoseOfSingleSteps) {
  EngineOptions options = Options(EngineOptions::Use::kDecode);
  options.all_logits = true;
  const auto engine = MakeEngine(options);
  const auto tokens = Prompt(20);
  const auto others = Prompt(5, 1);
  const Engine::StepItem items[] = {
      {0, 0, others, true}, {1, 0, tokens, false, true}, {2, 0, tokens, true, true}};
  ASSERT_OK(engine->Step(items));
  EXPECT_TRUE(engine->AllLogits(0).empty());
  EXPECT_EQ(engine->Logits(0).size(), 4096u);
  EXPECT_TRUE(engine->Logits(1).empty());
  ASSERT_EQ(engine->AllLogits(1).size(), 20 * 4096u);
  EXPECT_EQ(engine->AllLogits(2).last(4096).data(), engine->Logits(2).data());
  const auto plain = MakeEngine(Options(EngineOptions::Use::kDecode));
  for (size_t i = 0; i < tokens.size(); ++i) {
    std::vector<float> logits;
    ASSERT_OK(Feed(*plain, 0, std::span(tokens).subspan(i, 1), &logits));
    for (const size_t item : {1, 2}) {
      const auto row = engine->AllLogits(item).subspan(i * 4096, 4096);
      float difference = 0;
      for (size_t t = 0; t < row.size(); ++t) {
        difference = std::max(difference, std::abs(row[t] - logits[t]));
      }
      EXPECT_LT(difference, 0.1) << i;
    }
  }
  const Engine::StepItem item{0, 20, tokens, false, true};
  EXPECT_EQ(plain->Step({&item, 1}).code(), absl::StatusCode::kInvalidArgument);
}

TEST(SensitivityTest, OfTheDemoModel) {
  EngineOptions options = Options(EngineOptions::Use::kPrefill);
  options.step_tokens = 128;
  const auto geometry = GeometryOf(*MakeEngine(options));
  ASSERT_TRUE(geometry.ok());
  const auto tokens = Prompt(300);
  const auto measured = MeasureSensitivity(*DemoModel(), options, *geometry, tokens);
  ASSERT_TRUE(measured.ok()) << measured.status();
  ASSERT_EQ(measured->k.size(), 8u);
  ASSERT_EQ(measured->v_gram.size(), 8u);
  for (size_t layer = 0; layer < 8; ++layer) {
    ASSERT_EQ(measured->v_gram[layer].size(), 128 * 64u);
    std::vector<float> squares;
    for (size_t i = 0; i < 128; ++i) {
      squares.push_back(measured->v_gram[layer][i * 64 + i % 64]);
      const size_t head = i / 64 * 64;
      EXPECT_EQ(measured->v_gram[layer][i * 64], measured->v_gram[layer][head * 64 + i % 64]);
    }
    for (const auto& plane : {measured->k[layer], squares}) {
      ASSERT_EQ(plane.size(), 128u);
      EXPECT_GT(*std::min_element(plane.begin(), plane.end()), 0);
      EXPECT_GT(*std::max_element(plane.begin(), plane.end()),
                1.5f * *std::min_element(plane.begin(), plane.end()));
    }
  }
  // The same whatever the attention's form and the steps.
  EngineOptions other = options;
  other.flash_attention = false;
  other.step_tokens = 512;
  const auto again = MeasureSensitivity(*DemoModel(), other, *geometry, tokens);
  ASSERT_TRUE(again.ok());
  for (size_t i = 0; i < 128; ++i) {
    EXPECT_NEAR(measured->k[7][i] / again->k[7][i], 1, 0.05);
    EXPECT_EQ(measured->v_gram[7][i], again->v_gram[7][i]);
  }
}

TEST(SensitivityTest, SumsTheQueryHeadsOfEachKvHead) {
  const std::string path = ::testing::TempDir() + std::to_string(getpid()) + "-sensitivity.gguf";
  ASSERT_OK(
      testing_models::WriteTinyModel(testing_models::TinyKind::kFactors, DemoModelPath(), path));
  const auto model = Model::Load({.path = path});
  ASSERT_TRUE(model.ok()) << model.status();
  const EngineOptions options = Options(EngineOptions::Use::kPrefill);
  const auto geometry = GeometryOf(*MakeEngine(options, *model));
  ASSERT_TRUE(geometry.ok());
  const auto tokens = Prompt(100);
  const auto layers = ProbeAttention(**model, options, tokens);
  ASSERT_TRUE(layers.ok());
  const auto measured = MeasureSensitivity(**model, options, *geometry, tokens);
  ASSERT_TRUE(measured.ok());
  for (const auto& [number, layer] : *layers) {
    ASSERT_EQ(layer.n_query_heads, 4u);
    ASSERT_EQ(layer.query_squares.size(), 128u);
    for (size_t kv_head = 0; kv_head < 2; ++kv_head) {
      for (size_t i = 0; i < 32; ++i) {
        const double sum = layer.query_squares[2 * kv_head * 32 + i] +
                           layer.query_squares[(2 * kv_head + 1) * 32 + i];
        EXPECT_NEAR(measured->k[number][kv_head * 32 + i] / (sum / 100), 1, 1e-5);
      }
    }
  }
  std::filesystem::remove(path);
}

TEST(SensitivityTest, ChannelsOfAQuantisedVCountTheSame) {
  EngineOptions options = Options(EngineOptions::Use::kPrefill);
  options.v_type = "q8_0";
  const auto geometry = GeometryOf(*MakeEngine(options));
  ASSERT_TRUE(geometry.ok());
  const auto measured = MeasureSensitivity(*DemoModel(), options, *geometry, Prompt(20));
  ASSERT_TRUE(measured.ok()) << measured.status();
  ASSERT_EQ(measured->v_gram[0].size(), 128 * 64u);
  for (size_t i = 0; i < 128; ++i) {
    for (size_t j = 0; j < 64; ++j) EXPECT_EQ(measured->v_gram[0][i * 64 + j], i % 64 == j);
  }
  EXPECT_NE(measured->k[0], std::vector<float>(128, 1));
}

}  // namespace
}  // namespace tandem::workers
