// Which planes get which step: fewest bits for the harm done. Pure arithmetic for the profile
// builder.
#pragma once

#include <functional>
#include <span>
#include <vector>

namespace tandem::workers {

/// Bits a token by the step, of a group of planes that share one.
class RateCurve {
 public:
  /// Samples `bits` (non-increasing in the step) from `finest` to `coarsest`. REQUIRES: 0 < finest
  /// < coarsest.
  RateCurve(double finest, double coarsest, const std::function<double(double step)>& bits);

  double finest() const { return finest_; }
  double coarsest() const { return coarsest_; }
  /// Interpolated; beyond the ends, the ends' value.
  double BitsAt(double step) const;

 private:
  double finest_, coarsest_;
  std::vector<double> bits_;
};

/// What a group's step costs the model: KL divergence = factor × step^exponent.
struct Harm {
  double factor = 0, exponent = 2;
  double At(double step) const;
};
/// Through two measured points; the exponent is kept within what quantisation noise can do. Where
/// nothing was measurable, the factor is 0.
Harm FitHarm(double fine_step, double fine_kl, double coarse_step, double coarse_kl);

/// The steps that minimise Σ bits + price × Σ harm, a group each, none more than `spread` times
/// from their geometric mean. REQUIRES: as many harms as curves.
std::vector<double> AllocateSteps(std::span<const RateCurve> curves, std::span<const Harm> harms,
                                  double price, double spread);

/// The x at which y, piecewise linear in log x and log y through the points, reaches `target`;
/// beyond the ends, on the last piece's line, at most by a factor of 4. REQUIRES: two points or
/// more, all > 0, x ascending.
double InverseInterpolate(std::span<const std::pair<double, double>> points, double target);

/// The x in [low, high] at which the monotone `falls` comes down to `target`, by bisection of log
/// x.
double FindFalling(double low, double high, double target,
                   const std::function<double(double)>& falls);

}  // namespace tandem::workers
