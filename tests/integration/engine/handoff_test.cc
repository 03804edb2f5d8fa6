// The exactness of a handoff: prefill engine, extraction in chunks, sink, injection, decode engine
// give the very bits of one libllama context that is left alone.
#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "base/status.h"
#include "tests/integration/engine/engine_fixture.h"
#include "tests/support/bare_engine.h"
#include "tests/support/tiny_model.h"
#include "workers/engine/incoming_kv.h"

namespace tandem::workers {
namespace {

using Use = EngineOptions::Use;

struct Config {
  const char* name;
  const char* k_type;
  const char* v_type;
  bool flash_attention;
  bool force_opaque = false;
};

EngineOptions With(Use use, const Config& config) {
  EngineOptions options = Options(use);
  options.k_type = config.k_type;
  options.v_type = config.v_type;
  options.flash_attention = config.flash_attention;
  options.force_opaque = config.force_opaque;
  return options;
}

/// Prefill, handoff and greedy decoding of one prompt against the bare engine, bit for bit.
void ExpectExact(const std::shared_ptr<const Model>& model, const Config& config,
                 const std::vector<int32_t>& prompt, uint32_t chunk_tokens) {
  constexpr size_t kSteps = 12;
  auto prefill = MakeEngine(With(Use::kPrefill, config), model);
  auto decode = MakeEngine(With(Use::kDecode, config), model);
  std::vector<float> first_logits;
  ASSERT_OK(Feed(*prefill, 0, prompt, &first_logits));
  ASSERT_OK(Handoff(*prefill, 0, *decode, 0, chunk_tokens));
  EXPECT_EQ(decode->Length(0), prompt.size());
  const int32_t first = Best(first_logits);
  const auto got = Continue(*decode, 0, first, kSteps);
  ASSERT_TRUE(got.ok()) << got.status();

  auto bare = oracle::BareEngine::Load({.model_path = model->path(),
                                        .k_type = config.k_type,
                                        .v_type = config.v_type,
                                        .flash_attention = config.flash_attention});
  ASSERT_TRUE(bare.ok()) << bare.status();
  const oracle::StepShape shape{.step_tokens = prefill->options().step_tokens};
  std::vector<int32_t> tokens = prompt;
  tokens.push_back(first);
  tokens.insert(tokens.end(), got->tokens.begin(), got->tokens.end());
  const auto want = (*bare)->TeacherForced(tokens, prompt.size(), shape);
  ASSERT_TRUE(want.ok()) << want.status();
  ASSERT_EQ(want->size(), kSteps + 1);
  EXPECT_TRUE(want->front() == first_logits) << "the prompt's logits differ";
  for (size_t i = 0; i < kSteps; ++i) {
    EXPECT_TRUE((*want)[i + 1] == got->logits[i]) << "logits of step " << i << " differ";
  }
}

class HandoffTest : public ::testing::TestWithParam<Config> {};
class ChunkedHandoffTest : public HandoffTest {};

TEST_P(HandoffTest, IsBitExactInChunksOf256) {
  const uint32_t chunk = GetParam().force_opaque ? 600 : 256;
  ExpectExact(DemoModel(), GetParam(), Prompt(600), chunk);
}

TEST_P(ChunkedHandoffTest, IsBitExactInOddChunks) {
  for (const auto& [n, chunk] :
       {std::pair{1u, 256u}, {2u, 1u}, {255u, 256u}, {256u, 256u}, {257u, 256u}, {100u, 7u}}) {
    SCOPED_TRACE(::testing::Message() << n << " tokens in chunks of " << chunk);
    ExpectExact(DemoModel(), GetParam(), Prompt(n), chunk);
  }
}

constexpr Config kPlain[] = {
    {"f16", "f16", "f16", true},  {"f16NoFlash", "f16", "f16", false},
    {"q8", "q8_0", "q8_0", true}, {"q8NoFlash", "q8_0", "f16", false},
    {"q4", "q4_0", "q4_0", true}, {"f32", "f32", "f32", true},
};
constexpr Config kForcedOpaque[] = {
    {"f16Opaque", "f16", "f16", true, true},
    {"q8NoFlashOpaque", "q8_0", "f16", false, true},
};
std::string NameOf(const ::testing::TestParamInfo<Config>& info) { return info.param.name; }
INSTANTIATE_TEST_SUITE_P(Plain, HandoffTest, ::testing::ValuesIn(kPlain), NameOf);
INSTANTIATE_TEST_SUITE_P(Opaque, HandoffTest, ::testing::ValuesIn(kForcedOpaque), NameOf);
INSTANTIATE_TEST_SUITE_P(Plain, ChunkedHandoffTest, ::testing::ValuesIn(kPlain), NameOf);

class OtherMemoryTest : public ::testing::TestWithParam<testing_models::TinyKind> {};

TEST_P(OtherMemoryTest, MovesAsAWholeStateBitExact) {
  const std::string path = ::testing::TempDir() + "tandem-tiny-" +
                           std::to_string(static_cast<int>(GetParam())) + "-" +
                           std::to_string(getpid()) + ".gguf";
  ASSERT_OK(testing_models::WriteTinyModel(GetParam(), DemoModelPath(), path));
  auto model = Model::Load({.path = path});
  ASSERT_TRUE(model.ok()) << model.status();
  for (bool flash_attention : {true, false}) {
    const Config config{"tiny", "f16", "f16", flash_attention};
    EXPECT_TRUE(MakeEngine(With(Use::kPrefill, config), *model)->layout().opaque);
    // Longer than the window of 32.
    ExpectExact(*model, config, Prompt(100), 100);
  }
  std::filesystem::remove(path);
}

TEST_P(OtherMemoryTest, SequencesJoinMoveAndLeave) {
  const std::string path = ::testing::TempDir() + "tandem-tiny-moving-" +
                           std::to_string(static_cast<int>(GetParam())) + "-" +
                           std::to_string(getpid()) + ".gguf";
  ASSERT_OK(testing_models::WriteTinyModel(GetParam(), DemoModelPath(), path));
  auto model = Model::Load({.path = path});
  ASSERT_TRUE(model.ok()) << model.status();
  auto prefill = MakeEngine(Options(Use::kPrefill), *model);
  auto decode = MakeEngine(Options(Use::kDecode), *model);
  auto still = MakeEngine(Options(Use::kDecode), *model);
  for (int32_t s : {0, 1, 2}) {
    ASSERT_OK(Feed(*prefill, s, Prompt(50 + 10 * s, s)));
  }
  for (int32_t s : {0, 1, 2}) {
    const auto length = prefill->Length(s);
    ASSERT_OK(Handoff(*prefill, s, *decode, s, length));
    ASSERT_OK(Handoff(*prefill, s, *still, s, length));
  }
  decode->Free(0);
  ASSERT_OK(decode->Move(2, 0));
  EXPECT_EQ(decode->Length(0), 70u);
  EXPECT_EQ(decode->Length(2), 0u);
  const auto moved = Continue(*decode, 0, 100, 4);
  const auto unmoved = Continue(*still, 2, 100, 4);
  ASSERT_TRUE(moved.ok() && unmoved.ok()) << moved.status() << unmoved.status();
  EXPECT_EQ(moved->tokens, unmoved->tokens);
  const auto other = Continue(*decode, 1, 100, 4);
  const auto other_still = Continue(*still, 1, 100, 4);
  ASSERT_TRUE(other.ok() && other_still.ok());
  EXPECT_EQ(other->tokens, other_still->tokens);
  std::filesystem::remove(path);
}

INSTANTIATE_TEST_SUITE_P(Kinds, OtherMemoryTest,
                         ::testing::Values(testing_models::TinyKind::kRecurrent,
                                           testing_models::TinyKind::kHybrid,
                                           testing_models::TinyKind::kSlidingWindow));

/// What libllama would be given.
std::vector<uint8_t> BlobOf(const Engine::IncomingKv& kv) {
  const auto bytes = dynamic_cast<const BlobSink&>(kv).blob();
  return {bytes.begin(), bytes.end()};
}

TEST(ExtractTest, GivesPositionsInOrderFromAFragmentedCache) {
  for (bool flash_attention : {true, false}) {
    EngineOptions options = Options(Use::kPrefill);
    options.flash_attention = flash_attention;
    options.kv_tokens = 2048;
    auto engine = MakeEngine(options);
    const auto prompt = Prompt(300);
    ASSERT_OK(Feed(*engine, 1, Prompt(100, 1)));
    ASSERT_OK(Feed(*engine, 0, std::span(prompt).first(100)));
    engine->Free(1);
    // These go into the cells before the first hundred, and around them.
    ASSERT_OK(Feed(*engine, 0, std::span(prompt).subspan(100)));
    const auto at_once = Carry(*engine, 0, *engine, 300);
    const auto one_by_one = Carry(*engine, 0, *engine, 1);
    ASSERT_TRUE(at_once.ok() && one_by_one.ok()) << at_once.status() << one_by_one.status();
    EXPECT_TRUE(BlobOf(**at_once) == BlobOf(**one_by_one));
  }
}

TEST(HandoffOfSeveralTest, BatchesDoNotMixSequences) {
  // With q8_0 weights, streams apart and flash attention off, libllama's logits do not depend on
  // the batch, so each sequence must get the same bits in company as alone.
  EngineOptions options = Options(Use::kPrefill);
  options.flash_attention = false;
  auto prefill = MakeEngine(options);
  options.use = Use::kDecode;
  auto together = MakeEngine(options);
  auto alone = MakeEngine(options);
  std::vector<std::vector<int32_t>> prompts;
  for (uint32_t s = 0; s < 4; ++s) prompts.push_back(Prompt(40 + 70 * s, s));
  // All prompts advance in common steps.
  for (size_t done = 0; done < 250; done += 50) {
    std::vector<Engine::StepItem> items;
    for (int32_t s = 0; s < 4; ++s) {
      if (done >= prompts[s].size()) continue;
      const auto rest = std::span(prompts[s]).subspan(done);
      items.push_back(
          {s, static_cast<int32_t>(done), rest.first(std::min<size_t>(50, rest.size())), false});
    }
    ASSERT_OK(prefill->Step(items));
  }
  std::vector<int32_t> last = {11, 222, 1333, 44};
  std::vector<Continuation> want;
  for (int32_t s = 0; s < 4; ++s) {
    ASSERT_OK(Handoff(*prefill, s, *together, s, 64));
    ASSERT_OK(Handoff(*prefill, s, *alone, 0, 33));
    auto continuation = Continue(*alone, 0, last[s], 8);
    ASSERT_TRUE(continuation.ok()) << continuation.status();
    want.push_back(*std::move(continuation));
  }
  for (size_t step = 0; step < 8; ++step) {
    std::vector<Engine::StepItem> items;
    for (int32_t s = 0; s < 4; ++s) {
      items.push_back({s, static_cast<int32_t>(together->Length(s)), std::span(&last[s], 1), true});
    }
    ASSERT_OK(together->Step(items));
    for (int32_t s = 0; s < 4; ++s) {
      const auto logits = together->Logits(s);
      EXPECT_TRUE(std::equal(logits.begin(), logits.end(), want[s].logits[step].begin()))
          << "sequence " << s << " step " << step;
      last[s] = want[s].tokens[step];
    }
  }
}

class MoveTest : public ::testing::TestWithParam<bool> {};

TEST_P(MoveTest, ChangesNoBit) {
  EngineOptions options = Options(Use::kPrefill);
  options.flash_attention = GetParam();
  auto prefill = MakeEngine(options);
  options.use = Use::kDecode;
  auto moving = MakeEngine(options), still = MakeEngine(options);
  ASSERT_OK(Feed(*prefill, 0, Prompt(300)));
  ASSERT_OK(Feed(*prefill, 1, Prompt(120, 1)));
  ASSERT_OK(Handoff(*prefill, 0, *moving, 3, 256));
  ASSERT_OK(Handoff(*prefill, 0, *still, 3, 256));
  // Also after steps of its own, and when the old place is taken at once by another.
  ASSERT_TRUE(Continue(*moving, 3, 100, 3).ok() && Continue(*still, 3, 100, 3).ok());
  ASSERT_OK(moving->Move(3, 1));
  ASSERT_OK(Handoff(*prefill, 1, *moving, 3, 256));
  ASSERT_OK(moving->Move(1, 0));
  EXPECT_EQ(moving->Length(0), 303u);
  EXPECT_EQ(moving->Length(1), 0u);
  const auto got = Continue(*moving, 0, 200, 5);
  const auto want = Continue(*still, 3, 200, 5);
  ASSERT_TRUE(got.ok() && want.ok()) << got.status() << want.status();
  EXPECT_TRUE(got->logits == want->logits);
}

INSTANTIATE_TEST_SUITE_P(FlashAttention, MoveTest, ::testing::Bool());

/// Takes all of `sequence` out of a decode engine and puts it into another.
absl::Status MoveAcross(Engine& from, int32_t sequence, Engine& to, int32_t target,
                        uint32_t chunk_tokens) {
  ASSIGN_OR_RETURN(const std::vector<kvstore::KvChunk> chunks,
                   from.ExtractAll(sequence, chunk_tokens));
  const auto sink = to.NewSink(from.Length(sequence));
  for (const kvstore::KvChunk& chunk : chunks) RETURN_IF_ERROR(Fill(*sink, chunk));
  return to.Inject(target, *sink);
}

TEST_P(HandoffTest, ADecodeEngineGivesItsSequencesAway) {
  auto prefill = MakeEngine(With(Use::kPrefill, GetParam()));
  auto moving = MakeEngine(With(Use::kDecode, GetParam()));
  auto still = MakeEngine(With(Use::kDecode, GetParam()));
  auto next = MakeEngine(With(Use::kDecode, GetParam()));
  ASSERT_OK(Feed(*prefill, 0, Prompt(600)));
  ASSERT_OK(Feed(*prefill, 1, Prompt(70, 1)));
  for (Engine* engine : {moving.get(), still.get()}) {
    ASSERT_OK(Handoff(*prefill, 0, *engine, 1, 600));
    // In a pool of cells that sequences share, their neighbours move the sums.
    if (!GetParam().force_opaque) ASSERT_OK(Handoff(*prefill, 1, *engine, 0, 70));
    ASSERT_TRUE(Continue(*engine, 1, 100, 5).ok());
  }
  // There, on for a few tokens, and back into a place that another sequence has used.
  ASSERT_OK(MoveAcross(*moving, 1, *next, 2, 256));
  moving->Free(1);
  const auto there = Continue(*next, 2, 200, 5);
  const auto want = Continue(*still, 1, 200, 5);
  ASSERT_TRUE(there.ok() && want.ok()) << there.status() << want.status();
  EXPECT_TRUE(there->logits == want->logits);
  moving->Free(0);
  ASSERT_OK(MoveAcross(*next, 2, *moving, 0, 1000));
  EXPECT_EQ(moving->Length(0), 610u);
  const auto back = Continue(*moving, 0, 300, 5);
  const auto want_back = Continue(*still, 1, 300, 5);
  ASSERT_TRUE(back.ok() && want_back.ok()) << back.status() << want_back.status();
  EXPECT_TRUE(back->logits == want_back->logits);
}

TEST(ExtractAllTest, GivesWhatExtractGives) {
  for (bool flash_attention : {true, false}) {
    EngineOptions options = Options(Use::kPrefill);
    options.flash_attention = flash_attention;
    auto engine = MakeEngine(options);
    ASSERT_OK(Feed(*engine, 1, Prompt(100, 1)));
    ASSERT_OK(Feed(*engine, 0, Prompt(300)));
    const auto chunks = engine->ExtractAll(0, 128);
    ASSERT_TRUE(chunks.ok()) << chunks.status();
    ASSERT_EQ(chunks->size(), 3u);
    for (const kvstore::KvChunk& chunk : *chunks) {
      const auto one = engine->Extract(0, chunk.first_position, chunk.n_tokens);
      ASSERT_TRUE(one.ok()) << one.status();
      EXPECT_TRUE(one->bytes == chunk.bytes) << "chunk at " << chunk.first_position;
    }
    EXPECT_FALSE(engine->ExtractAll(2, 128).ok()) << "an empty sequence";
  }
}

TEST(SiblingTest, ComputesTheSameOnSharedThreads) {
  EngineOptions options = Options(Use::kPrefill);
  options.threads = 2;
  auto alone = MakeEngine(options);
  auto prefill = MakeEngine(options);
  options.use = Use::kDecode;
  auto decode_alone = MakeEngine(options);
  auto made = Engine::Create(DemoModel(), options, prefill.get());
  ASSERT_TRUE(made.ok()) << made.status();
  std::unique_ptr<Engine> decode = *std::move(made);
  ASSERT_OK(Feed(*prefill, 0, Prompt(100)));
  ASSERT_OK(Feed(*alone, 0, Prompt(100)));
  ASSERT_OK(Handoff(*prefill, 0, *decode, 0, 100));
  ASSERT_OK(Handoff(*alone, 0, *decode_alone, 0, 100));
  // They take turns.
  for (int32_t turn = 0; turn < 3; ++turn) {
    std::vector<float> shared_logits, own_logits;
    const auto shared = Continue(*decode, 0, 7 + turn, 2);
    const auto own = Continue(*decode_alone, 0, 7 + turn, 2);
    ASSERT_TRUE(shared.ok() && own.ok()) << shared.status() << own.status();
    EXPECT_TRUE(shared->logits == own->logits);
    ASSERT_OK(Feed(*prefill, 1, Prompt(90, turn), &shared_logits));
    ASSERT_OK(Feed(*alone, 1, Prompt(90, turn), &own_logits));
    EXPECT_TRUE(shared_logits == own_logits);
  }
  prefill.reset();  // the threads stay for the other
  EXPECT_TRUE(Continue(*decode, 0, 9, 2).ok());
}

TEST(IdentityTest, IsEqualOnBothSidesAndTellsSettingsApart) {
  const auto prefill = MakeEngine(Options(Use::kPrefill));
  EngineOptions options = Options(Use::kDecode);
  options.context_tokens = 512;
  options.max_sequences = 7;
  EXPECT_TRUE(kvstore::CompareIdentity(prefill->identity(), MakeEngine(options)->identity()).ok());
  options.k_type = "q8_0";
  EXPECT_FALSE(kvstore::CompareIdentity(prefill->identity(), MakeEngine(options)->identity()).ok());
  options.k_type = "f16";
  options.flash_attention = false;
  EXPECT_FALSE(kvstore::CompareIdentity(prefill->identity(), MakeEngine(options)->identity()).ok());
  EXPECT_EQ(prefill->layout().BytesPerToken(), 4096u);
  EXPECT_EQ(prefill->layout().planes.size(), 16u);
}

}  // namespace
}  // namespace tandem::workers
