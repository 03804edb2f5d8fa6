// `tandem plan search`: reads a cluster and a workload, and tells the best phase for each node.
#include "scheduler/planner/plan_search.h"

#include <unistd.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/files.h"
#include "base/status.h"
#include "cli/kv.h"
#include "cli/plan.h"
#include "cli/plan_cluster.h"
#include "cli/plan_report.h"
#include "cli/plan_words.h"
#include "cli/running_cluster.h"
#include "cli/table.h"
#include "scheduler/planner/cluster_now.h"
#include "scheduler/planner/placement_goodput.h"
#include "scheduler/planner/plan_curves.h"
#include "scheduler/planner/plan_use.h"

namespace tandem::cli {
namespace {

using namespace planner;  // NOLINT: this file is about nothing else
using Json = nlohmann::ordered_json;

/// A disaggregated plan that gains less is hardly worth it.
constexpr double kSmallGain = 0.05;
/// Lines about single classes: the JSON has all of them.
constexpr size_t kMostLines = 12;
/// That a report's Gantt strip shows.
constexpr double kTraceSeconds = 60;

struct Settings {
  std::string router, cluster, workload, json, html;
  double ttft_slo_s = 0, tpot_slo_s = 0, attainment = 0.9;
  uint32_t requests = 1000, context = 2048, threads = 0;
  uint64_t seed = 1;
};

/// Where it comes from, for people.
std::string Source(const Settings& settings, const std::string& file) {
  return file.empty() ? absl::StrCat("router ", settings.router) : file;
}

/// A running cluster and its requests go through the form of files, so that a search in what was
/// saved finds the same.
absl::StatusOr<PlanTask> LoadCluster(const Settings& settings) {
  const std::string& file = settings.cluster;
  ASSIGN_OR_RETURN(const std::string yaml,
                   file.empty() ? RunningClusterYaml(settings.router) : ReadWholeFile(file));
  return ParseCluster(yaml, Source(settings, file));
}

absl::StatusOr<Workload> LoadWorkload(const Settings& settings) {
  const std::string& file = settings.workload;
  if (file.empty()) {
    ASSIGN_OR_RETURN(const Workload recent, RunningWorkload(settings.router));
    return ParseWorkload(WorkloadCsv(recent), Source(settings, file));
  }
  if (const auto shape = NamedShape(file); shape.ok()) {
    return Generate({.shape = *shape,
                     .context_tokens = settings.context,
                     .requests = settings.requests,
                     .seed = settings.seed});
  }
  ASSIGN_OR_RETURN(const std::string csv, ReadWholeFile(file));
  return ParseWorkload(csv, file);
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
             "at %s rps   %s a device; attainment %.1f %% (TTFT %.1f %%, TPOT %.1f %%); mean wait "
             "%.3f s, prefill %.3f s, handoff %.3f s\n",
             Rps(plan.best.goodput_rps), Rps(plan.best.goodput_rps / Devices(task)),
             100 * result.attainment.both, 100 * result.attainment.ttft,
             100 * result.attainment.tpot, result.queue_s, result.prefill_s, result.handoff_s)
      << "bottleneck  " << Bottleneck(plan) << "\n"
      << "links x 10  " << Rps(plan.with_fast_links_rps) << " rps\n";
  if (plan.domains.size() > 1 || plan.domains[0].members.size() > 1) {
    for (const PlannedDomain& domain : plan.domains) {
      out << "domain      " << domain.members.size() << " times "
          << InWords(domain.task, domain.placement) << ": " << Rps(domain.placement.goodput_rps)
          << " rps each\n";
    }
  }
  for (size_t c = 0; c < plan.one_more.size() && c < kMostLines; ++c) {
    out << "one more    " << task.classes[c].name << " as "
        << planner::PhaseWord(plan.one_more[c].phase) << ": " << Rps(plan.one_more[c].goodput_rps)
        << " rps\n";
  }
  if (plan.best.goodput_rps < (1 + kSmallGain) * plan.colocated.goodput_rps) {
    out << "Disaggregation gains less than " << 100 * kSmallGain
        << " % here: all mixed is as good.\n";
  }
  out << plan.simulated << " placements simulated";
  if (plan.placements > 0) out << " of " << plan.placements;
  out << ", " << plan.simulations << " simulations\n";
  if (!plan.complete) out << "The search was interrupted: this is the best it had found.\n";
}

Json JsonOf(const PlanTask& task, const PlannedPlacement& placement) {
  const std::vector<WorkerVariant> variants = VariantsOf(task);
  Json nodes = Json::array();
  for (size_t v = 0; v < variants.size(); ++v) {
    const PhaseCounts& counts = placement.counts[v];
    nodes.push_back({{"class", task.classes[variants[v].node_class].name},
                     {"devices", variants[v].devices},
                     {"prefill", counts.prefill},
                     {"decode", counts.decode},
                     {"mixed", counts.mixed}});
  }
  return {{"nodes", std::move(nodes)},
          {"goodput_rps", placement.goodput_rps},
          {"goodput_rps_per_device", placement.goodput_rps / Devices(task)},
          {"bound_rps", placement.bound_rps}};
}

/// Which prefill workers hand over to which decode workers: those of each domain, which are the
/// nodes of `members`' classes, to one another; and how often pairs of variants did when simulated.
Json HandoverOf(const PlanTask& task, const PlannedDomain& domain) {
  const std::vector<WorkerVariant> variants = VariantsOf(domain.task);
  Json json = JsonOf(domain.task, domain.placement);
  for (const std::vector<uint32_t>& member : domain.members) {
    Json classes = Json::array();
    for (const uint32_t c : member) classes.push_back(task.classes[c].name);
    json["members"].push_back(std::move(classes));
  }
  const std::vector<uint32_t> variant = WorkersOf(domain.task, domain.placement.counts).variant;
  std::map<std::pair<uint32_t, uint32_t>, uint64_t> requests;
  for (const auto& [pair, n] : domain.at_goodput.pairs) {
    requests[{variant[pair.first], variant[pair.second]}] += n;
  }
  for (const auto& [pair, n] : requests) {
    json["pairs"].push_back({{"from", VariantName(domain.task, variants[pair.first])},
                             {"to", VariantName(domain.task, variants[pair.second])},
                             {"requests", n}});
  }
  return json;
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
  const PlanUse use = UseOf(plan);
  json["utilisation"] = {{"prefill", use.prefill},
                         {"decode", use.decode},
                         {"links", use.links},
                         {"kv_room", use.kv_room}};
  json["complete"] = plan.complete;
  for (const PlannedDomain& domain : plan.domains) {
    json["handover"].push_back(HandoverOf(task, domain));
  }
  if (plan.runner_up) json["runner_up"] = JsonOf(task, *plan.runner_up);
  for (size_t c = 0; c < plan.one_more.size(); ++c) {
    json["one_more"].push_back({{"class", task.classes[c].name},
                                {"phase", planner::PhaseWord(plan.one_more[c].phase)},
                                {"devices", plan.one_more[c].devices},
                                {"goodput_rps", plan.one_more[c].goodput_rps}});
  }
  return json;
}

/// One line of a terminal, again and again.
void Show(const PlanProgress& now, std::ostream& err) {
  err << "\r\033[K" << now.done << " of " << now.of << " " << now.what;
  if (now.best_rps > 0) err << ", best " << Rps(now.best_rps) << " rps";
  err << std::flush;
}

absl::Status WriteReport(const Settings& settings, const PlanTask& task, const Plan& plan,
                         const std::atomic<bool>& stop) {
  ASSIGN_OR_RETURN(const PlanCurves curves, CurvesOf(plan, kTraceSeconds, stop));
  return WriteWholeFile(settings.html,
                        PlanReportHtml({.task = task,
                                        .plan = plan,
                                        .curves = curves,
                                        .cluster = Source(settings, settings.cluster),
                                        .workload = Source(settings, settings.workload)}));
}

absl::Status Run(const Settings& settings, const std::atomic<bool>& stop,
                 const Terminal& terminal) {
  if (settings.requests < 2 || settings.context < 2) {
    return absl::InvalidArgumentError("--requests and --context must be at least 2");
  }
  ASSIGN_OR_RETURN(PlanTask task, LoadCluster(settings));
  ASSIGN_OR_RETURN(task.workload, LoadWorkload(settings));
  task.simulator.ttft_slo_s = settings.ttft_slo_s;
  task.simulator.tpot_slo_s = settings.tpot_slo_s;
  task.simulator.seed = settings.seed;
  task.attainment_target = settings.attainment;
  task.threads =
      settings.threads > 0 ? settings.threads : std::max(1u, std::thread::hardware_concurrency());
  task.keep_when_stopped = true;
  const bool shows_progress = isatty(STDERR_FILENO) == 1;
  if (shows_progress) task.progress = [&](const PlanProgress& now) { Show(now, terminal.err); };
  const absl::StatusOr<Plan> searched = SearchPlan(task, stop);
  if (shows_progress) terminal.err << "\r\033[K" << std::flush;
  RETURN_IF_ERROR(searched.status());
  const Plan& plan = *searched;
  Print(task, plan, terminal.out);
  if (!settings.json.empty()) {
    // Names may have bytes that are not UTF-8.
    const std::string json =
        JsonOf(task, plan).dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
    RETURN_IF_ERROR(WriteWholeFile(settings.json, json));
  }
  return settings.html.empty() ? absl::OkStatus() : WriteReport(settings, task, plan, stop);
}

}  // namespace

int RunPlanSearch(std::span<char* const> args, const Terminal& terminal) {
  Settings settings = {.router = DefaultRouter(terminal)};
  Settings* const s = &settings;
  const Command command{
      "plan search",
      "",
      "Simulates how a cluster's nodes serve a workload as prefill, decode or mixed workers, and\n"
      "tells the placement with which the most requests a second meet both objectives. Of what no\n"
      "file is given, the cluster or the workload, it asks a running router.",
      {RouterOption(s->router),
       {"cluster", "FILE",
        "Nodes, their speed and links, YAML: docs/plan.md. Default: those that run.",
        ReadText([s](std::string v) { s->cluster = std::move(v); })},
       {"workload", "FILE",
        "Requests as CSV, or chat, code or summarisation. Default: the router's last.",
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
        ReadText([s](std::string v) { s->json = std::move(v); })},
       {"html", "FILE", "Write a report there: topology, attainment, a simulated minute.",
        ReadText([s](std::string v) { s->html = std::move(v); })}}};
  return RunFlagsOnly(
      command, args, terminal,
      [&](const std::atomic<bool>& stop) { return Run(settings, stop, terminal); },
      "tandem: interrupted\n");
}

}  // namespace tandem::cli
