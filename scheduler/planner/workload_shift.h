// Whether requests have become others than those that a plan was made for: rate and lengths, tested
// against a sample. Used by the planner. Pure functions, thread-safe.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string>

#include "scheduler/planner/workload.h"

namespace tandem::planner {

/// Chance that two samples of one distribution differ as much as these or more: the two-sample test
/// of Kolmogorov and Smirnov in its asymptotic form (Stephens, "Use of the Kolmogorov-Smirnov,
/// Cramer-von Mises and related statistics", 1970), which is conservative where values repeat.
/// 1 when either is empty. REQUIRES: both sorted. `distance`, when it is not null: the largest
/// difference of the two distribution functions.
double SameDistribution(std::span<const double> a, std::span<const double> b,
                        double* distance = nullptr);

struct ShiftOptions {
  /// A shift is one that chance would make with this probability at most, in one look.
  double significance = 1e-6;
  /// Of a rate, in deviations; bursts have longer tails than the normal distribution.
  double rate_deviations = 5;
  /// Differences that matter: of distribution functions; of rates, as a factor.
  double least_distance = 0.2, least_rate_factor = 1.2;
  /// What has become different is judged by so many requests and seconds at least.
  size_t least_requests = 16;
  double least_span_s = 5;
};

/// Requests are others now.
struct Shift {
  /// In words: "prompt lengths 755 → 1738".
  std::string what;
  /// The last so many requests are the new kind, as far as can be told: the number for which the
  /// difference is the most significant.
  size_t requests = 0;
};

/// Compares the end of `recent`, of every length, with `planned`. Lengths of requests that have not
/// ended are left out. Nothing when one of them has fewer than least_requests.
std::optional<Shift> FindShift(std::span<const WorkloadRequest> planned,
                               std::span<const WorkloadRequest> recent, double now_s,
                               const ShiftOptions& options = {});

}  // namespace tandem::planner
