#include "scheduler/core/latency_model.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace tandem::scheduler {
namespace {

/// Of what is known, the least and the most that a step replaces, with a memory of kMemoryS: that
/// is a matter of time, since what else runs on the machine comes and goes with time (a thousand
/// short steps may all be of the same bad second), but 46 long steps are enough, too.
constexpr double kMostForgotten = 0.015, kLeastForgotten = 1e-4;
/// Of an error, the share that is believed to be all coefficients', by what a sample makes
/// forgotten: a machine that has become slower is slower at everything.
constexpr double kCommon = 1.3;
/// Weight of the prior, in samples.
constexpr double kPriorWeight = 0.05;
/// Errors beyond so many mean errors count as so many.
constexpr double kHuber = 3;
/// Samples before outliers can be told.
constexpr uint64_t kOutliersFrom = 16;
constexpr double kSmallestSpread = 0.02;
/// How much sooner the mean error follows than what is learned.
constexpr double kSpread = 3;
/// Samples of a batch size that weigh as much as the belief that it is like the others.
constexpr double kFactorPrior = 8;
/// How often batch sizes that are not seen any more are looked at, in steps.
constexpr uint32_t kLookEvery = 64;
/// A step of L_m tokens reaches so much of the device's highest rate.
constexpr double kSaturated = 0.9;

/// Samples that what was learned by an earlier process counts as, at most.
constexpr double kRestoredSamples = 50;

constexpr double kNothing = 1e-12;  // seconds; below it a time is not a time

using Row = CostFit::Row;

/// The share of what is known that a step of so many seconds replaces.
double ForgottenBy(double seconds, double memory_s) {
  return std::clamp(seconds / CostFit::kMemoryS, kLeastForgotten, kMostForgotten) *
         CostFit::kMemoryS / memory_s;
}

double Dot(const Row& a, const Row& b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }

/// Solves the equations of the unknowns in `mask` (the others are 0) by Gauss-Jordan elimination
/// on a copy; false when they do not determine them.
bool SolveSubset(std::array<Row, 3> m, Row v, unsigned mask, Row& x) {
  x = {};
  for (unsigned i = 0; i < 3; ++i) {
    if (!(mask >> i & 1)) continue;
    if (m[i][i] <= 1e-9) return false;
    for (unsigned j = 0; j < 3; ++j) {
      if (j == i || !(mask >> j & 1)) continue;
      const double f = m[j][i] / m[i][i];
      for (unsigned k = 0; k < 3; ++k) m[j][k] -= f * m[i][k];
      v[j] -= f * v[i];
    }
  }
  for (unsigned i = 0; i < 3; ++i) {
    if (mask >> i & 1) x[i] = v[i] / m[i][i];
  }
  return true;
}

}  // namespace

double LatencyModel::PromptSeconds(uint64_t n_tokens, uint64_t first_position) const {
  if (n_tokens == 0) return 0;
  const uint64_t steps = (n_tokens + saturation_tokens - 1) / saturation_tokens;
  return prefill.Seconds(n_tokens, first_position) +
         static_cast<double>(steps - 1) * prefill.base_s;
}

double CostFit::Predict(const Row& row) const { return Dot(coefficients_, row); }

double CostFit::Forgotten(double seconds) const { return ForgottenBy(seconds, memory_s_); }

void CostFit::Observe(const Row& row, double seconds) {
  if (!(seconds > kNothing) || !std::isfinite(seconds)) return;
  const double predicted = Predict(row);
  if (samples_ >= kOutliersFrom && predicted > kNothing) {
    const double error = (seconds - predicted) / predicted;
    const double limit = kHuber * spread_;
    const double believed = std::clamp(error, -std::min(limit, 0.9), limit);
    seconds = predicted * (1 + believed);
    const double share = Forgotten(seconds);
    for (double& each : vector_) each *= 1 + kCommon * share * std::min(believed, 1.0);
    // Grows while errors go beyond the limit, so that a lasting change gets through.
    spread_ += kSpread * share * (std::min(std::abs(error), 2 * limit) - spread_);
    spread_ = std::max(spread_, kSmallestSpread);
  }
  ++samples_;
  const double prior = Dot(prior_, row);
  const double share = std::max(1.0 / static_cast<double>(samples_), Forgotten(seconds));
  prior_scale_ += share * (seconds / prior - prior_scale_);
  Forget(row);
  for (unsigned i = 0; i < 3; ++i) {
    for (unsigned j = 0; j < 3; ++j) matrix_[i][j] += row[i] * row[j] / (seconds * seconds);
    vector_[i] += row[i] / seconds;
  }
  Solve();
}

void CostFit::Forget(const Row& row) {
  const Row along = {Dot(matrix_[0], row), Dot(matrix_[1], row), Dot(matrix_[2], row)};
  const double known = Dot(along, row);
  if (known <= kNothing) return;
  const double share = Forgotten(Predict(row)) / known, value = Dot(vector_, row);
  for (unsigned i = 0; i < 3; ++i) {
    for (unsigned j = 0; j < 3; ++j) matrix_[i][j] -= share * along[i] * along[j];
    vector_[i] -= share * along[i] * value;
  }
}

void CostFit::Solve() {
  // Unknowns are multiples of the scaled prior: all of one size, and the prior is (1, 1, 1).
  Row scale;
  std::array<Row, 3> m;
  Row v;
  for (unsigned i = 0; i < 3; ++i) scale[i] = std::max(prior_[i], kNothing) * prior_scale_;
  for (unsigned i = 0; i < 3; ++i) {
    for (unsigned j = 0; j < 3; ++j) m[i][j] = matrix_[i][j] * scale[i] * scale[j];
    m[i][i] += kPriorWeight;
    v[i] = vector_[i] * scale[i] + kPriorWeight;
  }
  // Three unknowns: of the seven ways to hold some at zero, the best that leaves none below it.
  double least = std::numeric_limits<double>::infinity();
  for (unsigned mask = 1; mask < 8; ++mask) {
    Row x;
    if (!SolveSubset(m, v, mask, x)) continue;
    if (std::min({x[0], x[1], x[2]}) < 0) continue;
    const double cost = Dot(x, {Dot(m[0], x), Dot(m[1], x), Dot(m[2], x)}) - 2 * Dot(v, x);
    if (cost >= least) continue;
    least = cost;
    for (unsigned i = 0; i < 3; ++i) coefficients_[i] = x[i] * scale[i];
  }
}

CostFit::State CostFit::state() const {
  return {.matrix = matrix_,
          .vector = vector_,
          .prior_scale = prior_scale_,
          .spread = spread_,
          .samples = samples_};
}

void CostFit::Restore(State state, double most_samples) {
  matrix_ = state.matrix;
  vector_ = state.vector;
  prior_scale_ = state.prior_scale;
  spread_ = std::max(state.spread, kSmallestSpread);
  samples_ = state.samples;
  Solve();
  // Σ (predicted / seconds)²: the number of samples that it is made of.
  const Row& c = coefficients_;
  const double weight = Dot(c, {Dot(matrix_[0], c), Dot(matrix_[1], c), Dot(matrix_[2], c)});
  const double share = std::min(1.0, most_samples / std::max(1.0, weight));
  for (unsigned i = 0; i < 3; ++i) {
    for (unsigned j = 0; j < 3; ++j) matrix_[i][j] *= share;
    vector_[i] *= share;
  }
  Solve();
}

LatencyLearner::LatencyLearner(const Options& options)
    : options_(options),
      model_(options.prior),
      prefill_({model_.prefill.base_s, model_.prefill.per_token_s, model_.prefill.per_position_s},
               options.memory_s),
      decode_(
          {model_.decode.base_s, model_.decode.per_sequence_s, model_.decode.per_context_token_s},
          options.memory_s) {}

void LatencyLearner::ObservePrefill(uint64_t n_tokens, double position_sum, double seconds) {
  if (n_tokens == 0 || prefill_steps_++ < options_.warm_up_steps) return;
  prefill_.Observe({1, static_cast<double>(n_tokens), position_sum}, seconds);
  TakePrefill();
}

void LatencyLearner::TakePrefill() {
  const Row& found = prefill_.coefficients();
  model_.prefill = {.base_s = found[0], .per_token_s = found[1], .per_position_s = found[2]};
  model_.prefill_samples = prefill_.samples();
  // n / (base + n × per token) ≥ 0.9 / per token
  const double tokens =
      found[1] > kNothing ? kSaturated / (1 - kSaturated) * found[0] / found[1] : 1e9;
  model_.saturation_tokens = static_cast<uint32_t>(
      std::clamp(std::ceil(tokens / 32) * 32, static_cast<double>(options_.min_saturation_tokens),
                 static_cast<double>(options_.max_saturation_tokens)));
}

void LatencyLearner::ObserveDecode(uint32_t n_sequences, uint64_t context_tokens, double seconds) {
  if (n_sequences == 0 || decode_steps_++ < options_.warm_up_steps) return;
  if (!(seconds > kNothing) || !std::isfinite(seconds)) return;
  const Row row = {1, static_cast<double>(n_sequences), static_cast<double>(context_tokens)};
  decode_.Observe(row, seconds);
  TakeDecode();
  decode_s_ += seconds;
  if (decode_steps_ % kLookEvery == 0) {
    for (uint32_t n = 0; n < DecodeCost::kFactors; ++n) TakeFactor(n);
  }
  if (n_sequences >= DecodeCost::kFactors || model_.decode_samples < kOutliersFrom) return;
  Factor& factor = factors_[n_sequences];
  const double ratio = std::clamp(seconds / decode_.Predict(row), 0.25, 4.0);
  factor.weight = factor.weight * (1 - ForgottenBy(seconds, options_.memory_s)) + 1;
  factor.ratio += std::clamp(ratio - factor.ratio, -1.0, 1.0) / factor.weight;
  factor.seen_at_s = decode_s_;
  TakeFactor(n_sequences);
}

void LatencyLearner::TakeDecode() {
  const Row& found = decode_.coefficients();
  model_.decode.base_s = found[0];
  model_.decode.per_sequence_s = found[1];
  model_.decode.per_context_token_s = found[2];
  model_.decode_samples = decode_.samples();
}

void LatencyLearner::TakeFactor(uint32_t n_sequences) {
  const Factor& factor = factors_[n_sequences];
  const double known = factor.weight / (factor.weight + kFactorPrior) *
                       std::exp2((factor.seen_at_s - decode_s_) / options_.memory_s);
  model_.decode.factor[n_sequences] = static_cast<float>(1 + (factor.ratio - 1) * known);
}

LatencyLearner::Learned LatencyLearner::LearnedPrefill() const { return {.fit = prefill_.state()}; }

LatencyLearner::Learned LatencyLearner::LearnedDecode() const {
  Learned learned{.fit = decode_.state()};
  for (uint32_t n = 0; n < DecodeCost::kFactors; ++n) {
    learned.factor_ratios[n] = factors_[n].ratio;
    learned.factor_weights[n] = factors_[n].weight;
  }
  return learned;
}

void LatencyLearner::RestorePrefill(const Learned& learned) {
  prefill_.Restore(learned.fit, kRestoredSamples);
  TakePrefill();
}

void LatencyLearner::RestoreDecode(const Learned& learned) {
  decode_.Restore(learned.fit, kRestoredSamples);
  TakeDecode();
  for (uint32_t n = 0; n < DecodeCost::kFactors; ++n) {
    factors_[n] = {.ratio = learned.factor_ratios[n],
                   .weight = std::min(learned.factor_weights[n], kRestoredSamples),
                   .seen_at_s = decode_s_};
    TakeFactor(n);
  }
}

}  // namespace tandem::scheduler
