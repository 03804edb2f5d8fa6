#include "scheduler/planner/statistics.h"

#include <algorithm>
#include <cstddef>

namespace tandem::planner {

double Quantile(std::vector<double> values, double p) {
  const double rank = static_cast<double>(values.size() - 1) * p;
  const auto below = static_cast<size_t>(rank);
  const auto at = values.begin() + static_cast<ptrdiff_t>(below);
  std::nth_element(values.begin(), at, values.end());
  if (below + 1 == values.size()) return *at;
  const double above = *std::min_element(at + 1, values.end());
  return *at + (above - *at) * (rank - static_cast<double>(below));
}

Attainment Attained(std::span<const double> ttft, std::span<const double> tpot, double ttft_limit,
                    double tpot_limit) {
  if (ttft.empty()) return {};
  size_t first = 0, rest = 0, both = 0;
  for (size_t i = 0; i < ttft.size(); ++i) {
    const bool first_ok = ttft[i] <= ttft_limit, rest_ok = tpot[i] <= tpot_limit;
    first += first_ok;
    rest += rest_ok;
    both += first_ok && rest_ok;
  }
  const auto n = static_cast<double>(ttft.size());
  return {.ttft = static_cast<double>(first) / n,
          .tpot = static_cast<double>(rest) / n,
          .both = static_cast<double>(both) / n};
}

}  // namespace tandem::planner
