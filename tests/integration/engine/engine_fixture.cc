#include "tests/integration/engine/engine_fixture.h"

#include <algorithm>
#include <cstring>

#include "base/status.h"

namespace tandem::workers {

std::string DemoModelPath() { return TANDEM_DEMO_MODEL; }

std::shared_ptr<const Model> DemoModel() {
  static const std::shared_ptr<const Model> model = [] {
    auto loaded = Model::Load({.path = DemoModelPath()});
    if (!loaded.ok()) {
      ADD_FAILURE() << loaded.status();
      std::abort();
    }
    return *loaded;
  }();
  return model;
}

std::vector<int32_t> Prompt(size_t n, uint32_t seed) {
  static const char* const kWords[] = {"king", "forest", "old",  "woman", "and",  "said", "golden",
                                       "bird", "the",    "went", "away",  "into", "house"};
  std::string text = "Once upon a time there was";
  uint32_t state = seed * 2654435761u + 17;
  std::vector<int32_t> tokens;
  do {
    for (int i = 0; i < 64; ++i) {
      state = state * 1664525u + 1013904223u;
      text += std::string(" ") + kWords[(state >> 16) % std::size(kWords)];
    }
    tokens = DemoModel()->Tokenize(text, /*add_special=*/true);
  } while (tokens.size() < n);
  tokens.resize(n);
  return tokens;
}

int32_t Best(std::span<const float> logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

EngineOptions Options(EngineOptions::Use use) {
  return {.use = use, .context_tokens = 2048, .max_sequences = 4, .step_tokens = 512};
}

std::unique_ptr<Engine> MakeEngine(const EngineOptions& options,
                                   std::shared_ptr<const Model> model) {
  auto engine = Engine::Create(std::move(model), options);
  if (!engine.ok()) {
    ADD_FAILURE() << engine.status();
    std::abort();
  }
  return *std::move(engine);
}

absl::Status Feed(Engine& engine, int32_t sequence, std::span<const int32_t> tokens,
                  std::vector<float>* logits) {
  while (!tokens.empty()) {
    const size_t n = std::min<size_t>(tokens.size(), engine.options().step_tokens);
    const Engine::StepItem item{.sequence = sequence,
                                .first_position = static_cast<int32_t>(engine.Length(sequence)),
                                .tokens = tokens.first(n),
                                .want_logits = n == tokens.size()};
    RETURN_IF_ERROR(engine.Step({&item, 1}));
    tokens = tokens.subspan(n);
  }
  if (logits != nullptr) {
    const auto last = engine.Logits(0);
    logits->assign(last.begin(), last.end());
  }
  return absl::OkStatus();
}

absl::Status Fill(Engine::IncomingKv& sink, const kvstore::KvChunk& chunk) {
  ASSIGN_OR_RETURN(const auto spans,
                   sink.Prepare(chunk.first_position, chunk.n_tokens, chunk.bytes.size()));
  const uint8_t* at = chunk.bytes.data();
  for (std::span<uint8_t> span : spans) {
    std::memcpy(span.data(), at, span.size());
    at += span.size();
  }
  EXPECT_EQ(at, chunk.bytes.data() + chunk.bytes.size());
  sink.Commit();
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Engine::IncomingKv>> Carry(Engine& from, int32_t sequence,
                                                          const Engine& to, uint32_t chunk_tokens) {
  const uint32_t length = from.Length(sequence);
  auto sink = to.NewSink(length);
  for (uint32_t first = 0; first < length; first += chunk_tokens) {
    ASSIGN_OR_RETURN(const auto chunk,
                     from.Extract(sequence, first, std::min(chunk_tokens, length - first)));
    RETURN_IF_ERROR(Fill(*sink, chunk));
  }
  return sink;
}

absl::Status Handoff(Engine& from, int32_t sequence, Engine& to, int32_t target,
                     uint32_t chunk_tokens) {
  ASSIGN_OR_RETURN(const auto kv, Carry(from, sequence, to, chunk_tokens));
  return to.Inject(target, *kv);
}

absl::StatusOr<Continuation> Continue(Engine& engine, int32_t sequence, int32_t token, size_t n) {
  Continuation result;
  for (size_t i = 0; i < n; ++i) {
    std::vector<float> logits;
    RETURN_IF_ERROR(Feed(engine, sequence, std::span(&token, 1), &logits));
    token = Best(logits);
    result.tokens.push_back(token);
    result.logits.push_back(std::move(logits));
  }
  return result;
}

}  // namespace tandem::workers
