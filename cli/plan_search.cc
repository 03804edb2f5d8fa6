// `tandem plan search`: reads a cluster and a workload, and tells the best phase for each node.
#include "scheduler/planner/plan_search.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status.h"
#include "cli/files.h"
#include "cli/kv.h"
#include "cli/plan.h"
#include "cli/plan_cluster.h"
#include "cli/table.h"

namespace tandem::cli {
namespace {

using namespace planner;  // NOLINT: this file is about nothing else
using Json = nlohmann::ordered_json;

/// A disaggregated plan that gains less is hardly worth it.
constexpr double kSmallGain = 0.05;

struct Settings {
  std::string cluster, workload, json;
  double ttft_slo_s = 0, tpot_slo_s = 0, attainment = 0.9;
  uint32_t requests = 1000, context = 2048, threads = 0;
  uint64_t seed = 1;
};

absl::StatusOr<Workload> LoadWorkload(const Settings& settings) {
  if (const auto shape = NamedShape(settings.workload); shape.ok()) {
    return Generate({.shape = *shape,
                     .context_tokens = settings.context,
                     .requests = settings.requests,
                     .seed = settings.seed});
  }
  ASSIGN_OR_RETURN(const std::string csv, ReadWholeFile(settings.workload));
  return ParseWorkload(csv, settings.workload);
}

const char* PhaseName(Phase phase) {
  return phase == Phase::kPrefill ? "prefill" : phase == Phase::kDecode ? "decode" : "mixed";
}

std::string Rps(double rps) { return absl::StrFormat("%.3g", rps); }

std::string InWords(const PlanTask& task, const PlannedPlacement& placement) {
  std::string words;
  for (size_t c = 0; c < task.classes.size(); ++c) {
    const PhaseCounts& counts = placement.counts[c];
    const std::pair<uint32_t, const char*> phases[] = {
        {counts.prefill, "prefill"}, {counts.decode, "decode"}, {counts.mixed, "mixed"}};
    for (const auto& [n, name] : phases) {
      if (n == 0) continue;
      absl::StrAppend(&words, words.empty() ? "" : ", ", n, " ", name, " (", task.classes[c].name,
                      ")");
    }
  }
  return words;
}

/// Which phase is busiest, by the mean share of its workers' time.
std::string Bottleneck(const Plan& plan) {
  const SimulationResult& result = plan.at_goodput;
  double prefill_s = 0, decode_s = 0;
  for (const WorkerUse& use : result.workers) {
    prefill_s += use.prefill_busy_s;
    decode_s += use.decode_busy_s;
  }
  const double missed_ttft = 1 - result.attainment.ttft, missed_tpot = 1 - result.attainment.tpot;
  return absl::StrFormat(
      "%s: %.1f %% of the requests miss TTFT, %.1f %% TPOT; %.0f %% of the busy time is prefill",
      missed_ttft >= missed_tpot ? "prefill" : "decode", 100 * missed_ttft, 100 * missed_tpot,
      100 * prefill_s / std::max(1e-9, prefill_s + decode_s));
}

void Print(const PlanTask& task, const Plan& plan, std::ostream& out) {
  std::vector<Row> rows = {{"", "PLACEMENT", "GOODPUT RPS", "BOUND RPS"}};
  const auto row = [&](const char* what, const PlannedPlacement& placement) {
    rows.push_back(
        {what, InWords(task, placement), Rps(placement.goodput_rps), Rps(placement.bound_rps)});
  };
  row("best", plan.best);
  if (plan.runner_up) row("runner-up", *plan.runner_up);
  row("all mixed", plan.colocated);
  out << Table(rows) << "\n";
  if (plan.best.goodput_rps == 0) {
    out << "No placement meets the objectives at any rate that was tried.\n";
    return;
  }
  const SimulationResult& result = plan.at_goodput;
  out << absl::StrFormat(
             "at %s rps   attainment %.1f %%; mean wait %.3f s, prefill %.3f s, handoff %.3f s\n",
             Rps(plan.best.goodput_rps), 100 * result.attainment.both, result.queue_s,
             result.prefill_s, result.handoff_s)
      << "bottleneck  " << Bottleneck(plan) << "\n"
      << "links x 10  " << Rps(plan.with_fast_links_rps) << " rps\n";
  for (size_t c = 0; c < plan.one_more.size(); ++c) {
    out << "one more    " << task.classes[c].name << " as " << PhaseName(plan.one_more[c].phase)
        << ": " << Rps(plan.one_more[c].goodput_rps) << " rps\n";
  }
  if (plan.best.goodput_rps < (1 + kSmallGain) * plan.colocated.goodput_rps) {
    out << "Disaggregation gains less than " << 100 * kSmallGain
        << " % here: all mixed is as good.\n";
  }
  out << plan.simulated << " of " << plan.placements << " placements simulated, "
      << plan.simulations << " simulations\n";
}

Json JsonOf(const PlanTask& task, const PlannedPlacement& placement) {
  Json nodes = Json::array();
  for (size_t c = 0; c < task.classes.size(); ++c) {
    const PhaseCounts& counts = placement.counts[c];
    nodes.push_back({{"class", task.classes[c].name},
                     {"prefill", counts.prefill},
                     {"decode", counts.decode},
                     {"mixed", counts.mixed}});
  }
  return {{"nodes", std::move(nodes)},
          {"goodput_rps", placement.goodput_rps},
          {"bound_rps", placement.bound_rps}};
}

Json JsonOf(const PlanTask& task, const Plan& plan) {
  const SimulationResult& result = plan.at_goodput;
  Json json = {{"best", JsonOf(task, plan.best)},
               {"all_mixed", JsonOf(task, plan.colocated)},
               {"attainment",
                {{"ttft", result.attainment.ttft},
                 {"tpot", result.attainment.tpot},
                 {"both", result.attainment.both}}},
               {"mean_queue_s", result.queue_s},
               {"mean_prefill_s", result.prefill_s},
               {"mean_handoff_s", result.handoff_s},
               {"with_links_x10_rps", plan.with_fast_links_rps},
               {"placements", plan.placements},
               {"simulated", plan.simulated},
               {"simulations", plan.simulations}};
  if (plan.runner_up) json["runner_up"] = JsonOf(task, *plan.runner_up);
  for (size_t c = 0; c < plan.one_more.size(); ++c) {
    json["one_more"].push_back({{"class", task.classes[c].name},
                                {"phase", PhaseName(plan.one_more[c].phase)},
                                {"goodput_rps", plan.one_more[c].goodput_rps}});
  }
  return json;
}

absl::Status Run(const Settings& settings, const std::atomic<bool>& stop,
                 const Terminal& terminal) {
  if (settings.cluster.empty()) return absl::InvalidArgumentError("--cluster is missing");
  if (settings.workload.empty()) return absl::InvalidArgumentError("--workload is missing");
  if (settings.requests < 2 || settings.context < 2) {
    return absl::InvalidArgumentError("--requests and --context must be at least 2");
  }
  ASSIGN_OR_RETURN(const std::string yaml, ReadWholeFile(settings.cluster));
  ASSIGN_OR_RETURN(PlanTask task, ParseCluster(yaml, settings.cluster));
  ASSIGN_OR_RETURN(task.workload, LoadWorkload(settings));
  task.simulator.ttft_slo_s = settings.ttft_slo_s;
  task.simulator.tpot_slo_s = settings.tpot_slo_s;
  task.simulator.seed = settings.seed;
  task.attainment_target = settings.attainment;
  task.threads =
      settings.threads > 0 ? settings.threads : std::max(1u, std::thread::hardware_concurrency());
  ASSIGN_OR_RETURN(const Plan plan, SearchPlan(task, stop));
  Print(task, plan, terminal.out);
  if (settings.json.empty()) return absl::OkStatus();
  return WriteWholeFile(settings.json, JsonOf(task, plan).dump(1) + "\n");
}

}  // namespace

int RunPlanSearch(std::span<char* const> args, const Terminal& terminal) {
  Settings settings;
  Settings* const s = &settings;
  const Command command{
      "plan search",
      "",
      "Simulates how a cluster's nodes serve a workload as prefill, decode or mixed workers, and\n"
      "tells the placement with which the most requests a second meet both objectives.",
      {{"cluster", "FILE", "The nodes, their speed and links, YAML: docs/plan.md.",
        ReadText([s](std::string v) { s->cluster = std::move(v); })},
       {"workload", "FILE", "Requests as CSV, or chat, code or summarisation.",
        ReadText([s](std::string v) { s->workload = std::move(v); })},
       {"ttft-slo", "SECONDS", "Objective: time to first token.",
        ReadDouble([s](double v) { s->ttft_slo_s = v; })},
       {"tpot-slo", "SECONDS", "Objective: time per output token.",
        ReadDouble([s](double v) { s->tpot_slo_s = v; })},
       {"attainment", "SHARE", "Of requests that must meet both. Default 0.9.",
        ReadDouble([s](double v) { s->attainment = v; })},
       {"requests", "N", "Of a generated workload. Default 1000.",
        ReadUint32([s](uint32_t v) { s->requests = v; })},
       {"context", "N", "Tokens, to which a generated workload is scaled. Default 2048.",
        ReadUint32([s](uint32_t v) { s->context = v; })},
       {"seed", "N", "Of workload and simulation. Default 1.",
        ReadUint64([s](uint64_t v) { s->seed = v; })},
       {"threads", "N", "Default: all cores.", ReadUint32([s](uint32_t v) { s->threads = v; })},
       {"json", "FILE", "Write the plan there.",
        ReadText([s](std::string v) { s->json = std::move(v); })}}};
  return RunFlagsOnly(
      command, args, terminal,
      [&](const std::atomic<bool>& stop) { return Run(settings, stop, terminal); },
      "tandem: interrupted\n");
}

}  // namespace tandem::cli
