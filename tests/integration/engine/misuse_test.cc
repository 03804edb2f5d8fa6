// Wrong use and exhausted limits of the engine: a precise status each, never an abort, and the
// engine goes on. And the self-check, which must refuse what is not the same.
#include <gmock/gmock.h>

#include "tests/integration/engine/engine_fixture.h"
#include "workers/engine/context.h"
#include "workers/engine/self_check.h"

namespace tandem::workers {
namespace {

using ::testing::HasSubstr;
using Use = EngineOptions::Use;

void ExpectStatus(const absl::Status& status, absl::StatusCode code, const std::string& text) {
  EXPECT_EQ(status.code(), code) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(text));
}

absl::Status StepOf(Engine& engine, int32_t sequence, int32_t position,
                    const std::vector<int32_t>& tokens) {
  const Engine::StepItem item{sequence, position, tokens, true};
  return engine.Step({&item, 1});
}

class StepMisuseTest : public ::testing::TestWithParam<Use> {
 protected:
  StepMisuseTest() {
    EngineOptions options = Options(GetParam());
    options.step_tokens = 8;
    engine_ = MakeEngine(options);
    EXPECT_TRUE(Feed(*engine_, 0, std::vector<int32_t>{1, 300, 301}, &before_).ok());
  }
  /// The engine still computes what it would have.
  ~StepMisuseTest() override {
    EXPECT_EQ(engine_->Length(0), 3u);
    std::vector<float> after;
    EXPECT_TRUE(Feed(*engine_, 1, std::vector<int32_t>{1, 300, 301}, &after).ok());
    EXPECT_TRUE(before_ == after);
    EXPECT_TRUE(StepOf(*engine_, 0, 3, {302}).ok());
  }
  std::unique_ptr<Engine> engine_;
  std::vector<float> before_;
};

TEST_P(StepMisuseTest, IsAnswered) {
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  ExpectStatus(engine_->Step({}), kInvalid, "a step of 0 tokens; it can have 1 to 8");
  ExpectStatus(StepOf(*engine_, 0, 3, {}), kInvalid, "no tokens for sequence 0");
  ExpectStatus(StepOf(*engine_, 0, 3, {-1}), kInvalid, "token -1 of sequence 0");
  ExpectStatus(StepOf(*engine_, 0, 3, {4096}), kInvalid, "not in the vocabulary of 4096");
  ExpectStatus(StepOf(*engine_, 0, 2, {5}), kInvalid, "position 2, but it holds 3");
  ExpectStatus(StepOf(*engine_, 0, 4, {5}), kInvalid, "position 4, but it holds 3");
  ExpectStatus(StepOf(*engine_, 0, -1, {5}), kInvalid, "position -1, but it holds 3");
  ExpectStatus(StepOf(*engine_, 1, 1, {5}), kInvalid, "position 1, but it holds 0");
  ExpectStatus(StepOf(*engine_, -1, 0, {5}), kInvalid, "no sequence -1; ids are 0 to 3");
  ExpectStatus(StepOf(*engine_, 4, 0, {5}), kInvalid, "no sequence 4");
  ExpectStatus(StepOf(*engine_, 0, 3, std::vector<int32_t>(9, 5)), kInvalid, "a step of 9 tokens");
  const std::vector<int32_t> token = {5};
  const Engine::StepItem twice[] = {{0, 3, token, true}, {0, 3, token, true}};
  ExpectStatus(engine_->Step(twice), kInvalid, "sequence 0 is in the step twice");
}

TEST_P(StepMisuseTest, LogitsThatWereNotWantedAreEmpty) {
  const std::vector<int32_t> token = {5};
  const Engine::StepItem items[] = {{2, 0, token, false}, {3, 0, token, true}};
  ASSERT_OK(engine_->Step(items));
  EXPECT_TRUE(engine_->Logits(0).empty());
  EXPECT_EQ(engine_->Logits(1).size(), 4096u);
  EXPECT_TRUE(engine_->Logits(2).empty());
}

INSTANTIATE_TEST_SUITE_P(Uses, StepMisuseTest, ::testing::Values(Use::kPrefill, Use::kDecode));

TEST(LimitTest, AContextCanBeFilledToItsLastTokenAndNotFurther) {
  for (Use use : {Use::kPrefill, Use::kDecode}) {
    EngineOptions options = Options(use);
    options.context_tokens = 300;  // libllama rounds this up
    options.max_sequences = 2;
    auto engine = MakeEngine(options);
    for (int32_t s : {0, 1}) {
      ASSERT_OK(Feed(*engine, s, Prompt(300)));
      ExpectStatus(StepOf(*engine, s, 300, {5}), absl::StatusCode::kOutOfRange,
                   "would hold 301 tokens, the context has room for 300");
    }
    engine->Free(0);
    EXPECT_EQ(engine->Length(0), 0u);
    ASSERT_OK(Feed(*engine, 0, Prompt(300)));
  }
}

TEST(LimitTest, AFullPoolRefusesAndGoesOn) {
  EngineOptions options = Options(Use::kPrefill);
  options.context_tokens = 200;
  options.kv_tokens = 250;
  auto engine = MakeEngine(options);
  EXPECT_EQ(engine->options().step_tokens, 250u);
  ASSERT_OK(Feed(*engine, 0, Prompt(200)));
  ExpectStatus(Feed(*engine, 1, Prompt(51)), absl::StatusCode::kResourceExhausted,
               "51 tokens are too many with 200 of 250 in use");
  ASSERT_OK(Feed(*engine, 1, Prompt(50)));
  engine->Free(0);
  ASSERT_OK(Feed(*engine, 2, Prompt(200)));
}

TEST(LimitTest, MoreSequencesThanStepTokens) {
  EngineOptions options = Options(Use::kDecode);
  options.step_tokens = 2;
  options.max_sequences = 6;
  auto engine = MakeEngine(options);
  ASSERT_OK(Feed(*engine, 5, Prompt(7)));
}

TEST(LimitTest, SequenceIdsInAnyOrderWithGaps) {
  auto engine = MakeEngine(Options(Use::kDecode));
  const std::vector<int32_t> tokens = {1, 2, 3};
  const Engine::StepItem items[] = {{3, 0, tokens, true}, {0, 0, std::span(tokens).first(1), true}};
  ASSERT_OK(engine->Step(items));
  EXPECT_FALSE(engine->Logits(0).empty());
  EXPECT_FALSE(engine->Logits(1).empty());
  EXPECT_EQ(engine->Length(3), 3u);
}

TEST(MisuseTest, Extract) {
  auto prefill = MakeEngine(Options(Use::kPrefill));
  ASSERT_OK(Feed(*prefill, 0, Prompt(10)));
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  ExpectStatus(prefill->Extract(4, 0, 1).status(), kInvalid, "no sequence 4");
  ExpectStatus(prefill->Extract(0, 0, 0).status(), kInvalid, "cannot extract 0 tokens");
  ExpectStatus(prefill->Extract(0, 0, 11).status(), kInvalid, "which holds 10");
  ExpectStatus(prefill->Extract(0, UINT32_MAX, 2).status(), kInvalid, "which holds 10");
  ExpectStatus(prefill->Extract(1, 0, 1).status(), kInvalid, "which holds 0");
  auto decode = MakeEngine(Options(Use::kDecode));
  ExpectStatus(decode->Extract(0, 0, 1).status(), absl::StatusCode::kFailedPrecondition,
               "only a prefill engine");
  EngineOptions options = Options(Use::kPrefill);
  options.force_opaque = true;
  auto opaque = MakeEngine(options);
  ASSERT_OK(Feed(*opaque, 0, Prompt(10)));
  ExpectStatus(opaque->Extract(0, 0, 9).status(), kInvalid, "as a whole only");
}

class ForeignSink : public Engine::IncomingKv {
 public:
  absl::StatusOr<std::vector<std::span<uint8_t>>> Prepare(uint32_t, uint32_t, uint64_t) override {
    return std::vector<std::span<uint8_t>>{};
  }
  void Commit() override {}
  bool complete() const override { return true; }
  uint32_t n_tokens() const override { return 1; }
  uint32_t first_position() const override { return 0; }
};

TEST(MisuseTest, InjectAndMove) {
  auto prefill = MakeEngine(Options(Use::kPrefill));
  auto decode = MakeEngine(Options(Use::kDecode));
  ASSERT_OK(Feed(*prefill, 0, Prompt(10)));
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  ExpectStatus(decode->Inject(0, *decode->NewSink(10)), absl::StatusCode::kFailedPrecondition,
               "not arrived completely");
  ExpectStatus(decode->Inject(0, ForeignSink()), kInvalid, "not an engine's");
  const auto kv = Carry(*prefill, 0, *decode, 4);
  ASSERT_TRUE(kv.ok()) << kv.status();
  ExpectStatus(decode->Inject(9, **kv), kInvalid, "no sequence 9");
  ASSERT_OK(decode->Inject(0, **kv));
  ASSERT_OK(decode->Inject(0, **kv));  // replaces
  ASSERT_OK(decode->Inject(1, **kv));
  ExpectStatus(decode->Move(0, 1), kInvalid, "to sequence 1 of 10 tokens");
  ExpectStatus(decode->Move(2, 3), kInvalid, "sequence 2 of 0 tokens");
  ExpectStatus(decode->Move(0, 4), kInvalid, "no sequence 4");
  ExpectStatus(prefill->Move(0, 1), kInvalid, "cannot move");
  EXPECT_EQ(decode->Length(0), 10u);
}

TEST(MisuseTest, KvOfAnotherLayoutIsRefusedNotInjected) {
  auto prefill = MakeEngine(Options(Use::kPrefill));
  EngineOptions options = Options(Use::kDecode);
  options.k_type = options.v_type = "q8_0";
  auto decode = MakeEngine(options);
  ASSERT_OK(Feed(*prefill, 0, Prompt(10)));
  // Its sinks do not take it, and neither does libllama take the other engine's blob.
  EXPECT_EQ(Carry(*prefill, 0, *decode, 4).status().code(), absl::StatusCode::kInvalidArgument);
  const auto kv = Carry(*prefill, 0, *prefill, 4);
  ASSERT_TRUE(kv.ok()) << kv.status();
  ExpectStatus(decode->Inject(0, **kv), absl::StatusCode::kDataLoss, "n_stream mismatch");
  EXPECT_EQ(decode->Length(0), 0u);
  ASSERT_OK(Feed(*decode, 0, Prompt(10)));
}

TEST(MisuseTest, DamagedOpaqueStateDoesNotCrash) {
  EngineOptions options = Options(Use::kPrefill);
  options.force_opaque = true;
  auto prefill = MakeEngine(options);
  options.use = Use::kDecode;
  auto decode = MakeEngine(options);
  ASSERT_OK(Feed(*prefill, 0, Prompt(10)));
  const auto chunk = prefill->Extract(0, 0, 10);
  ASSERT_TRUE(chunk.ok()) << chunk.status();
  for (size_t cut : {size_t{1}, size_t{4}, size_t{11}, chunk->bytes.size() - 1}) {
    auto sink = decode->NewSink(10);
    const auto spans = sink->Prepare(0, 10, cut);
    ASSERT_TRUE(spans.ok()) << spans.status();
    std::copy_n(chunk->bytes.begin(), cut, spans->front().begin());
    sink->Commit();
    EXPECT_EQ(decode->Inject(0, *sink).code(), absl::StatusCode::kDataLoss);
    EXPECT_EQ(decode->Length(0), 0u);
  }
  ASSERT_OK(Handoff(*prefill, 0, *decode, 0, 10));
}

TEST(CreateTest, RefusesImpossibleOptions) {
  const auto expect = [](auto change, absl::StatusCode code, const std::string& text) {
    EngineOptions options = Options(Use::kPrefill);
    change(options);
    ExpectStatus(Engine::Create(DemoModel(), options).status(), code, text);
  };
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  expect([](auto& o) { o.context_tokens = 0; }, kInvalid, "context_tokens is 0");
  expect([](auto& o) { o.max_sequences = 0; }, kInvalid, "max_sequences is 0, must be 1 to 255");
  expect([](auto& o) { o.max_sequences = 256; }, kInvalid, "max_sequences is 256");
  expect([](auto& o) { o.step_tokens = 0; }, kInvalid, "step_tokens is 0");
  expect([](auto& o) { o.threads = 0; }, kInvalid, "threads is 0");
  expect([](auto& o) { o.kv_tokens = 100; }, kInvalid, "kv_tokens is 100, must be 2048");
  expect([](auto& o) { o.k_type = "q2_K"; }, kInvalid, "k_type is \"q2_K\", must be one of f32");
  expect([](auto& o) { o.v_type = "F16"; }, kInvalid, "v_type is \"F16\"");
  expect(
      [](auto& o) {
        o.v_type = "q8_0";
        o.flash_attention = false;
      },
      kInvalid, "a quantised V needs flash_attention");
  expect([](auto& o) { o.kv_tokens = 1'000'000'000; }, absl::StatusCode::kResourceExhausted,
         "this machine has");
}

TEST(CreateTest, RefusesAModelWithoutWeights) {
  auto vocabulary = Model::Load({.path = DemoModelPath(), .vocabulary_only = true});
  ASSERT_TRUE(vocabulary.ok()) << vocabulary.status();
  ExpectStatus(Engine::Create(*vocabulary, Options(Use::kPrefill)).status(),
               absl::StatusCode::kInvalidArgument, "loaded without its weights");
}

TEST(CreateTest, TwoThreadsComputeTheSameEveryTime) {
  EngineOptions options = Options(Use::kPrefill);
  options.threads = 2;
  std::vector<float> first, second;
  for (std::vector<float>* logits : {&first, &second}) {
    auto engine = MakeEngine(options);
    ASSERT_OK(Feed(*engine, 0, Prompt(20), logits));
  }
  EXPECT_TRUE(first == second);
}

class SelfCheckTest : public ::testing::TestWithParam<bool> {
 protected:
  static absl::Status Check(const std::function<void(kvstore::KvChunk&)>& damage) {
    return CheckMemory(*DemoModel(), CacheSettings{}, ComputeThreads(1), GetParam(), damage)
        .status();
  }
};

TEST_P(SelfCheckTest, PassesUndamaged) { ASSERT_OK(Check(nullptr)); }

TEST_P(SelfCheckTest, RefusesASwappedByteOrder) {
  const auto status = Check([](kvstore::KvChunk& chunk) {
    // From the middle on: in an opaque state the headers come first.
    for (size_t i = chunk.bytes.size() / 2 & ~size_t{1}; i + 1 < chunk.bytes.size(); i += 2) {
      std::swap(chunk.bytes[i], chunk.bytes[i + 1]);
    }
  });
  ExpectStatus(status, absl::StatusCode::kFailedPrecondition, "self-check");
}

TEST_P(SelfCheckTest, RefusesATruncatedChunk) {
  const auto status = Check([](kvstore::KvChunk& chunk) { chunk.bytes.pop_back(); });
  ExpectStatus(status, absl::StatusCode::kFailedPrecondition, "self-check");
}

INSTANTIATE_TEST_SUITE_P(Opaque, SelfCheckTest, ::testing::Bool());

TEST(PlainSelfCheckTest, RefusesASingleFlippedBit) {
  const auto status = CheckMemory(*DemoModel(), CacheSettings{}, ComputeThreads(1), false,
                                  [](kvstore::KvChunk& chunk) { chunk.bytes.back() ^= 1; })
                          .status();
  ExpectStatus(status, absl::StatusCode::kFailedPrecondition, "is not the same");
}

}  // namespace
}  // namespace tandem::workers
