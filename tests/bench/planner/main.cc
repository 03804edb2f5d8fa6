// How fast the planner's simulator is, in requests per CPU second, against requests and workers;
// and how long plans for large clusters take: `./dev bench planner [JSON]`. Simulator: chat
// lengths, two requests a second and worker, half of the workers prefill and half decode (or all
// mixed). Plans: racks of 25 nodes of three kinds, in two mixtures, 25 Gbit/s within a rack and 1
// Gbit/s between; the best plan that is known beside them, of a search in each rack by itself.
#include <atomic>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_format.h"
#include "scheduler/planner/plan_search.h"
#include "scheduler/planner/simulator.h"

namespace tandem::planner {
namespace {

/// For the search in each of two racks.
constexpr double kApartCpuS = 240;

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

/// `prefill`, `decode`: how many times as fast as Speed().
WorkerSpeed Scaled(double prefill, double decode) {
  WorkerSpeed speed = Speed();
  speed.latency.prefill.base_s /= prefill;
  speed.latency.prefill.per_token_s /= prefill;
  speed.latency.prefill.per_position_s /= prefill;
  speed.latency.decode.base_s /= decode;
  speed.latency.decode.per_sequence_s /= decode;
  speed.latency.decode.per_context_token_s /= decode;
  return speed;
}

/// `mixture`: the first rack's, of two that alternate.
PlanTask Racks(uint32_t racks, uint32_t mixture = 0) {
  PlanTask task;
  task.groups = racks;
  const WorkerSpeed kinds[] = {Scaled(1, 1), Scaled(3, 1.1), Scaled(0.5, 0.9)};
  const uint32_t mixtures[2][3] = {{10, 5, 10}, {15, 10, 0}};
  for (uint32_t rack = 0; rack < racks; ++rack) {
    for (uint32_t kind = 0; kind < 3; ++kind) {
      const uint32_t count = mixtures[(rack + mixture) % 2][kind];
      if (count == 0) continue;
      task.classes.push_back({.name = "node", .count = count, .group = rack, .speed = kinds[kind]});
    }
    for (uint32_t to = 0; to < racks; ++to) {
      task.links.push_back(to == rack ? Link{.bytes_per_s = 25e9 / 8, .rtt_s = 5e-5}
                                      : Link{.bytes_per_s = 1e9 / 8, .rtt_s = 5e-4});
    }
  }
  task.workload = Generate({.shape = NamedShape("chat").value(), .requests = 1000});
  task.simulator = {.ttft_slo_s = 0.4, .tpot_slo_s = 0.04, .kv_bytes_per_token = 1e5};
  task.threads = 2;
  return task;
}

/// Two racks', one of each mixture, that know nothing of each other: a rack alone is searched
/// placement by placement, the most promising first, for longer than a large cluster's plan has.
double TwoRacksApart() {
  double rps = 0;
  for (const uint32_t mixture : {0u, 1u}) {
    std::atomic<bool> stop = false;
    const double begin_s = CpuSeconds();
    PlanTask task = Racks(1, mixture);
    task.keep_when_stopped = true;
    task.progress = [&](const PlanProgress&) { stop = CpuSeconds() > begin_s + kApartCpuS; };
    rps += SearchPlan(task, stop).value().best.goodput_rps;
  }
  return rps;
}

nlohmann::ordered_json MeasurePlan(uint32_t racks, double two_racks_rps) {
  const PlanTask task = Racks(racks);
  const std::atomic<bool> stop = false;
  const double begin_s = CpuSeconds();
  const auto plan = SearchPlan(task, stop);
  const double cpu_s = CpuSeconds() - begin_s;
  const double apart_rps = two_racks_rps * racks / 2;
  absl::PrintF("%6d  %7.1f  %11d  %7d  %8.1f  %9.1f  %11.1f\n", racks * 25, cpu_s,
               plan.value().simulations, plan.value().domains.size(), plan.value().best.goodput_rps,
               plan.value().colocated.goodput_rps, apart_rps);
  return {{"nodes", racks * 25},
          {"cpu_s", cpu_s},
          {"simulations", plan.value().simulations},
          {"goodput_rps", plan.value().best.goodput_rps},
          {"racks_apart_rps", apart_rps},
          {"all_mixed_rps", plan.value().colocated.goodput_rps}};
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
  std::puts("\n NODES    CPU S  SIMULATIONS  DOMAINS  BEST RPS  MIXED RPS  RACKS APART");
  const double two_racks_rps = tandem::planner::TwoRacksApart();
  for (const uint32_t racks : {4u, 12u, 40u}) {
    rows.push_back(tandem::planner::MeasurePlan(racks, two_racks_rps));
  }
  if (argc > 1) std::ofstream(argv[1]) << rows.dump(1) << "\n";
}
