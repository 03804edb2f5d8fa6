// What a step costs on a worker: two affine models in the manner of DistServe's appendix A, and how
// a worker learns them from its own steps. Used by the worker's loops, by dispatch and by the
// simulator. Plain arithmetic; nothing here is thread-safe.
#pragma once

#include <array>
#include <cstdint>

namespace tandem::scheduler {

/// Seconds of a step over prompt tokens. Attention makes a token at position p cost p times
/// `per_position_s` more.
struct PrefillCost {
  double base_s = 2e-3;
  double per_token_s = 1e-4;
  double per_position_s = 1e-8;
  bool operator==(const PrefillCost&) const = default;

  /// Of the tokens at `first_position` … `first_position + n_tokens − 1` of one prompt.
  double Seconds(uint64_t n_tokens, uint64_t first_position = 0) const {
    return StepSeconds(n_tokens, PositionSum(n_tokens, first_position));
  }
  /// Of tokens of any prompts, given the sum of their positions.
  double StepSeconds(uint64_t n_tokens, double position_sum) const {
    return base_s + static_cast<double>(n_tokens) * per_token_s + position_sum * per_position_s;
  }
  static double PositionSum(uint64_t n_tokens, uint64_t first_position) {
    const auto n = static_cast<double>(n_tokens);
    return n * static_cast<double>(first_position) + n * (n - 1) / 2;
  }
};

/// Seconds of a step that gives each of some sequences a token.
struct DecodeCost {
  /// Batches up to so many sequences have a correction of their own.
  static constexpr uint32_t kFactors = 33;
  /// A factor outside of these is no measurement.
  static constexpr float kLeastFactor = 0.05F, kMostFactor = 20;

  double base_s = 5e-3;
  double per_sequence_s = 1e-3;
  double per_context_token_s = 1e-7;
  /// By number of sequences: what a step of so many takes, relative to the affine model. Batching
  /// on a CPU is irregular: two sequences at once can take longer than one after the other. One
  /// that is not seen for a while goes back to 1: what was a bad moment would keep everybody from
  /// trying such a batch again.
  std::array<float, kFactors> factor = Ones();
  bool operator==(const DecodeCost&) const = default;

  /// `context_tokens`: of all sequences together.
  double StepSeconds(uint32_t n_sequences, uint64_t context_tokens) const {
    const double affine_s = base_s + n_sequences * per_sequence_s +
                            static_cast<double>(context_tokens) * per_context_token_s;
    return n_sequences < kFactors ? affine_s * factor[n_sequences] : affine_s;
  }

  static constexpr std::array<float, kFactors> Ones() {
    std::array<float, kFactors> ones{};
    for (float& one : ones) one = 1;
    return ones;
  }
};

/// What is known of one worker's speed. As it stands: a guess, until something was learned.
struct LatencyModel {
  PrefillCost prefill;
  DecodeCost decode;
  /// L_m (DistServe §4.3): a prefill step of so many tokens saturates the device.
  uint32_t saturation_tokens = 512;
  uint64_t prefill_samples = 0;
  uint64_t decode_samples = 0;
  bool operator==(const LatencyModel&) const = default;

  /// Seconds to compute so many tokens of a prompt from `first_position` on, in steps of
  /// `saturation_tokens`, with nothing beside it. 0 for no tokens.
  double PromptSeconds(uint64_t n_tokens, uint64_t first_position = 0) const;
};

/// Least squares over three non-negative coefficients, sample by sample: errors count relative to
/// the time, outliers are limited (Huber, "Robust Estimation of a Location Parameter", 1964), and
/// old samples are forgotten, but only as far as new ones tell the same: a thousand steps of one
/// sequence leave what was learned of eight (directional forgetting: Kulhavý, "Restricted
/// Exponential Forgetting in Real-Time Identification", 1987). Until samples decide, the
/// coefficients keep the prior's proportions.
class CostFit {
 public:
  using Row = std::array<double, 3>;
  /// So that what else runs on the machine is followed as it comes and goes.
  static constexpr double kMemoryS = 4;
  /// `memory_s`: a sample counts half after steps of 0.7 times that in all that tell the same.
  explicit CostFit(Row prior, double memory_s = kMemoryS)
      : memory_s_(memory_s), prior_(prior), coefficients_(prior) {}

  /// `row`: what the coefficients are multiplied with.
  void Observe(const Row& row, double seconds);
  const Row& coefficients() const { return coefficients_; }
  double Predict(const Row& row) const;
  uint64_t samples() const { return samples_; }

  /// What was learned, to go on from in another process.
  struct State {
    std::array<Row, 3> matrix{};
    Row vector{};
    double prior_scale = 1;
    double spread = 0.5;
    uint64_t samples = 0;
  };
  State state() const;
  /// Goes on from `state`, which was learned with the same prior; it counts as `most_samples` at
  /// most, since the machine may have changed meanwhile.
  void Restore(State state, double most_samples);

 private:
  // With the fit's own memory.
  double Forgotten(double seconds) const;
  // Of what is known about `row`; what is known besides stays.
  void Forget(const Row& row);
  void Solve();

  double memory_s_;
  Row prior_;
  Row coefficients_;
  std::array<Row, 3> matrix_{};  // Σ row rowᵀ / seconds²
  Row vector_{};                 // Σ row seconds / seconds²
  double prior_scale_ = 1;       // observed over prior, on average
  double spread_ = 0.5;          // mean relative error
  uint64_t samples_ = 0;
};

/// Learns a worker's model from its steps. For one thread, or under the caller's mutex.
class LatencyLearner {
 public:
  struct Options {
    LatencyModel prior;
    /// First steps of each kind that are not counted: caches are cold, memory is being mapped.
    uint32_t warm_up_steps = 3;
    uint32_t min_saturation_tokens = 64;
    uint32_t max_saturation_tokens = 2048;
    /// See CostFit. A batch size that was not seen for so many seconds of steps is half believed to
    /// be like the others again.
    double memory_s = CostFit::kMemoryS;
  };
  LatencyLearner() : LatencyLearner(Options()) {}
  explicit LatencyLearner(const Options& options);

  /// A step over prompt tokens took `seconds` of the engine's time. `position_sum`: of all its
  /// tokens (PrefillCost::PositionSum of each prompt's piece, added up).
  void ObservePrefill(uint64_t n_tokens, double position_sum, double seconds);
  /// A step that gave `n_sequences` sequences with `context_tokens` tokens in all a token each.
  void ObserveDecode(uint32_t n_sequences, uint64_t context_tokens, double seconds);

  /// What is known now.
  const LatencyModel& model() const { return model_; }

  /// What was learned of one kind of step, to be kept on disk. `factors` and their weights are of
  /// decode steps (DecodeCost::factor).
  struct Learned {
    CostFit::State fit;
    std::array<double, DecodeCost::kFactors> factor_ratios{}, factor_weights{};
  };
  Learned LearnedPrefill() const;
  Learned LearnedDecode() const;
  /// Goes on from what a learner with the same options had learned. It weighs as much as a few
  /// dozen steps, so that steps of today soon count for more.
  void RestorePrefill(const Learned& learned);
  void RestoreDecode(const Learned& learned);

 private:
  struct Factor {
    double ratio = 1;
    double weight = 0;
    double seen_at_s = 0;  // on the clock that decode_s_ is
  };
  void TakePrefill();
  void TakeDecode();
  void TakeFactor(uint32_t n_sequences);

  const Options options_;
  LatencyModel model_;
  CostFit prefill_;
  CostFit decode_;
  std::array<Factor, DecodeCost::kFactors> factors_;
  uint32_t prefill_steps_ = 0, decode_steps_ = 0;
  double decode_s_ = 0;  // that decode steps have taken
};

}  // namespace tandem::scheduler
