// What a change of the KV cache costs the model: text is replayed through the real engine, its
// context's KV is passed through a codec, and the continuation is scored by teacher forcing. For
// `tandem kv eval` and `tandem kv profile`, which ask hundreds of times.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "workers/engine/engine.h"

namespace tandem::workers {

struct ReplayOptions {
  /// Tokens of each context, BOS included where the model wants one.
  uint32_t context_tokens = 1536;
  /// Tokens scored after it.
  uint32_t continuation_tokens = 256;
  /// Pieces of the text that are replayed, evenly spread over it.
  uint32_t windows = 24;
  /// Tokens of a chunk; the last of a context may be shorter.
  uint32_t chunk_tokens = 256;
};

/// One window with a changed cache, and with the engine's own.
struct WindowScore {
  /// Of each scored token, in nats.
  std::vector<double> log_likelihoods, unchanged_log_likelihoods;
  /// Their sums.
  double log_likelihood = 0, unchanged_log_likelihood = 0;
  /// Of how many tokens the likeliest is the same as with the unchanged cache (lowest id of
  /// equals).
  uint32_t top1_agreements = 0;
  /// Sum over the tokens of the Kullback-Leibler divergence of the distribution from the
  /// unchanged one, in nats.
  double kl = 0;
};

/// Not thread-safe. Holds a prefill and a decode context for one sequence each.
class Replayer {
 public:
  /// Returns the chunk that a receiver would have: the same layout and tokens.
  using Codec = std::function<absl::StatusOr<kvstore::KvChunk>(const kvstore::KvChunk&)>;

  /// `settings`: the cache types, flash_attention and threads count, the rest is set here. Windows
  /// do not overlap when the text suffices for that; otherwise a log line says that they do.
  /// INVALID_ARGUMENT for options out of range and for a text that is too short, with the numbers;
  /// FAILED_PRECONDITION for a model whose KV cannot be cut into chunks; errors of Engine::Create.
  static absl::StatusOr<std::unique_ptr<Replayer>> Create(std::shared_ptr<const Model> model,
                                                          std::string_view text,
                                                          const ReplayOptions& options,
                                                          const EngineOptions& settings);

  uint32_t n_windows() const { return options_.windows; }
  const ReplayOptions& options() const { return options_; }
  const kvstore::KvLayout& layout() const { return prefill_->layout(); }
  /// The engine that makes the chunks, for GeometryOf and identities.
  const Engine& engine() const { return *prefill_; }

  /// Computes window `index`: its chunks, and its continuation with the unchanged cache. The
  /// window stays loaded until the next call. OUT_OF_RANGE, or errors of the engine.
  absl::Status LoadWindow(uint32_t index);
  /// The loaded window's context, as it was extracted, in order.
  const std::vector<kvstore::KvChunk>& chunks() const { return chunks_; }
  /// Scores the loaded window with every chunk replaced by what `codec` makes of it.
  /// FAILED_PRECONDITION when none is loaded; errors of the codec and of the engine.
  absl::StatusOr<WindowScore> Score(const Codec& codec);

 private:
  /// The next-token distributions after y_0 … y_{n-1} with the unchanged cache.
  struct Unchanged {
    /// n × vocabulary_size.
    std::vector<float> logits, probabilities;
    /// n each.
    std::vector<double> log_sums, log_likelihoods;
    std::vector<int32_t> best;
  };
  /// Takes the logits after one fed token. `index`: of the token, 0 … n-1.
  using Observer = std::function<void(uint32_t index, std::span<const float> logits)>;

  Replayer() = default;
  absl::Status Prefill(std::span<const int32_t> tokens);
  /// Puts the chunks, as `codec` returns them, into the decode engine and feeds the continuation.
  absl::Status Continue(const Codec& codec, const Observer& observer);
  void KeepUnchanged(uint32_t index, std::span<const float> logits);
  void Compare(uint32_t index, std::span<const float> logits, WindowScore& score) const;

  ReplayOptions options_;
  std::vector<int32_t> tokens_;  // of the whole text
  std::vector<int32_t> begin_;   // BOS, or nothing
  std::unique_ptr<Engine> prefill_, decode_;
  bool loaded_ = false;
  std::vector<kvstore::KvChunk> chunks_;
  std::span<const int32_t> continuation_;  // y_0 … y_n, in tokens_
  Unchanged unchanged_;
};

/// What all windows together say.
struct Summary {
  /// Perplexity of the continuations with the unchanged cache.
  double unchanged_perplexity = 0;
  /// Its relative change, as a fraction (0.01: 1 % worse), and that number's standard error over
  /// the windows, of which each is compared with itself. The error is 0 for one window.
  double perplexity_change = 0, perplexity_change_se = 0;
  /// Share of tokens whose likeliest successor is the same.
  double top1_agreement = 0;
  /// Mean over tokens, nats.
  double kl = 0;
};
/// REQUIRES: not empty, windows of equal length.
Summary Summarise(std::span<const WindowScore> scores);

}  // namespace tandem::workers
