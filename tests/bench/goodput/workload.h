// Workloads in DistServe's manner: prompt and output lengths, arrivals, and the prompts' tokens,
// all from a seed.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "scheduler/planner/workload.h"

namespace tandem::bench {

/// Objectives as multiples of the latency of an unloaded machine.
struct SloMultiples {
  double ttft = 0, tpot = 0;
};

struct Workload {
  std::string name;
  /// Means of the lengths that DistServe measured (OSDI'24, figure 7), in tokens.
  double prompt_tokens = 0, output_tokens = 0;
  /// Of a lognormal distribution: standard deviation of the logarithm.
  double prompt_spread = 0, output_spread = 0;
  SloMultiples slo;
};

/// chat, code and summary.
std::span<const Workload> Workloads();

/// None of that name: null.
const Workload* FindWorkload(std::string_view name);

/// One request of a trace.
struct Arrival {
  /// Seconds from the beginning at one request a second.
  double at_s = 0;
  std::vector<int32_t> prompt;
  uint32_t output_tokens = 0;
  /// Empty: the default one.
  std::string tenant = {};
};

struct TraceOptions {
  uint32_t requests = 0;
  /// Coefficient of variation of the times between arrivals, which are gamma distributed:
  /// 1 is a Poisson process.
  double cv = 1;
  uint32_t context_tokens = 2048;
  uint32_t seed = 1;
};

/// The prompts share no beginning, so no cache helps anybody. Prompt and output fit the context.
std::vector<Arrival> MakeTrace(const Workload& workload, const TraceOptions& options);

/// The trace at `rate` requests a second, for the simulator.
planner::Workload ForSimulator(std::span<const Arrival> trace, double rate = 1);

/// `n` tokens of the demo model's vocabulary that are whole words or parts of them.
std::vector<int32_t> RandomPrompt(uint32_t n, uint32_t seed);

}  // namespace tandem::bench
