#include "scheduler/planner/workload.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status_macros.h"
#include "scheduler/planner/csv.h"
#include "scheduler/planner/random.h"

namespace tandem::planner {
namespace {

constexpr double kMaxTokens = 1e7;
constexpr uint32_t kShapeContext = 2048;

/// Of a normal variate of mean 0 and deviation 1.
double Below(double x) { return std::erfc(-x / std::numbers::sqrt2) / 2; }

/// The scale (exp of the logarithm's mean) with which a log-normal, cut at `most`, has that mean.
double ScaleOf(double mean, double sigma, double most) {
  if (mean >= most) return most;
  if (sigma == 0) return mean;
  double low = 0, high = std::log(most) + 10 * sigma;
  for (int i = 0; i < 60; ++i) {
    const double mu = (low + high) / 2, edge = (std::log(most) - mu) / sigma;
    const double cut_mean =
        std::exp(mu + sigma * sigma / 2) * Below(edge - sigma) + most * Below(-edge);
    (cut_mean < mean ? low : high) = mu;
  }
  return std::exp(low);
}

uint32_t Length(double scale, double sigma, uint32_t most, Random& random) {
  const double length = std::round(scale * std::exp(sigma * random.Normal()));
  return static_cast<uint32_t>(std::clamp<double>(length, 1, most));
}

double Gap(double cv, Random& random) {
  if (cv == 0) return 1;
  if (cv == 1) return random.Exponential();
  const double shape = 1 / (cv * cv);
  return random.Gamma(shape) / shape;
}

}  // namespace

absl::StatusOr<Workload> ParseWorkload(std::string_view csv, const std::string& where) {
  const CsvColumn columns[] = {
      {.name = "arrival_s"},
      {.name = "prompt_tokens", .min = 1, .max = kMaxTokens, .whole = true},
      {.name = "output_tokens", .min = 1, .max = kMaxTokens, .whole = true},
      {.name = "cached_tokens", .fallback = 0, .max = kMaxTokens, .whole = true}};
  ASSIGN_OR_RETURN(const auto rows, ReadCsv(csv, where, columns));
  Workload workload;
  for (const std::vector<double>& row : rows) {
    const auto fault = [&](auto&&... what) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, ": request ", workload.size() + 1, " ", what...));
    };
    if (!workload.empty() && row[0] < workload.back().arrival_s) {
      return fault("arrives at ", row[0], " s, before the one above it");
    }
    if (row[3] > row[1]) return fault("has ", row[3], " of ", row[1], " prompt tokens cached");
    workload.push_back({.arrival_s = row[0],
                        .prompt_tokens = static_cast<uint32_t>(row[1]),
                        .output_tokens = static_cast<uint32_t>(row[2]),
                        .cached_tokens = static_cast<uint32_t>(row[3])});
  }
  if (workload.empty()) return absl::InvalidArgumentError(absl::StrCat(where, ": has no request"));
  return workload;
}

std::string WorkloadCsv(std::span<const WorkloadRequest> workload) {
  std::string csv = "arrival_s,prompt_tokens,output_tokens,cached_tokens\n";
  for (const WorkloadRequest& request : workload) {
    absl::StrAppendFormat(&csv, "%.9g,%d,%d,%d\n", request.arrival_s, request.prompt_tokens,
                          request.output_tokens, request.cached_tokens);
  }
  return csv;
}

WorkloadStats Describe(std::span<const WorkloadRequest> workload) {
  WorkloadStats stats;
  if (workload.empty()) return stats;
  const auto n = static_cast<double>(workload.size());
  for (const WorkloadRequest& request : workload) {
    stats.mean_prompt_tokens += request.prompt_tokens / n;
    stats.mean_output_tokens += request.output_tokens / n;
    stats.mean_cached_tokens += request.cached_tokens / n;
  }
  const double span_s = workload.back().arrival_s - workload.front().arrival_s;
  if (workload.size() < 2 || span_s <= 0) return stats;
  stats.rate_rps = (n - 1) / span_s;
  double squares = 0;
  for (size_t i = 1; i < workload.size(); ++i) {
    const double gap = (workload[i].arrival_s - workload[i - 1].arrival_s) * stats.rate_rps - 1;
    squares += gap * gap;
  }
  stats.gap_cv = std::sqrt(squares / (n - 1));
  return stats;
}

Workload AtRate(std::span<const WorkloadRequest> workload, double total_rps) {
  const double scale = Describe(workload).rate_rps / total_rps;
  const double begin_s = workload.front().arrival_s;
  Workload scaled(workload.begin(), workload.end());
  for (WorkloadRequest& request : scaled) {
    request.arrival_s = (request.arrival_s - begin_s) * scale;
  }
  return scaled;
}

Workload Repeated(std::span<const WorkloadRequest> workload, uint32_t times) {
  const double first_s = workload.front().arrival_s;
  const double span_s = workload.back().arrival_s - first_s;
  const double period_s = span_s + span_s / static_cast<double>(workload.size() - 1);
  Workload repeated;
  repeated.reserve(workload.size() * times);
  for (uint32_t i = 0; i < times; ++i) {
    for (const WorkloadRequest& request : workload) {
      repeated.push_back(request);
      repeated.back().arrival_s += i * period_s;
    }
  }
  return repeated;
}

absl::StatusOr<LengthShape> NamedShape(std::string_view name) {
  if (name == "chat") return LengthShape{755.5, 200.3, 0.8, 0.8};
  if (name == "code") return LengthShape{171.3, 98.2, 0.6, 0.6};
  if (name == "summarisation") return LengthShape{1738.3, 90.7, 0.1, 0.6};
  return absl::InvalidArgumentError(absl::StrCat("there is no workload '", std::string(name),
                                                 "'; allowed are chat, code and summarisation"));
}

Workload Generate(const GeneratedWorkload& options) {
  Random gaps(options.seed), lengths(~options.seed);
  const LengthShape& shape = options.shape;
  const double stretch = static_cast<double>(options.context_tokens) / kShapeContext;
  const double mean_output = shape.mean_output_tokens * stretch;
  const uint32_t most_output = options.context_tokens / 2;
  const double output_scale = ScaleOf(mean_output, shape.output_sigma, most_output);
  const double prompt_scale = ScaleOf(shape.mean_prompt_tokens * stretch, shape.prompt_sigma,
                                      options.context_tokens - mean_output);
  Workload workload;
  workload.reserve(options.requests);
  double now_s = 0;
  for (uint32_t i = 0; i < options.requests; ++i) {
    if (i > 0) now_s += Gap(options.gap_cv, gaps) / options.rate_rps;
    // The context holds both; what the output leaves is the prompt's.
    const uint32_t output = Length(output_scale, shape.output_sigma, most_output, lengths);
    const uint32_t prompt =
        Length(prompt_scale, shape.prompt_sigma, options.context_tokens - output, lengths);
    workload.push_back({.arrival_s = now_s, .prompt_tokens = prompt, .output_tokens = output});
  }
  return workload;
}

}  // namespace tandem::planner
