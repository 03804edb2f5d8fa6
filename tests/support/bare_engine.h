// The oracle of the exactness tests: greedy generation and teacher-forced logits written straight
// on libllama, sharing no code with workers/engine, in one context without any extraction. Used by
// the engine's integration tests and by the end-to-end tests.
//
//   auto bare = oracle::BareEngine::Load({.model_path = "models/demo-q8_0.gguf"});
//   auto tokens = (*bare)->Greedy((*bare)->Tokenize("Once upon"), 64, {.step_tokens = 512});
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

struct llama_model;

namespace tandem::oracle {

/// How the work is cut into calls of llama_decode. libllama's rounding depends on it.
struct StepShape {
  /// The prompt is computed in pieces of this many tokens; the last may be shorter.
  uint32_t step_tokens = 512;
  /// This many sequences take every decode step together; the others have short prompts and
  /// other tokens.
  uint32_t sequences = 1;
  /// One pool of KV cells for all sequences, in which the others' cells lie between ours, as in a
  /// prefill worker; otherwise a stream each.
  bool unified = false;
  /// Another prompt shares the prefill's steps: this many of its tokens stand before ours in the
  /// first step, half as many in the next, and so on, and it is gone after each. So our rows are
  /// computed with others, and in a unified cache our cells lie out of order, as in a busy prefill
  /// worker. REQUIRES: unified, sequences ≥ 2.
  uint32_t fellow_tokens = 0;
};

/// Not thread-safe. One thread computes.
class BareEngine {
 public:
  struct Options {
    std::string model_path;
    uint32_t context_tokens = 2048;
    /// ggml's names of the cache types.
    std::string k_type = "f16", v_type = "f16";
    bool flash_attention = true;
  };
  /// INVALID_ARGUMENT when the file cannot be loaded or a type is unknown.
  static absl::StatusOr<std::unique_ptr<BareEngine>> Load(const Options& options);
  ~BareEngine();
  BareEngine(const BareEngine&) = delete;
  BareEngine& operator=(const BareEngine&) = delete;

  /// With BOS and the like where the model wants them.
  std::vector<int32_t> Tokenize(std::string_view text) const;
  /// Bytes of the tokens, special ones left out, nothing stripped.
  std::string Text(std::span<const int32_t> tokens) const;
  uint32_t vocabulary_size() const;

  /// The `n` tokens that follow the prompt when the likeliest is always taken (of equals the
  /// lowest id); fewer when an end-of-generation token comes, which is not among them, unless
  /// `ignore_eos`. The sequence runs alone: shape.sequences is not used. INTERNAL when libllama
  /// fails. REQUIRES: the prompt is not empty and prompt + n - 1 tokens fit the context.
  absl::StatusOr<std::vector<int32_t>> Greedy(std::span<const int32_t> prompt, uint32_t n,
                                              const StepShape& shape, bool ignore_eos = false);

  /// Logits before each of the tokens after the first `n_prompt`, as the prompt and then each
  /// token are fed in: element i has vocabulary_size floats and predicts tokens[n_prompt + i].
  absl::StatusOr<std::vector<std::vector<float>>> TeacherForced(std::span<const int32_t> tokens,
                                                                size_t n_prompt,
                                                                const StepShape& shape);

  /// For each of those tokens how far it is below the top: largest logit minus its own. All 0 when
  /// the tokens are this shape's greedy choice.
  absl::StatusOr<std::vector<float>> Gaps(std::span<const int32_t> tokens, size_t n_prompt,
                                          const StepShape& shape);

  /// What libllama's rounding alone can do to a choice: the largest amount by which `shapes` move
  /// the distance between the top and one of the likeliest tokens (kContenders, as `reference`
  /// ranks them), in logits, over all positions from the last of the prompt on. A token whose gap
  /// is within this may be another shape's greedy choice.
  absl::StatusOr<float> StepShapeNoise(std::span<const int32_t> tokens, size_t n_prompt,
                                       const StepShape& reference,
                                       std::span<const StepShape> shapes);
  static constexpr size_t kContenders = 8;

 private:
  BareEngine() = default;
  Options options_;
  llama_model* model_ = nullptr;
};

/// Shapes that a busy prefill and decode worker produce: batches of 2 to 16 sequences, other
/// pieces of the prompt, shared and separate KV.
std::vector<StepShape> BusyShapes(uint32_t step_tokens);

/// Writes the model at `from` (of any quantisation) with f16 weights to `to`. INTERNAL when
/// libllama fails.
absl::Status MakeF16Model(const std::string& from, const std::string& to);

}  // namespace tandem::oracle
