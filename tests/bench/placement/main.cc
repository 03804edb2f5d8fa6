// `./dev bench placement`: bandwidth decides. Two racks, of a worker with a core each, on a network
// of their own; between them a slow link, then a fast one. The plan that the search makes from what
// the workers have measured, speeds and links, and what is measured of the two placements that
// matter: both phases in every rack (DistServe's Algorithm 2), and a rack for each (Algorithm 1).
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/strings/str_cat.h"
#include "scheduler/planner/plan_search.h"
#include "server/planner_inputs.h"
#include "tandem/v1/cluster.grpc.pb.h"
#include "tests/bench/goodput/attainment.h"
#include "tests/bench/goodput/load_client.h"
#include "tests/bench/goodput/workload.h"
#include "tests/bench/simulated/told_cluster.h"
#include "tests/bench/synthetic_model/synthetic_model.h"
#include "tests/e2e/netlab.h"

ABSL_FLAG(std::string, model, "demo",
          "demo, memory-bound (a synthetic one whose batches save more), or a GGUF file");
ABSL_FLAG(std::string, workload, "chat", "chat, code or summary");
ABSL_FLAG(std::vector<std::string>, between, std::vector<std::string>({"20mbit", "2gbit"}),
          "Rates of the link between the racks");
ABSL_FLAG(double, ttft_slo, 4, "TTFT objective in unloaded TTFTs");
ABSL_FLAG(double, tpot_slo, 2, "TPOT objective in unloaded TPOTs");
ABSL_FLAG(std::vector<std::string>, rates, std::vector<std::string>({"0.5", "0.75", "1"}),
          "Multiples of the chosen plan's simulated goodput");
ABSL_FLAG(uint32_t, requests, 50, "Of a run");
ABSL_FLAG(uint32_t, seed, 1, "Of lengths, arrivals and prompts");
ABSL_FLAG(std::string, json, "", "Write the figures there");

namespace tandem::bench {
namespace {

using planner::Phase;

constexpr uint32_t kRacks = 2;

[[noreturn]] void Die(const std::string& why) {
  std::fprintf(stderr, "bench_placement: %s\n", why.c_str());
  std::exit(1);
}

const std::string& ModelFile() {
  static const std::string file = [] {
    const std::string name = absl::GetFlag(FLAGS_model);
    const std::string demo = TANDEM_SOURCE_DIR "/models/demo-q8_0.gguf";
    if (name == "demo") return demo;
    if (name != "memory-bound") return name;
    const auto synthetic = SyntheticModelFile(SyntheticModel::kMemoryBound, demo);
    if (!synthetic.ok()) Die(synthetic.status().ToString());
    return *synthetic;
  }();
  return file;
}

std::string Milliseconds(double s) { return absl::StrCat(s * 1e3, "ms"); }

struct Placement {
  std::string name;
  std::vector<Phase> phases;  // by rack
};
const Placement kInRacks = {"both phases in every rack", {Phase::kMixed, Phase::kMixed}};
const Placement kByRacks = {"a rack for each phase", {Phase::kPrefill, Phase::kDecode}};

/// A router and the racks, while the object is.
class Racks {
 public:
  Racks(const std::string& between, const Slo& slo) : lab_(kRacks + 1) {
    std::vector<std::string> flags = {
        "--role",         "router", "--model",   ModelFile(), "--listen",    lab_.Address(1) + ":0",
        "--max-requests", "100000", "--planner", "off",       "--log-level", "warn"};
    if (slo.ttft_s > 0) {
      flags.insert(flags.end(), {"--ttft-objective", Milliseconds(slo.ttft_s), "--tpot-objective",
                                 Milliseconds(slo.tpot_s)});
    }
    router_ = std::make_unique<e2e::DaemonProcess>(flags, lab_.Host(1));
    for (uint32_t rack = 0; rack < kRacks; ++rack) Start(rack, slo);
    if (!e2e::Client(router()).WaitWorkers(kRacks)) Die("the workers did not register");
    client_ = MakeTandemClient(router());
    lab_.Rate(HostOf(0), HostOf(1), between);
    lab_.Rate(HostOf(1), HostOf(0), between);
  }

  LoadClient& client() { return *client_; }
  std::string router() const { return router_->RouterAddress(); }

  /// Returns when every worker has its phase.
  void Take(const Placement& placement) {
    e2e::Client client(router());
    const auto stub = v1::ClusterService::NewStub(client.channel());
    for (uint32_t rack = 0; rack < kRacks; ++rack) {
      grpc::ClientContext context;
      v1::AssignPhaseRequest request;
      v1::AssignPhaseResponse response;
      request.set_worker(NameOf(rack));
      request.set_phase(server::ToProto(placement.phases[rack]));
      request.set_force(true);
      const auto status = stub->AssignPhase(&context, request, &response);
      if (!status.ok()) Die(status.error_message());
    }
    if (!e2e::WaitFor([&] { return Taken(placement, *stub); })) Die("a phase was not taken");
  }

 private:
  static int HostOf(uint32_t rack) { return static_cast<int>(rack) + 2; }
  static std::string NameOf(uint32_t rack) { return absl::StrCat("rack", rack + 1); }

  void Start(uint32_t rack, const Slo& slo) {
    const e2e::DaemonHost host = lab_.Host(HostOf(rack));
    std::vector<std::string> flags = {"--role",
                                      "worker",
                                      "--phase",
                                      "mixed",
                                      "--name",
                                      NameOf(rack),
                                      "--model",
                                      ModelFile(),
                                      "--routers",
                                      router(),
                                      "--threads",
                                      "1",
                                      "--cpus",
                                      absl::StrCat(rack),
                                      "--context-tokens",
                                      "2048",
                                      "--worker-listen",
                                      host.address + ":0",
                                      "--data-listen",
                                      host.address + ":0",
                                      "--report-interval",
                                      "50ms",
                                      "--max-queued",
                                      "100000",
                                      "--kv-memory-bytes",
                                      "0",
                                      "--retained-prompts",
                                      "0",
                                      "--no-prefill-on-decode",
                                      "--profile-at-start",
                                      "3s",
                                      "--log-level",
                                      "warn"};
    if (slo.tpot_s > 0) {
      flags.insert(flags.end(), {"--tpot-objective", Milliseconds(slo.tpot_s)});
    }
    workers_.push_back(std::make_unique<e2e::DaemonProcess>(flags, host));
  }

  static bool Taken(const Placement& placement, v1::ClusterService::StubInterface& stub) {
    grpc::ClientContext context;
    v1::ListWorkersResponse told;
    if (!stub.ListWorkers(&context, {}, &told).ok()) return false;
    return std::all_of(told.workers().begin(), told.workers().end(), [&](const auto& worker) {
      const uint32_t rack = worker.info().name() == NameOf(0) ? 0 : 1;
      return worker.load().phase() == server::ToProto(placement.phases[rack]) &&
             worker.load().changing_to() == v1::PHASE_UNSPECIFIED;
    });
  }

  e2e::Netlab lab_;  // goes last
  std::unique_ptr<e2e::DaemonProcess> router_;
  std::vector<std::unique_ptr<e2e::DaemonProcess>> workers_;
  std::unique_ptr<LoadClient> client_;
};

/// What is to be planned, as the workers have told.
planner::PlanTask TaskOf(const planner::ClusterNow& cluster, std::span<const Arrival> trace,
                         const Slo& slo) {
  if (cluster.nodes.size() != kRacks) Die("a worker is missing");
  planner::PlanTask task = {.groups = kRacks, .threads = 2};
  for (uint32_t rack = 0; rack < kRacks; ++rack) {
    task.classes.push_back(
        {.name = cluster.nodes[rack].name, .group = rack, .speed = cluster.nodes[rack].speed});
  }
  task.links = LinksOf(cluster, {.bytes_per_s = 125e6, .rtt_s = 1e-3});
  for (const planner::MeasuredLink& each : cluster.links) {
    std::printf("  %s to %s: %.1f Mbit/s measured\n", cluster.nodes[each.from].name.c_str(),
                cluster.nodes[each.to].name.c_str(), 8e-6 * each.link.bytes_per_s);
  }
  task.workload = ForSimulator(trace);
  task.simulator = {.ttft_slo_s = slo.ttft_s,
                    .tpot_slo_s = slo.tpot_s,
                    .kv_bytes_per_token = cluster.kv_bytes_per_token};
  return task;
}

std::vector<planner::PhaseCounts> CountsOf(const Placement& placement) {
  std::vector<planner::PhaseCounts> counts(kRacks);
  for (uint32_t rack = 0; rack < kRacks; ++rack) counts[rack].of(placement.phases[rack]) = 1;
  return counts;
}

/// By rack: each has one worker.
std::vector<Phase> PhasesOf(std::span<const planner::PhaseCounts> counts) {
  std::vector<Phase> phases;
  for (const planner::PhaseCounts& each : counts) {
    phases.push_back(each.of(Phase::kPrefill) > 0  ? Phase::kPrefill
                     : each.of(Phase::kDecode) > 0 ? Phase::kDecode
                                                   : Phase::kMixed);
  }
  return phases;
}

std::string ByRack(const std::vector<planner::PhaseCounts>& counts) {
  std::string text;
  for (const planner::PhaseCounts& each : counts) {
    absl::StrAppend(&text, text.empty() ? "" : " | ", planner::Describe({each}));
  }
  return text;
}

std::map<double, double> AttainmentByRate(Racks& racks, const Placement& placement,
                                          std::span<const Arrival> trace, const Slo& slo,
                                          double top_rps) {
  racks.Take(placement);
  std::map<double, double> attained;
  for (const std::string& share : absl::GetFlag(FLAGS_rates)) {
    const double rate = std::stod(share) * top_rps;
    attained[rate] = Attainment(racks.client().Run(trace, rate), slo);
  }
  return attained;
}

nlohmann::ordered_json MeasureNetwork(const std::string& between, const Workload& workload,
                                      const Slo& slo) {
  std::printf("%s between the racks\n", between.c_str());
  Racks racks(between, slo);
  const auto trace = MakeTrace(
      workload, {.requests = absl::GetFlag(FLAGS_requests), .seed = absl::GetFlag(FLAGS_seed)});
  // Handoffs measure the links, one way and the other.
  racks.Take(kByRacks);
  MeasureUnloaded(racks.client(), workload);
  racks.Take({"", {Phase::kDecode, Phase::kPrefill}});
  MeasureUnloaded(racks.client(), workload);
  const planner::PlanTask task = TaskOf(AskCluster(racks.router()), trace, slo);
  const auto plan = planner::SearchPlan(task, false);
  if (!plan.ok()) Die(plan.status().ToString());
  std::printf("  plan: %s; %.2f requests a second\n", ByRack(plan->best.counts).c_str(),
              plan->best.goodput_rps);
  nlohmann::ordered_json json;
  json["between"] = between;
  json["plan"] = ByRack(plan->best.counts);
  json["plan_rps"] = plan->best.goodput_rps;
  std::vector<Placement> placements = {kInRacks, kByRacks};
  const Placement planned = {"the plan", PhasesOf(plan->best.counts)};
  if (planned.phases != kInRacks.phases && planned.phases != kByRacks.phases) {
    placements.push_back(planned);
  }
  for (const Placement& placement : placements) {
    uint64_t simulations = 0;
    const auto simulated = planner::PlacementGoodput(task, CountsOf(placement), 0, simulations);
    if (!simulated.ok()) Die(simulated.status().ToString());
    const auto attained = AttainmentByRate(racks, placement, trace, slo, plan->best.goodput_rps);
    std::printf("  %-26s goodput simulated %.2f, measured %.2f; attainment", placement.name.c_str(),
                *simulated, Goodput(attained));
    for (const auto& [rate, share] : attained)
      std::printf("  %.1f %% at %.2f/s", 100 * share, rate);
    std::printf("\n");
    nlohmann::ordered_json one;
    one["name"] = placement.name;
    one["simulated_rps"] = *simulated;
    one["measured_rps"] = Goodput(attained);
    one["attainment_by_rate"] = attained;
    json["placements"].push_back(one);
  }
  return json;
}

void Main() {
  if (const std::string why = e2e::Netlab::WhyNot(); !why.empty()) Die(why);
  const Workload* workload = FindWorkload(absl::GetFlag(FLAGS_workload));
  if (workload == nullptr) Die("--workload: there are chat, code and summary");
  const std::vector<std::string> rates = absl::GetFlag(FLAGS_between);
  if (rates.empty()) Die("--between: at least one rate");
  Slo slo;
  {
    Racks racks(rates.back(), {});
    racks.Take(kByRacks);
    const Unloaded alone = MeasureUnloaded(racks.client(), *workload);
    slo = {.ttft_s = absl::GetFlag(FLAGS_ttft_slo) * alone.ttft_s,
           .tpot_s = absl::GetFlag(FLAGS_tpot_slo) * alone.tpot_s};
  }
  std::printf("%s; objectives TTFT %.0f ms, TPOT %.2f ms\n", workload->name.c_str(),
              1e3 * slo.ttft_s, 1e3 * slo.tpot_s);
  nlohmann::ordered_json json = nlohmann::ordered_json::array();
  for (const std::string& between : rates) json.push_back(MeasureNetwork(between, *workload, slo));
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
