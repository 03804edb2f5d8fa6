// How well a run met its objectives, as DistServe counts it: a request counts when both its time to
// first token and its mean time per token after it are within the objective.
#pragma once

#include <map>
#include <span>

#include "tests/bench/goodput/load_client.h"

namespace tandem::bench {

inline constexpr double kGoodAttainment = 0.9;

struct Slo {
  double ttft_s = 0, tpot_s = 0;
};

/// By how much both objectives must be multiplied for this request to meet them; infinite when it
/// has not ended well.
double NeededScale(const Outcome& outcome, const Slo& slo);

/// Share of the requests that meet the objectives times `scale`.
double Attainment(std::span<const Outcome> outcomes, const Slo& slo, double scale = 1);

/// The smallest scale at which `share` of the requests meet the objectives.
double TightestScale(std::span<const Outcome> outcomes, const Slo& slo,
                     double share = kGoodAttainment);

/// Completed requests by the time from the first's arrival to the last's end. REQUIRES: not empty.
double ServedRate(std::span<const Outcome> outcomes);

/// The rate at which attainment falls to `share`, interpolated between the first measured rate
/// below it and the one before; the highest rate measured when none is below, 0 when all are.
double Goodput(const std::map<double, double>& attainment_by_rate, double share = kGoodAttainment);

/// The smallest value that `share` of them do not exceed. REQUIRES: not empty.
double Quantile(std::vector<double> values, double share);

}  // namespace tandem::bench
