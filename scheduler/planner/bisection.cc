#include "scheduler/planner/bisection.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace tandem::planner {

absl::StatusOr<double> HighestPassingRate(
    double max_rate, double eps, const std::function<absl::StatusOr<bool>(double rate)>& passes) {
  constexpr double kFinest = 1e-9;
  if (!(max_rate > 0) || !(eps >= max_rate * kFinest) || !std::isfinite(max_rate)) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot bisect up to a rate of ", max_rate, " in steps of ", eps,
                     ": both must be positive, and the step at least a 1e-9th of the rate"));
  }
  double low = 0, high = max_rate;
  while (high - low > eps) {
    const double rate = (low + high) / 2;
    ASSIGN_OR_RETURN(const bool pass, passes(rate));
    (pass ? low : high) = rate;
  }
  return low;
}

}  // namespace tandem::planner
