#include "tests/bench/goodput/workload.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <random>

namespace tandem::bench {
namespace {

/// With the mean that is asked for.
uint32_t DrawLength(std::mt19937_64& random, double mean, double spread, uint32_t low,
                    uint32_t high) {
  std::lognormal_distribution<double> draw(std::log(mean) - spread * spread / 2, spread);
  return std::clamp(static_cast<uint32_t>(std::lround(draw(random))), low, high);
}

}  // namespace

std::span<const Workload> Workloads() {
  // The objectives are those of the paper's table 1 for OPT-66B over the latency that its own
  // model gives an unloaded instance: prefill with four-way tensor parallelism 180, 57 and 484 ms
  // for the mean prompt, a decode step of one sequence with two-way 49.2, 48.5 and 50.2 ms.
  static const std::array<Workload, 3> kWorkloads = {
      {{"chat", 755.5, 200.3, 0.7, 0.7, {2.5 / 0.180, 0.15 / 0.0492}},
       {"code", 171.3, 98.2, 0.5, 0.7, {0.125 / 0.057, 0.2 / 0.0485}},
       {"summary", 1738.3, 90.7, 0.1, 0.5, {15 / 0.484, 0.15 / 0.0502}}}};
  return kWorkloads;
}

const Workload* FindWorkload(std::string_view name) {
  const auto all = Workloads();
  const auto found =
      std::find_if(all.begin(), all.end(), [&](const Workload& one) { return one.name == name; });
  return found == all.end() ? nullptr : &*found;
}

planner::Workload ForSimulator(std::span<const Arrival> trace, double rate) {
  planner::Workload workload;
  for (const Arrival& arrival : trace) {
    workload.push_back({.arrival_s = arrival.at_s / rate,
                        .prompt_tokens = static_cast<uint32_t>(arrival.prompt.size()),
                        .output_tokens = arrival.output_tokens});
  }
  return workload;
}

std::vector<int32_t> RandomPrompt(uint32_t n, uint32_t seed) {
  constexpr int32_t kBos = 1, kFirst = 300, kCount = 3500;
  std::mt19937 random(seed);
  std::vector<int32_t> tokens = {kBos};
  while (tokens.size() < n) tokens.push_back(kFirst + static_cast<int32_t>(random() % kCount));
  return tokens;
}

std::vector<Arrival> MakeTrace(const Workload& workload, const TraceOptions& options) {
  std::mt19937_64 random(options.seed);
  const double shape = 1 / (options.cv * options.cv);
  std::gamma_distribution<double> gap(shape, 1 / shape);
  std::vector<Arrival> trace;
  double at_s = 0;
  for (uint32_t i = 0; i < options.requests; ++i) {
    const uint32_t output =
        DrawLength(random, workload.output_tokens, workload.output_spread, 8, 512);
    const uint32_t prompt = DrawLength(random, workload.prompt_tokens, workload.prompt_spread, 16,
                                       options.context_tokens - output);
    trace.push_back({.at_s = at_s,
                     .prompt = RandomPrompt(prompt, static_cast<uint32_t>(random())),
                     .output_tokens = output});
    at_s += gap(random);
  }
  return trace;
}

}  // namespace tandem::bench
