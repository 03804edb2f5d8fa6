#include "scheduler/planner/workload_shift.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "scheduler/planner/workload_window.h"

namespace tandem::planner {
namespace {

/// Sorted.
std::vector<double> Prompts(std::span<const WorkloadRequest> requests) {
  std::vector<double> lengths;
  for (const WorkloadRequest& request : requests) lengths.push_back(request.prompt_tokens);
  std::sort(lengths.begin(), lengths.end());
  return lengths;
}

/// Of those that have ended; sorted.
std::vector<double> Outputs(std::span<const WorkloadRequest> requests) {
  std::vector<double> lengths;
  for (const WorkloadRequest& request : requests) {
    if (request.output_tokens != kUnknownTokens) lengths.push_back(request.output_tokens);
  }
  std::sort(lengths.begin(), lengths.end());
  return lengths;
}

double Mean(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return values.empty() ? 0 : sum / static_cast<double>(values.size());
}

/// A shift, and how sure it is: the logarithm of its probability.
struct Found {
  double log_p = 0;
  Shift shift;
};

/// Keeps the surer of the two.
void Offer(Found found, std::optional<Found>& best) {
  if (!best || found.log_p < best->log_p) best = std::move(found);
}

void TestLengths(const char* what, const std::vector<double>& planned,
                 const std::vector<double>& recent, size_t requests, const ShiftOptions& options,
                 std::optional<Found>& best) {
  if (planned.size() < options.least_requests || recent.size() < options.least_requests) return;
  double distance = 0;
  const double p = SameDistribution(planned, recent, &distance);
  if (p > options.significance || distance < options.least_distance) return;
  Offer({.log_p = std::log(std::max(p, 1e-300)),
         .shift = {.what =
                       absl::StrFormat("%s lengths %.0f → %.0f", what, Mean(planned), Mean(recent)),
                   .requests = requests}},
        best);
}

/// The logarithm of the ratio of two rates has the variance cv² (1/n + 1/m), about, where gaps have
/// that coefficient of variation.
void TestRate(const WorkloadStats& planned, size_t n_planned,
              std::span<const WorkloadRequest> recent, double now_s, const ShiftOptions& options,
              std::optional<Found>& best) {
  const double span_s = now_s - recent.front().arrival_s;
  if (span_s <= 0 || planned.rate_rps <= 0) return;
  const auto n = static_cast<double>(recent.size());
  const double rate_rps = n / span_s, ratio = std::log(rate_rps / planned.rate_rps);
  const double cv = std::max({1.0, planned.gap_cv, Describe(recent).gap_cv});
  const double deviation = cv * std::sqrt(1 / n + 1 / static_cast<double>(n_planned));
  const double z = std::abs(ratio) / deviation;
  if (z < options.rate_deviations || std::abs(ratio) < std::log(options.least_rate_factor)) return;
  Offer({.log_p = -z * z / 2,
         .shift = {.what = absl::StrFormat("rate %.2f → %.2f/s", planned.rate_rps, rate_rps),
                   .requests = recent.size()}},
        best);
}

}  // namespace

double SameDistribution(std::span<const double> a, std::span<const double> b, double* distance) {
  if (distance != nullptr) *distance = 0;
  if (a.empty() || b.empty()) return 1;
  const auto n = static_cast<double>(a.size()), m = static_cast<double>(b.size());
  double largest = 0;
  for (size_t i = 0, j = 0; i < a.size() && j < b.size();) {
    const double value = std::min(a[i], b[j]);
    while (i < a.size() && a[i] == value) ++i;
    while (j < b.size() && b[j] == value) ++j;
    largest = std::max(largest, std::abs(static_cast<double>(i) / n - static_cast<double>(j) / m));
  }
  if (distance != nullptr) *distance = largest;
  const double root = std::sqrt(n * m / (n + m));
  const double x = (root + 0.12 + 0.11 / root) * largest;
  double p = 0, sign = 2;
  for (int k = 1; k <= 100; ++k, sign = -sign) {
    const double term = std::exp(-2.0 * k * k * x * x);
    p += sign * term;
    if (term < 1e-16) return std::clamp(p, 0.0, 1.0);
  }
  return 1;  // the series does not converge where there is no difference
}

std::optional<Shift> FindShift(std::span<const WorkloadRequest> planned,
                               std::span<const WorkloadRequest> recent, double now_s,
                               const ShiftOptions& options) {
  std::optional<Found> best;
  if (planned.size() < options.least_requests) return std::nullopt;
  const std::vector<double> prompts = Prompts(planned), outputs = Outputs(planned);
  const WorkloadStats stats = Describe(planned);
  for (size_t n = options.least_requests; n <= recent.size(); n += std::max<size_t>(1, n / 2)) {
    const auto end = recent.last(n);
    if (now_s - end.front().arrival_s < options.least_span_s) continue;
    TestLengths("prompt", prompts, Prompts(end), n, options, best);
    TestLengths("output", outputs, Outputs(end), n, options, best);
    TestRate(stats, planned.size(), end, now_s, options, best);
  }
  if (!best) return std::nullopt;
  return std::move(best->shift);
}

}  // namespace tandem::planner
