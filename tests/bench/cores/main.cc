// `./dev bench cores`: how many requests a second are served within their objectives, by Tandem and
// by servers that compute a prompt as soon as it comes, against the number of cores. Simulated,
// with the workloads and objectives of `./dev bench goodput`.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "scheduler/planner/bisection.h"
#include "scheduler/planner/simulator.h"
#include "scheduler/planner/statistics.h"
#include "tests/bench/cores/peer_servers.h"
#include "tests/bench/goodput/workload.h"
#include "tests/support/plot.h"

ABSL_FLAG(std::vector<std::string>, cores, std::vector<std::string>({"2", "4", "8", "16", "32"}),
          "Numbers of workers, of a core or device each");
ABSL_FLAG(uint32_t, requests, 300, "Requests a worker; 2,000 in all at least");
ABSL_FLAG(uint32_t, seed, 1, "Of lengths, arrivals and draws");
ABSL_FLAG(std::string, output, TANDEM_BIN_DIR "/../bench", "Folder for cores.json and cores.svg");

namespace tandem::bench {
namespace {

using nlohmann::ordered_json;
using planner::Phase;
using planner::SimulatedWorker;
using planner::WorkerSpeed;

constexpr double kGood = 0.9;
constexpr uint32_t kPeerStepTokens = 512;

struct Model {
  std::string name;
  WorkerSpeed speed;
  uint32_t peer_sequences = 8;
  double kv_bytes_per_token = 0;
  planner::Link link;
};

/// The demo model on one core of an AMD EPYC, as a mixed worker had learned it from a minute of its
/// own steps while it served the code workload in `./dev bench goodput`, at 5.5 requests a second
/// and core: with all that comes between two steps, and beside router and clients. `tandem status
/// --json`, usual_latency. Batches of more than five were not seen there: their factor is the last
/// one's. Loopback: what `./dev bench handoff` moves.
Model Demo() {
  Model demo = {.name = "demo, a core each",
                .peer_sequences = 8,
                .kv_bytes_per_token = 4096,
                .link = {.bytes_per_s = 3e9, .rtt_s = 1e-4}};
  demo.speed = {.kv_capacity_tokens = 32'768, .max_sequences = 16};
  demo.speed.latency.prefill = {
      .base_s = 7.215e-4, .per_token_s = 1.785e-4, .per_position_s = 3.103e-8};
  demo.speed.latency.decode = {.base_s = 2.243e-4,
                               .per_sequence_s = 3.623e-4,
                               .per_context_token_s = 1.824e-7,
                               .factor = {1, 1.12f, 1.09f, 1.13f, 1.19f}};
  std::fill(demo.speed.latency.decode.factor.begin() + 5, demo.speed.latency.decode.factor.end(),
            1.19f);
  demo.speed.latency.saturation_tokens = 64;
  return demo;
}

/// OPT-13B on an A100, as DistServe's authors profiled it: case o01 of
/// tests/integration/planner/simpeer/open/cases/cases.json, with its KV of 50,000 tokens and the
/// batches for which its coefficients hold; links of 100 Gbit/s.
Model Opt13B() {
  Model opt = {.name = "OPT-13B, an A100 each",
               .peer_sequences = 95,
               .kv_bytes_per_token = 819'200,
               .link = {.bytes_per_s = 1.25e10, .rtt_s = 5e-5}};
  opt.speed = {.kv_capacity_tokens = 50'000, .max_sequences = 95};
  opt.speed.latency.prefill = {
      .base_s = 18.1025e-3, .per_token_s = 0.101912e-3, .per_position_s = 7.12e-9};
  opt.speed.latency.decode.base_s = 19.9347e-3;
  opt.speed.latency.decode.per_sequence_s = 0.0385070e-3;
  opt.speed.latency.decode.per_context_token_s = 0.000626936e-3;
  // 0.9 of the speed of endless steps: n / (base + n × per token) ≥ 0.9 / per token.
  opt.speed.latency.saturation_tokens = 1'600;
  return opt;
}

struct Objectives {
  double ttft_s = 0, tpot_s = 0;
  /// A worker that serves one request at a time.
  double alone_rps = 0;
};

/// One model with one workload on so many workers.
struct Setting {
  const Model& model;
  Objectives objectives;
  planner::Workload requests;
  uint32_t workers = 0;
  double most_rps = 0;

  double Attained(const std::vector<double>& ttft_s, const std::vector<double>& tpot_s) const {
    return planner::Attained(ttft_s, tpot_s, objectives.ttft_s, objectives.tpot_s).both;
  }
};

/// Share of the requests within their objectives at a rate.
using AttainmentAt = std::function<double(double rps)>;

Objectives ObjectivesOf(const Model& model, const Workload& workload) {
  scheduler::LatencyModel alone = model.speed.latency;
  alone.saturation_tokens = kPeerStepTokens;
  const double ttft_s = alone.PromptSeconds(static_cast<uint64_t>(workload.prompt_tokens));
  const double tpot_s = alone.decode.StepSeconds(
      1, static_cast<uint64_t>(workload.prompt_tokens + workload.output_tokens / 2));
  return {.ttft_s = workload.slo.ttft * ttft_s,
          .tpot_s = workload.slo.tpot * tpot_s,
          .alone_rps = 1 / (ttft_s + workload.output_tokens * tpot_s)};
}

planner::Workload Requests(const Workload& workload, uint32_t workers) {
  const uint32_t n = std::max(2'000u, workers * absl::GetFlag(FLAGS_requests));
  return ForSimulator(MakeTrace(workload, {.requests = n, .seed = absl::GetFlag(FLAGS_seed)}));
}

/// What the workers could compute if they were never idle, prompts came in full steps and batches
/// were always those that cost least a token: no schedule that serves all requests does more.
double MostRps(const planner::WorkerSpeed& speed, const planner::Workload& requests,
               uint32_t workers) {
  const scheduler::PrefillCost& prefill = speed.latency.prefill;
  double work_s = 0;
  for (const planner::WorkloadRequest& request : requests) {
    double token_s = std::numeric_limits<double>::infinity();
    const uint64_t context = request.prompt_tokens + request.output_tokens / 2;
    for (uint32_t n = 1; n <= speed.max_sequences; ++n) {
      token_s = std::min(token_s, speed.latency.decode.StepSeconds(n, n * context) / n);
    }
    const double full_steps = 1.0 * request.prompt_tokens / speed.StepTokens();
    work_s += prefill.Seconds(request.prompt_tokens) + (full_steps - 1) * prefill.base_s +
              (request.output_tokens - 1) * token_s;
  }
  return workers * static_cast<double>(requests.size()) / work_s;
}

planner::SimulationResult Simulated(const Setting& setting, std::vector<SimulatedWorker> workers,
                                    const planner::Link& link, double patience, double rps) {
  for (uint32_t i = 0; i < workers.size(); ++i) workers[i].node = i;
  auto result = planner::Simulate(workers, planner::LinkTable(setting.workers, link),
                                  planner::AtRate(setting.requests, rps),
                                  {.ttft_slo_s = setting.objectives.ttft_s * patience,
                                   .tpot_slo_s = setting.objectives.tpot_s * patience,
                                   .kv_bytes_per_token = setting.model.kv_bytes_per_token,
                                   .seed = absl::GetFlag(FLAGS_seed)});
  if (!result.ok()) {
    std::fprintf(stderr, "bench_cores: %s\n", result.status().ToString().c_str());
    std::exit(1);
  }
  return *std::move(result);
}

/// `prefill` workers that only prefill, the others only decode; 0: all do both.
AttainmentAt Tandem(const Setting& setting, uint32_t prefill) {
  std::vector<SimulatedWorker> workers;
  for (uint32_t i = 0; i < setting.workers; ++i) {
    const Phase phase = prefill == 0  ? Phase::kMixed
                        : i < prefill ? Phase::kPrefill
                                      : Phase::kDecode;
    workers.push_back({.phase = phase, .speed = setting.model.speed});
  }
  return [&setting, workers](double rps) {
    const auto result = Simulated(setting, workers, setting.model.link, 1, rps);
    return setting.Attained(result.ttft_s, result.tpot_s);
  };
}

AttainmentAt Peer(const Setting& setting, bool by_turns) {
  return [&setting, by_turns](double rps) {
    const PeerLatencies latencies =
        ServeByPeer(planner::AtRate(setting.requests, rps), setting.model.speed.latency,
                    {.servers = setting.workers,
                     .sequences = setting.model.peer_sequences,
                     .step_tokens = kPeerStepTokens,
                     .by_turns = by_turns});
    return setting.Attained(latencies.ttft_s, latencies.tpot_s);
  };
}

/// The same policy by the planner's simulator: with objectives that are never in danger a prompt
/// goes as soon as it comes, in pieces with a decode step of their own between them, nobody is kept
/// from decoding, and dispatch minds latency alone. Links so slow that nothing is handed over.
AttainmentAt SimulatorsPeer(const Setting& setting) {
  SimulatedWorker worker{.phase = Phase::kMixed, .speed = setting.model.speed};
  worker.speed.latency.saturation_tokens = kPeerStepTokens;
  worker.speed.max_sequences = setting.model.peer_sequences;
  return [&setting, workers = std::vector(setting.workers, worker)](double rps) {
    constexpr double kPatience = 100;
    const auto result = Simulated(setting, workers, {.bytes_per_s = 1, .rtt_s = 1}, kPatience, rps);
    for (const auto& [pair, n] : result.pairs) {
      if (pair.first == pair.second) continue;
      std::fprintf(stderr, "bench_cores: the peer handed %zu sequences over\n", size_t{n});
      std::exit(1);
    }
    return setting.Attained(result.ttft_s, result.tpot_s);
  };
}

/// The highest rate with an attainment of 90 %, to within 1 %, and no more than can be computed in
/// the long run; 0 when it is not above `at_least`.
double Goodput(const Setting& setting, const AttainmentAt& attainment, double at_least = 0) {
  if (at_least > 0 && attainment(at_least) < kGood) return 0;
  double top = std::max(2 * at_least, setting.workers * setting.objectives.alone_rps / 2);
  while (attainment(top) >= kGood) top *= 2;
  const double rps = planner::HighestPassingRate(top, top / 256, [&](double rate) {
                       return absl::StatusOr<bool>(attainment(rate) >= kGood);
                     }).value();
  return std::min(rps, setting.most_rps);
}

/// Goodputs of all arms, and Tandem's best over the peer's best.
ordered_json Measure(const Model& model, const Workload& workload, uint32_t workers) {
  const planner::Workload requests = Requests(workload, workers);
  const Setting setting = {.model = model,
                           .objectives = ObjectivesOf(model, workload),
                           .requests = requests,
                           .workers = workers,
                           .most_rps = MostRps(model.speed, requests, workers)};
  const double peer = Goodput(setting, Peer(setting, false));
  const double peer_by_turns = Goodput(setting, Peer(setting, true));
  const double simulators_peer = Goodput(setting, SimulatorsPeer(setting));
  const double mixed = Goodput(setting, Tandem(setting, 0));
  double split = 0;
  uint32_t prefill = 0;
  for (uint32_t p = 1; p < workers; ++p) {
    const double goodput = Goodput(setting, Tandem(setting, p), split);
    if (goodput <= split) continue;
    split = goodput;
    prefill = p;
  }
  const double best_peer = std::max(peer, simulators_peer);
  const double ratio = std::max(mixed, split) / best_peer;
  absl::PrintF(
      "%-22s %-8s %5d  %8.2f  %8.2f  %8.2f  %8.2f  %8.2f  %2d : %-2d  %5.2f  %8.2f  %5.2f\n",
      model.name, workload.name, workers, peer, peer_by_turns, simulators_peer, mixed, split,
      prefill, workers - prefill, ratio, setting.most_rps, setting.most_rps / best_peer);
  std::fflush(stdout);
  return {{"model", model.name},
          {"workload", workload.name},
          {"workers", workers},
          {"ttft_slo_s", setting.objectives.ttft_s},
          {"tpot_slo_s", setting.objectives.tpot_s},
          {"peer_rps", peer},
          {"peer_by_turns_rps", peer_by_turns},
          {"peer_by_simulator_rps", simulators_peer},
          {"mixed_rps", mixed},
          {"split_rps", split},
          {"prefill_workers", prefill},
          {"ratio", ratio},
          {"most_rps", setting.most_rps}};
}

int Main() {
  std::puts(
      "PEER: least connections, prompts at once, sequences' tokens in the prompts' steps.\n"
      "BY TURNS: the same, but steps of prompts alone and of sequences alone in turn.\n"
      "SIM PEER: the same rule on the planner's simulator; whole steps by turns, and the "
      "real\n"
      "dispatcher in place of least connections.\n"
      "MOST: what the workers could compute if they were never idle; and that over the peer.\n\n"
      "MODEL                  WORKLOAD CORES      PEER  BY TURNS  SIM PEER     MIXED     SPLIT  P "
      ": D    RATIO      MOST  RATIO");
  ordered_json rows = ordered_json::array();
  std::vector<Plot> plots;
  for (const Model& model : {Demo(), Opt13B()}) {
    plots.push_back({.title = model.name,
                     .x_label = "cores or devices",
                     .y_label = "goodput, of the peer's",
                     .marks = {1, 2}});
    for (const Workload& workload : Workloads()) {
      plots.back().curves.push_back({.name = workload.name});
      for (const std::string& cores : absl::GetFlag(FLAGS_cores)) {
        const auto workers = static_cast<uint32_t>(std::max(2, std::atoi(cores.c_str())));
        rows.push_back(Measure(model, workload, workers));
        plots.back().curves.back().points.emplace_back(workers, rows.back()["ratio"]);
      }
    }
  }
  const auto folder = std::filesystem::path(absl::GetFlag(FLAGS_output)).lexically_normal();
  std::filesystem::create_directories(folder);
  std::ofstream(folder / "cores.json") << rows.dump(1) << "\n";
  std::ofstream(folder / "cores.svg") << Svg(plots);
  std::printf("written: %s, %s\n", (folder / "cores.json").c_str(), (folder / "cores.svg").c_str());
  return 0;
}

}  // namespace
}  // namespace tandem::bench

int main(int argc, char** argv) {
  absl::ParseCommandLine(argc, argv);
  return tandem::bench::Main();
}
