// The highest rate that passes a test, by bisection. Used by every search for a goodput.
#pragma once

#include <functional>

#include "absl/status/statusor.h"

namespace tandem::planner {

/// Halves [0, max_rate] until it is no wider than `eps` and returns the highest rate tried that
/// passed, 0 when none did; max_rate itself is never tried. Right only where passing is monotone.
/// INVALID_ARGUMENT unless max_rate and eps are positive and finite, and eps ≥ max_rate × 1e-9 (so
/// that it ends); the error of `passes`.
absl::StatusOr<double> HighestPassingRate(
    double max_rate, double eps, const std::function<absl::StatusOr<bool>(double rate)>& passes);

}  // namespace tandem::planner
