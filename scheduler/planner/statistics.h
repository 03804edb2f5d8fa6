// What is asked of a set of latencies: percentiles, and the share that meets an objective. Used by
// the simulators, the searches and their reports. Pure functions.
#pragma once

#include <span>
#include <vector>

namespace tandem::planner {

/// The `p`-quantile (0 … 1), interpolated linearly at rank (n - 1) × p, as NumPy does it. Takes
/// O(n). REQUIRES: not empty, no NaN.
double Quantile(std::vector<double> values, double p);

/// SLO attainment: shares, 0 … 1, of requests.
struct Attainment {
  double ttft = 0, tpot = 0;
  /// Both limits kept by the same request.
  double both = 0;
};

/// The shares of requests at or below the limits. `ttft` and `tpot` hold one value a request, in
/// the unit of the limits. Zeros when there is no request. REQUIRES: equal lengths.
Attainment Attained(std::span<const double> ttft, std::span<const double> tpot, double ttft_limit,
                    double tpot_limit);

}  // namespace tandem::planner
