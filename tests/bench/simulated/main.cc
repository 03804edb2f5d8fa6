// `./dev bench simulated`: what the planner's simulator says of a cluster against what is measured
// of it. Two workers on a core each serve a trace; the same trace is simulated with the speeds and
// links that the workers have told of themselves. Three rates around the simulated goodput, each
// several times, so that the spread from run to run is known.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "scheduler/planner/simulator.h"
#include "tests/bench/goodput/attainment.h"
#include "tests/bench/goodput/systems.h"
#include "tests/bench/goodput/workload.h"
#include "tests/bench/simulated/told_cluster.h"

ABSL_FLAG(std::string, model, TANDEM_SOURCE_DIR "/models/demo-q8_0.gguf", "GGUF file");
ABSL_FLAG(std::vector<std::string>, systems, std::vector<std::string>({"split", "mixed"}),
          "split, mixed");
ABSL_FLAG(std::vector<std::string>, workloads,
          std::vector<std::string>({"chat", "code", "summary"}), "chat, code, summary");
ABSL_FLAG(std::vector<std::string>, rates, std::vector<std::string>({"0.7", "1", "1.3"}),
          "Multiples of the simulated goodput");
ABSL_FLAG(std::vector<std::string>, rps, {}, "Requests a second, in place of --rates");
ABSL_FLAG(uint32_t, requests, 80, "Of a run");
ABSL_FLAG(uint32_t, repeats, 3, "Runs at each rate");
ABSL_FLAG(uint32_t, seed, 1, "Of lengths, arrivals and prompts");
ABSL_FLAG(std::vector<std::string>, worker_flags, {}, "Further flags of the workers");
ABSL_FLAG(std::vector<std::string>, router_flags, {}, "Further flags of the router");
ABSL_FLAG(bool, differences, false,
          "Name the requests that are within their objectives on one side only");
ABSL_FLAG(std::string, json, "", "Write the figures there");

namespace tandem::bench {
namespace {

/// What goes before, so that the workers know their speed as they do in service.
constexpr uint32_t kWarmRequests = 30;

[[noreturn]] void Die(const std::string& why) {
  std::fprintf(stderr, "bench_simulated: %s\n", why.c_str());
  std::exit(1);
}

/// The cluster as the simulator wants it.
struct Simulated {
  std::vector<planner::SimulatedWorker> workers;
  planner::LinkTable links;
  planner::SimulatorOptions options;

  planner::SimulationResult Run(std::span<const Arrival> trace, double rate) const {
    auto result = planner::Simulate(workers, links, ForSimulator(trace, rate), options);
    if (!result.ok()) Die(result.status().ToString());
    return *std::move(result);
  }
  double Attainment(std::span<const Arrival> trace, double rate) const {
    return Run(trace, rate).attainment.both;
  }
  /// The highest rate, from `idle_rps` on, at which nine tenths of what would be within both
  /// objectives at that rate still are.
  double Goodput(std::span<const Arrival> trace, double idle_rps) const {
    const double wanted = kGoodAttainment * Attainment(trace, idle_rps);
    double low = idle_rps, high = 2 * idle_rps;
    while (high < 1e4 && Attainment(trace, high) >= wanted) high *= 2;
    for (low = high / 2; high / low > 1.02;) {
      const double middle = std::sqrt(low * high);
      (Attainment(trace, middle) >= wanted ? low : high) = middle;
    }
    return low;
  }
};

/// As the workers have told.
Simulated Ask(const std::string& router, const Slo& slo) {
  const planner::ClusterNow cluster = AskCluster(router);
  const auto n = static_cast<uint32_t>(cluster.nodes.size());
  std::vector<uint32_t> groups(n);
  std::vector<planner::SimulatedWorker> workers;
  for (uint32_t i = 0; i < n; ++i) {
    groups[i] = i;
    workers.push_back(
        {.node = i, .phase = cluster.nodes[i].phase, .speed = cluster.nodes[i].speed});
  }
  return {
      .workers = std::move(workers),
      .links = planner::LinkTable(groups, LinksOf(cluster, {.bytes_per_s = 1.25e9, .rtt_s = 1e-4})),
      .options = {.ttft_slo_s = slo.ttft_s,
                  .tpot_slo_s = slo.tpot_s,
                  .kv_bytes_per_token = cluster.kv_bytes_per_token,
                  .report_interval_s = 0.05}};
}

/// The cluster as it tells of itself now. What a lone request takes beyond what is simulated is the
/// way to it.
Simulated Ask(const System& system, const Workload& workload, const Slo& slo,
              const Unloaded& alone) {
  Simulated simulated = Ask(system.RouterAddress(), slo);
  const Arrival lone = {
      .prompt = RandomPrompt(static_cast<uint32_t>(std::lround(workload.prompt_tokens)), 1),
      .output_tokens = static_cast<uint32_t>(std::lround(workload.output_tokens))};
  const planner::SimulationResult by_itself = simulated.Run({&lone, 1}, 1);
  simulated.options.request_overhead_s = std::max(0.0, alone.ttft_s - by_itself.ttft_s[0]);
  std::printf("    alone, ms: TTFT simulated %.1f, measured %.1f; TPOT %.2f, %.2f\n",
              1e3 * by_itself.ttft_s[0], 1e3 * alone.ttft_s, 1e3 * by_itself.tpot_s[0],
              1e3 * alone.tpot_s);
  return simulated;
}

struct Row {
  std::string workload, system;
  double rate = 0, simulated = 0;
  std::vector<double> measured;
  double mean() const {
    double sum = 0;
    for (const double each : measured) sum += each;
    return sum / static_cast<double>(measured.size());
  }
  double spread() const {
    return *std::max_element(measured.begin(), measured.end()) -
           *std::min_element(measured.begin(), measured.end());
  }
};

void Print(const Row& row) {
  std::vector<std::string> runs;
  for (const double each : row.measured) runs.push_back(absl::StrFormat("%.1f", 100 * each));
  std::printf("%-8s %-6s %6.2f  %9.1f  %8.1f  %6.1f  %6.1f   %s\n", row.workload.c_str(),
              row.system.c_str(), row.rate, 100 * row.simulated, 100 * row.mean(),
              100 * row.spread(), 100 * (row.simulated - row.mean()),
              absl::StrJoin(runs, " ").c_str());
}

/// Median, and the nine in ten, of a kind of time, as simulated and as measured; and where it goes.
void PrintTimes(const planner::SimulationResult& simulated, const std::vector<Outcome>& outcomes) {
  std::vector<double> ttft, tpot;
  double queue_s = 0, prefill_s = 0, decode_wait_s = 0;
  for (const Outcome& outcome : outcomes) {
    if (!outcome.complete()) continue;
    ttft.push_back(outcome.ttft_s());
    tpot.push_back(outcome.tpot_s());
    queue_s += outcome.parts.router_queue_s + outcome.parts.prefill_queue_s;
    prefill_s += outcome.parts.prefill_s;
    decode_wait_s += outcome.parts.decode_queue_s;
  }
  if (ttft.empty()) return;
  const double n = static_cast<double>(ttft.size());
  std::printf(
      "    means, ms: queue simulated %.0f, measured %.0f; prefill %.0f, %.0f; handoff %.0f; "
      "waiting for decode %.0f\n",
      1e3 * simulated.queue_s, 1e3 * queue_s / n, 1e3 * simulated.prefill_s, 1e3 * prefill_s / n,
      1e3 * simulated.handoff_s, 1e3 * decode_wait_s / n);
  for (const double share : {0.5, 0.9}) {
    std::printf("    p%.0f, ms: TTFT simulated %.0f, measured %.0f; TPOT %.2f, %.2f\n", 100 * share,
                1e3 * Quantile(simulated.ttft_s, share), 1e3 * Quantile(ttft, share),
                1e3 * Quantile(simulated.tpot_s, share), 1e3 * Quantile(tpot, share));
  }
}

/// Requests of which one says that they are within both objectives, and the other not.
void PrintDifferences(const planner::SimulationResult& simulated,
                      const std::vector<Outcome>& outcomes, const Slo& slo) {
  std::printf("    objectives, ms: TTFT %.1f, TPOT %.2f\n", 1e3 * slo.ttft_s, 1e3 * slo.tpot_s);
  for (size_t i = 0; i < outcomes.size(); ++i) {
    const Outcome& outcome = outcomes[i];
    const double ttft_s = simulated.ttft_s[i], tpot_s = simulated.tpot_s[i];
    const bool good = ttft_s <= slo.ttft_s && tpot_s <= slo.tpot_s;
    if (good == (Attainment({&outcome, 1}, slo) > 0.5)) continue;
    std::printf(
        "    due %6.2f s, prompt %4u, output %4u: TTFT simulated %.0f, measured %.0f (router %.0f, "
        "queue %.0f, prefill %.0f); TPOT %.2f, %.2f\n",
        outcome.due_s, outcome.prompt_tokens, outcome.wanted_tokens, 1e3 * ttft_s,
        1e3 * outcome.ttft_s(), 1e3 * outcome.parts.router_queue_s,
        1e3 * outcome.parts.prefill_queue_s, 1e3 * outcome.parts.prefill_s, 1e3 * tpot_s,
        1e3 * outcome.tpot_s());
  }
}

void Compare(const Workload& workload, const std::string& name, std::vector<Row>& rows) {
  const uint32_t seed = absl::GetFlag(FLAGS_seed);
  SystemOptions options = {.model = absl::GetFlag(FLAGS_model),
                           .worker_flags = absl::GetFlag(FLAGS_worker_flags),
                           .router_flags = absl::GetFlag(FLAGS_router_flags)};
  // As in service: steps of all sizes are measured before there are requests.
  options.worker_flags.insert(options.worker_flags.end(), {"--profile-at-start", "3s"});
  Slo slo;
  {
    auto system = StartSystem(name, options);
    const Unloaded alone = MeasureUnloaded(system->client(), workload);
    slo = {.ttft_s = workload.slo.ttft * alone.ttft_s, .tpot_s = workload.slo.tpot * alone.tpot_s};
  }
  options.ttft_slo_s = slo.ttft_s;
  options.tpot_slo_s = slo.tpot_s;
  auto system = StartSystem(name, options);
  LoadClient& client = system->client();
  Unloaded alone = MeasureUnloaded(client, workload);
  const double alone_rps = ServedAloneRps(alone, workload);
  const auto warm = MakeTrace(workload, {.requests = kWarmRequests, .seed = seed + 1000});
  client.Run(warm, alone_rps);
  alone = MeasureUnloaded(client, workload);
  const auto trace = MakeTrace(workload, {.requests = absl::GetFlag(FLAGS_requests), .seed = seed});
  const std::vector<std::string> fixed = absl::GetFlag(FLAGS_rps);
  const double goodput =
      fixed.empty() ? Ask(*system, workload, slo, alone).Goodput(trace, 0.1 * alone_rps) : 1;
  for (const std::string& rate : fixed.empty() ? absl::GetFlag(FLAGS_rates) : fixed) {
    Row row = {.workload = workload.name, .system = name, .rate = std::stod(rate) * goodput};
    std::vector<Outcome> outcomes;
    for (uint32_t i = 0; i < absl::GetFlag(FLAGS_repeats); ++i) {
      outcomes = client.Run(trace, row.rate);
      row.measured.push_back(Attainment(outcomes, slo));
    }
    // With the speed that the workers have at that rate: router and client have the same two cores.
    const planner::SimulationResult result =
        Ask(*system, workload, slo, alone).Run(trace, row.rate);
    row.simulated = result.attainment.both;
    Print(row);
    PrintTimes(result, outcomes);
    if (absl::GetFlag(FLAGS_differences)) PrintDifferences(result, outcomes, slo);
    rows.push_back(std::move(row));
  }
}

void Main() {
  std::printf("attainment, %%; spread: the highest less the lowest of the runs\n");
  std::printf("workload system  rate/s  simulated  measured  spread   error   runs\n");
  std::vector<Row> rows;
  for (const Workload& workload : Workloads()) {
    const auto wanted = absl::GetFlag(FLAGS_workloads);
    if (std::find(wanted.begin(), wanted.end(), workload.name) == wanted.end()) continue;
    for (const std::string& system : absl::GetFlag(FLAGS_systems)) {
      if (system != "split" && system != "mixed") Die("--systems: there are split and mixed");
      Compare(workload, system, rows);
    }
  }
  if (rows.empty()) Die("--workloads: there are chat, code and summary");
  nlohmann::ordered_json json = nlohmann::ordered_json::array();
  size_t calm = 0, within = 0;
  for (const Row& row : rows) {
    const bool is_calm = row.spread() < 0.05,
               is_within = std::abs(row.simulated - row.mean()) <= 0.05;
    calm += is_calm;
    within += is_calm && is_within;
    json.push_back({{"workload", row.workload},
                    {"system", row.system},
                    {"rate_rps", row.rate},
                    {"simulated", row.simulated},
                    {"measured", row.measured}});
  }
  std::printf(
      "of %zu points %zu spread by less than 5 points from run to run; of these %zu were "
      "simulated to within 5 points\n",
      rows.size(), calm, within);
  if (const std::string path = absl::GetFlag(FLAGS_json); !path.empty()) {
    std::ofstream(path) << json.dump(1) << "\n";
  }
}

}  // namespace
}  // namespace tandem::bench

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  absl::ParseCommandLine(argc, argv);
  tandem::bench::Main();
}
