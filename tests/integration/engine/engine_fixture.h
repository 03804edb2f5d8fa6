// What the engine's integration tests share: the demo model, prompts, prefill, the way of KV from
// one engine into another, greedy decoding.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "workers/engine/engine.h"
#include "workers/engine/model.h"

namespace tandem::workers {

/// Fails the test at once with the status' text.
#define ASSERT_OK(expr)                                     \
  do {                                                      \
    const absl::Status assert_ok_status = (expr);           \
    ASSERT_TRUE(assert_ok_status.ok()) << assert_ok_status; \
  } while (false)

/// models/demo-q8_0.gguf, loaded once.
std::shared_ptr<const Model> DemoModel();
std::string DemoModelPath();

/// `n` tokens of English, BOS first; `seed` varies them.
std::vector<int32_t> Prompt(size_t n, uint32_t seed = 0);

/// The argmax, lowest id first.
int32_t Best(std::span<const float> logits);

/// One thread, room for a few sequences of 2048 tokens.
EngineOptions Options(EngineOptions::Use use);
/// Aborts the test program when it cannot be made.
std::unique_ptr<Engine> MakeEngine(const EngineOptions& options,
                                   std::shared_ptr<const Model> model = DemoModel());

/// Computes tokens of one sequence from where it is, in steps of at most options().step_tokens;
/// logits after the last in `logits`, if given.
absl::Status Feed(Engine& engine, int32_t sequence, std::span<const int32_t> tokens,
                  std::vector<float>* logits = nullptr);

/// Puts a chunk into a sink.
absl::Status Fill(Engine::IncomingKv& sink, const kvstore::KvChunk& chunk);
/// Takes `sequence` out of `from` in chunks of `chunk_tokens` and fills a sink of `to`.
absl::StatusOr<std::unique_ptr<Engine::IncomingKv>> Carry(Engine& from, int32_t sequence,
                                                          const Engine& to, uint32_t chunk_tokens);
/// Carry, then Inject as sequence `target`.
absl::Status Handoff(Engine& from, int32_t sequence, Engine& to, int32_t target,
                     uint32_t chunk_tokens);

/// Feeds `token` and then each time the best; `n` rows of logits and n tokens (fed ones excluded).
struct Continuation {
  std::vector<int32_t> tokens;
  std::vector<std::vector<float>> logits;
};
absl::StatusOr<Continuation> Continue(Engine& engine, int32_t sequence, int32_t token, size_t n);

}  // namespace tandem::workers
