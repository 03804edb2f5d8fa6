// Chooses the next token of one sequence. The filters are libllama's; the final draw is our own,
// so that it depends on (seed, position) alone and a sequence can resume on another worker.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "workers/engine/model.h"

struct llama_sampler;

namespace tandem::workers {

/// See SamplingParams in proto/tandem/v1/inference.proto for meaning and ranges.
struct SamplingOptions {
  double temperature = 1.0;
  int32_t top_k = 0;
  double top_p = 1.0;
  double min_p = 0.0;
  double repetition_penalty = 1.0;
  double frequency_penalty = 0.0;
  double presence_penalty = 0.0;
  int32_t penalty_last_n = 64;
  uint64_t seed = 0;
  bool ignore_eos = false;
  std::vector<int32_t> stop_token_ids;
};

/// A number in [0, 1), a pure function of its arguments (splitmix64 finaliser over both).
/// Neighbouring seeds and positions give unrelated numbers.
double UniformAt(uint64_t seed, uint32_t position);

/// One sequence's sampler. Not thread-safe.
class Sampler {
 public:
  /// `history`: the tokens so far, for the penalties.
  Sampler(std::shared_ptr<const Model> model, const SamplingOptions& options,
          std::span<const int32_t> history);
  ~Sampler();
  Sampler(const Sampler&) = delete;
  Sampler& operator=(const Sampler&) = delete;

  /// The token for `position` (the prompt's first token has position 0), given its logits, and
  /// adds it to the history. Ties go to the lowest id. REQUIRES: vocabulary_size logits.
  int32_t Sample(std::span<const float> logits, uint32_t position);
  /// Adds a token that another worker sampled to the history.
  void Accept(int32_t token);
  /// True when generation ends with this token: a stop token, or an end-of-generation token
  /// unless ignore_eos.
  bool IsStop(int32_t token) const;

 private:
  /// Fills candidates_ with the tokens that the draw is made from, filtered.
  void Filter(std::span<const float> logits);

  std::shared_ptr<const Model> model_;
  SamplingOptions options_;
  bool penalties_ = false;
  /// libllama's penalties, top-k, top-p and min-p; null when none of them does anything.
  llama_sampler* chain_ = nullptr;
  struct Candidates;
  std::unique_ptr<Candidates> candidates_;  // reused
};

}  // namespace tandem::workers
