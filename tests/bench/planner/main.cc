// How fast the planner's simulator is, in requests per CPU second, against requests and workers:
// `./dev bench planner [JSON]`. Chat lengths, two requests a second and worker, half of the workers
// prefill and half decode (or all mixed).
#include <cstdio>
#include <ctime>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_format.h"
#include "scheduler/planner/simulator.h"

namespace tandem::planner {
namespace {

/// Like a 13B model on an accelerator that does 10,000 prompt tokens a second.
WorkerSpeed Speed() {
  WorkerSpeed speed;
  speed.latency.prefill = {.base_s = 18e-3, .per_token_s = 1e-4, .per_position_s = 1e-8};
  speed.latency.decode.base_s = 20e-3;
  speed.latency.decode.per_sequence_s = 4e-5;
  speed.latency.decode.per_context_token_s = 6e-7;
  speed.max_sequences = 128;
  return speed;
}

double CpuSeconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

nlohmann::ordered_json Measure(uint32_t requests, uint32_t n_workers, bool mixed) {
  std::vector<SimulatedWorker> workers;
  for (uint32_t i = 0; i < n_workers; ++i) {
    const Phase phase = mixed ? Phase::kMixed : i % 2 == 0 ? Phase::kPrefill : Phase::kDecode;
    workers.push_back({.node = i, .phase = phase, .speed = Speed()});
  }
  const LinkTable links(n_workers, {.bytes_per_s = 1.25e9, .rtt_s = 1e-4});
  const Workload workload = Generate(
      {.shape = NamedShape("chat").value(), .requests = requests, .rate_rps = 2.0 * n_workers});
  const double begin_s = CpuSeconds();
  const auto result = Simulate(workers, links, workload, {.kv_bytes_per_token = 1e5});
  const double cpu_s = CpuSeconds() - begin_s;
  const double per_s = requests / cpu_s;
  absl::PrintF("%9d  %7d  %-6s  %7.3f  %10.0f  %6.1f %%\n", requests, n_workers,
               mixed ? "mixed" : "split", cpu_s, per_s, 100 * result.value().attainment.both);
  return {{"requests", requests},
          {"workers", n_workers},
          {"mixed", mixed},
          {"cpu_s", cpu_s},
          {"requests_per_cpu_s", per_s}};
}

}  // namespace
}  // namespace tandem::planner

int main(int argc, char** argv) {
  using tandem::planner::Measure;
  std::puts(" REQUESTS  WORKERS  PHASES    CPU S  REQUESTS/S  ATTAINMENT");
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  Measure(10'000, 4, false);  // warms up
  for (const uint32_t requests : {20'000u, 40'000u, 80'000u, 160'000u}) {
    rows.push_back(Measure(requests, 4, false));
  }
  rows.push_back(Measure(40'000, 4, true));
  for (const uint32_t workers : {8u, 16u, 32u, 64u, 128u, 256u}) {
    rows.push_back(Measure(20'000, workers, false));
  }
  if (argc > 1) std::ofstream(argv[1]) << rows.dump(1) << "\n";
}
