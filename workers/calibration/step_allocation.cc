#include "workers/calibration/step_allocation.h"

#include <algorithm>
#include <cmath>

namespace tandem::workers {
namespace {

constexpr double kSamplesPerOctave = 4;
constexpr double kTrialsPerOctave = 32;

}  // namespace

RateCurve::RateCurve(double finest, double coarsest, const std::function<double(double)>& bits)
    : finest_(finest), coarsest_(coarsest) {
  const double octaves = std::log2(coarsest / finest);
  const int n = static_cast<int>(std::ceil(octaves * kSamplesPerOctave)) + 1;
  for (int i = 0; i < n; ++i) bits_.push_back(bits(finest * std::exp2(octaves * i / (n - 1))));
}

double RateCurve::BitsAt(double step) const {
  const double share = std::log2(step / finest_) / std::log2(coarsest_ / finest_);
  const double at = std::clamp(share, 0.0, 1.0) * static_cast<double>(bits_.size() - 1);
  const size_t i = std::min(static_cast<size_t>(at), bits_.size() - 2);
  const double rest = at - static_cast<double>(i);
  return bits_[i] * (1 - rest) + bits_[i + 1] * rest;
}

double Harm::At(double step) const { return factor * std::pow(step, exponent); }

Harm FitHarm(double fine_step, double fine_kl, double coarse_step, double coarse_kl) {
  if (!(coarse_kl > 0)) return {};
  double exponent = 2;
  if (fine_kl > 0) exponent = std::log(coarse_kl / fine_kl) / std::log(coarse_step / fine_step);
  exponent = std::clamp(exponent, 1.25, 2.5);
  // Through the middle of both: each carries its own noise.
  const double middle = std::sqrt(fine_step * coarse_step);
  const double kl = fine_kl > 0 ? std::sqrt(fine_kl * coarse_kl)
                                : coarse_kl * std::pow(middle / coarse_step, exponent);
  return {.factor = kl / std::pow(middle, exponent), .exponent = exponent};
}

std::vector<double> AllocateSteps(std::span<const RateCurve> curves, std::span<const Harm> harms,
                                  double price, double spread) {
  std::vector<double> steps;
  double log_mean = 0;
  for (size_t g = 0; g < curves.size(); ++g) {
    const RateCurve& curve = curves[g];
    const double octaves = std::log2(curve.coarsest() / curve.finest());
    const int n = static_cast<int>(octaves * kTrialsPerOctave);
    double best = curve.finest(), lowest = HUGE_VAL;
    for (int i = 0; i <= n; ++i) {
      const double step = curve.finest() * std::exp2(i / kTrialsPerOctave);
      const double cost = curve.BitsAt(step) + price * harms[g].At(step);
      if (cost < lowest) lowest = cost, best = step;
    }
    steps.push_back(best);
    log_mean += std::log(best) / static_cast<double>(curves.size());
  }
  const double mean = std::exp(log_mean);
  for (double& step : steps) step = std::clamp(step, mean / spread, mean * spread);
  return steps;
}

double InverseInterpolate(std::span<const std::pair<double, double>> points, double target) {
  size_t i = 0;
  while (i + 2 < points.size() && points[i + 1].second < target) ++i;
  const auto [x0, y0] = points[i];
  const auto [x1, y1] = points[i + 1];
  // Noise may turn a piece round; then its middle is as good as any point of it.
  const double slope = std::log(y1 / y0) / std::log(x1 / x0);
  if (!(slope > 0.1)) return std::sqrt(x0 * x1);
  const double x = x0 * std::exp(std::log(target / y0) / slope);
  return std::clamp(x, x0 / 4, x1 * 4);
}

double FindFalling(double low, double high, double target,
                   const std::function<double(double)>& falls) {
  for (int i = 0; i < 40; ++i) {
    const double middle = std::sqrt(low * high);
    (falls(middle) > target ? low : high) = middle;
  }
  return std::sqrt(low * high);
}

}  // namespace tandem::workers
