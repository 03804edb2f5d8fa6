// What requests look like: samples of arrivals and lengths, as recorded or as generated; kept as
// CSV. For the simulator and the planner. Pure functions, thread-safe.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace tandem::planner {

struct WorkloadRequest {
  double arrival_s = 0;
  uint32_t prompt_tokens = 1;
  /// Generated, the first one included.
  uint32_t output_tokens = 1;
  /// Leading tokens of the prompt whose KV need not be computed.
  uint32_t cached_tokens = 0;
};

/// In order of arrival.
using Workload = std::vector<WorkloadRequest>;

/// Reads "arrival_s,prompt_tokens,output_tokens[,cached_tokens]", in any order of columns.
/// INVALID_ARGUMENT "`where`:LINE: …" for a field that is wrong; also when there is no request,
/// arrivals go back, or more tokens are cached than a prompt has.
absl::StatusOr<Workload> ParseWorkload(std::string_view csv, const std::string& where);
std::string WorkloadCsv(std::span<const WorkloadRequest> workload);

struct WorkloadStats {
  /// Requests a second between the first and the last arrival; 0 for fewer than two.
  double rate_rps = 0;
  /// Deviation of the gaps between arrivals over their mean: 0 regular, 1 Poisson, more: bursts.
  double gap_cv = 0;
  double mean_prompt_tokens = 0, mean_output_tokens = 0, mean_cached_tokens = 0;
};
WorkloadStats Describe(std::span<const WorkloadRequest> workload);

/// The same requests, `total_rps` of them a second on average: all that differs between two rates
/// is the pace. REQUIRES: a workload with a rate > 0, total_rps > 0.
Workload AtRate(std::span<const WorkloadRequest> workload, double total_rps);

/// The requests `times` times over, one sample after the other at the same pace. REQUIRES: as
/// above.
Workload Repeated(std::span<const WorkloadRequest> workload, uint32_t times);

/// Lengths are log-normal, independent, cut to what the context holds.
struct LengthShape {
  double mean_prompt_tokens = 0, mean_output_tokens = 0;
  /// Deviations of the lengths' logarithms.
  double prompt_sigma = 0, output_sigma = 0;
};
/// "chat" (755.5 and 200.3 tokens), "code" (171.3, 98.2), "summarisation" (1738.3, 90.7): the mean
/// lengths of DistServe's data sets (OSDI'24, Fig. 7), for a context of 2,048 tokens.
/// INVALID_ARGUMENT, naming the three, for any other name.
absl::StatusOr<LengthShape> NamedShape(std::string_view name);

struct GeneratedWorkload {
  LengthShape shape;
  /// The shape's lengths are for 2,048 and scale with it.
  uint32_t context_tokens = 2048;
  uint32_t requests = 300;
  double rate_rps = 1;
  /// Of the gaps (WorkloadStats::gap_cv): 1 is Poisson; others are gamma.
  double gap_cv = 1;
  uint64_t seed = 1;
};
/// The same for the same seed, everywhere; lengths do not depend on rate and burstiness. The first
/// request comes at 0. REQUIRES: requests ≥ 1, rate and means > 0, gap_cv ≥ 0, context ≥ 2.
Workload Generate(const GeneratedWorkload& options);

}  // namespace tandem::planner
