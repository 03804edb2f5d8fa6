#include "tests/bench/goodput/attainment.h"

#include <algorithm>
#include <cmath>

namespace tandem::bench {

double NeededScale(const Outcome& outcome, const Slo& slo) {
  return std::max(outcome.ttft_s() / slo.ttft_s, outcome.tpot_s() / slo.tpot_s);
}

double Attainment(std::span<const Outcome> outcomes, const Slo& slo, double scale) {
  const auto met = std::count_if(outcomes.begin(), outcomes.end(), [&](const Outcome& each) {
    return NeededScale(each, slo) <= scale;
  });
  return static_cast<double>(met) / static_cast<double>(outcomes.size());
}

double TightestScale(std::span<const Outcome> outcomes, const Slo& slo, double share) {
  std::vector<double> scales;
  for (const Outcome& outcome : outcomes) scales.push_back(NeededScale(outcome, slo));
  return Quantile(std::move(scales), share);
}

double ServedRate(std::span<const Outcome> outcomes) {
  double end_s = 0;
  size_t complete = 0;
  for (const Outcome& outcome : outcomes) {
    if (!outcome.complete()) continue;
    ++complete;
    end_s = std::max(end_s, outcome.end_s);
  }
  return complete == 0 ? 0 : static_cast<double>(complete) / (end_s - outcomes.front().due_s);
}

double Goodput(const std::map<double, double>& attainment_by_rate, double share) {
  double last_rate = 0, last = 1;
  for (const auto& [rate, attainment] : attainment_by_rate) {
    if (attainment < share) {
      if (last_rate == 0) return 0;
      return last_rate + (rate - last_rate) * (last - share) / (last - attainment);
    }
    last_rate = rate;
    last = attainment;
  }
  return last_rate;
}

double Quantile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  const auto n = static_cast<double>(values.size());
  const auto index = static_cast<size_t>(std::max(0.0, std::ceil(share * n - 1e-9) - 1));
  return values[std::min(index, values.size() - 1)];
}

}  // namespace tandem::bench
