#include "cli/plan_report.h"

#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/plan_gantt.h"
#include "cli/plan_topology.h"
#include "cli/plan_words.h"
#include "cli/svg.h"
#include "scheduler/planner/cluster_now.h"
#include "scheduler/planner/placement_goodput.h"
#include "scheduler/planner/plan_use.h"

namespace tandem::cli {
namespace {

using namespace planner;  // NOLINT: this file is about nothing else

/// Rows of a Gantt strip, and lines about single classes.
constexpr size_t kMostRows = 24, kMostClasses = 40;
/// Seconds of the second, closer strip.
constexpr double kCloseUpSeconds = 2;

/// Colours of Okabe and Ito, which colour-blind people can tell apart.
constexpr char kHead[] = R"(<!DOCTYPE html>
<html xmlns="http://www.w3.org/1999/xhtml" lang="en"><head><meta charset="utf-8"/>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/>
<style>
:root{color-scheme:light dark;--back:#fcfcfa;--card:#fff;--text:#1d2227;--soft:#5b6670;--line:#e2e5e8;
--prefill:#d98200;--decode:#0072b2;--mixed:#009e73;--handoff:#b9568f;--target:#c0392b;--link:#9aa5b1}
@media (prefers-color-scheme:dark){:root{--back:#14171a;--card:#1c2126;--text:#e8ebed;--soft:#9fabb6;
--line:#323a42;--prefill:#f0a830;--decode:#56b4e9;--mixed:#2cc295;--handoff:#e08cbb;--target:#ff7b6b;--link:#6d7a87}}
body{margin:0;background:var(--back);color:var(--text);font:15px/1.45 system-ui,sans-serif}
main{max-width:1160px;margin:0 auto;padding:24px 20px 60px}h1{font-size:26px;margin:0 0 4px}
h2{font-size:19px;margin:36px 0 8px}p{margin:4px 0 12px;max-width:80ch}.soft{color:var(--soft)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(165px,1fr));gap:12px;margin:18px 0}
.tile,.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:12px 16px}
.tile b{display:block;font-size:25px;font-weight:600}.tile span{color:var(--soft);font-size:13px}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(440px,1fr));gap:14px}
.card{overflow-x:auto;margin-bottom:14px}svg{display:block;width:100%;height:auto}
.warn{border-left:5px solid var(--target)}
table{border-collapse:collapse;width:100%;font-size:14px}th,td{text-align:left;padding:6px 14px 6px 0;
border-bottom:1px solid var(--line);vertical-align:top}th{color:var(--soft);font-weight:500}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.meter{display:inline-block;width:180px;height:10px;background:var(--line);border-radius:5px;overflow:hidden}
.meter i{display:block;height:10px;background:var(--decode)}
.key{display:inline-block;width:12px;height:12px;border-radius:3px;margin:0 6px 0 16px;vertical-align:-1px}
text{fill:var(--text);font:12px system-ui,sans-serif}text.head{font-size:14px;font-weight:600}
text.label{font-size:13px}text.tick{fill:var(--soft)}text.target-text{fill:var(--target);paint-order:stroke;stroke:var(--card);stroke-width:4px}
.grid{stroke:var(--line)}.target{stroke:var(--target);stroke-dasharray:6 4}
.goodput{stroke:var(--target);stroke-dasharray:2 3}.box{fill:none;stroke:var(--soft)}
.link{stroke:var(--link);fill:none}.arc{stroke:var(--handoff);fill:none;stroke-opacity:.75}
.arc-head{fill:var(--handoff)}.fill.prefill,.key.prefill{fill:var(--prefill);background:var(--prefill)}
.fill.decode,.key.decode{fill:var(--decode);background:var(--decode)}
.fill.mixed,.key.mixed{fill:var(--mixed);background:var(--mixed)}
.key.handoff{background:var(--handoff)}.lane{fill:none}.lane.prefill{stroke:var(--prefill)}
.lane.decode{stroke:var(--decode)}.lane.handoff{stroke:var(--handoff)}
.line{fill:none;stroke-width:2}.both{stroke:var(--decode)}.both.line{stroke-width:3}.both.mark{fill:var(--decode)}
.ttft{stroke:var(--prefill)}.ttft.line{stroke-dasharray:7 4}.ttft.mark{fill:var(--prefill)}
.tpot{stroke:var(--handoff)}.tpot.line{stroke-dasharray:2 4}.tpot.mark{fill:var(--handoff)}
.second{stroke:var(--soft)}.second.mark{fill:var(--soft)}.all-mixed{stroke:var(--mixed)}.all-mixed.mark{fill:var(--mixed)}
</style>
)";

constexpr char kLegend[] =
    "<p class=\"soft\"><i class=\"key prefill\" style=\"margin-left:0\"></i>prefill"
    "<i class=\"key decode\"></i>decode<i class=\"key mixed\"></i>mixed (both)"
    "<i class=\"key handoff\"></i>handoff of KV</p>\n";

std::string Tile(const std::string& value, const std::string& what) {
  return absl::StrCat("<div class=\"tile\"><b>", EscapeXml(value), "</b><span>", EscapeXml(what),
                      "</span></div>\n");
}

std::string Tiles(const PlanReport& report) {
  const Plan& plan = report.plan;
  const double best_rps = plan.best.goodput_rps, mixed_rps = plan.colocated.goodput_rps;
  std::string tiles =
      absl::StrCat("<div class=\"tiles\">\n", Tile(Rps(best_rps), "goodput, requests a second"),
                   Tile(Rps(best_rps / Devices(report.task)), "requests a second and device"),
                   Tile(absl::StrFormat("%.1f %%", 100 * plan.at_goodput.attainment.both),
                        "of the requests meet both objectives there"),
                   Tile(Rps(mixed_rps), "goodput of all workers mixed"));
  if (mixed_rps > 0) {
    absl::StrAppend(&tiles, Tile(absl::StrFormat("%+.0f %%", 100 * (best_rps / mixed_rps - 1)),
                                 "gain over all mixed"));
  }
  return tiles + "</div>\n";
}

std::string Topology(const PlanReport& report) {
  return absl::StrCat(
      "<section id=\"topology\"><h2>Topology</h2>\n<p>Each square is a worker. Grey lines are "
      "links, "
      "wider for more bandwidth; arcs are handovers between groups, wider for more requests.</p>\n",
      kLegend, "<div class=\"card\">", TopologySvg(report.task, report.plan), "</div></section>\n");
}

enum class Part { kBoth, kTtft, kTpot };

ChartSeries Series(std::string name, const char* css, char mark,
                   const std::vector<CurvePoint>& points, Part part = Part::kBoth) {
  ChartSeries series = {.name = std::move(name), .css = css, .mark = mark};
  for (const CurvePoint& point : points) {
    const Attainment& attained = point.attainment;
    series.points.push_back({point.x, part == Part::kTtft   ? attained.ttft
                                      : part == Part::kTpot ? attained.tpot
                                                            : attained.both});
  }
  return series;
}

/// `points` tells which of a placement's curves.
std::string Chart(const PlanReport& report, std::vector<CurvePoint> PlacementCurves::*points,
                  std::string title, std::string x_label, std::vector<ChartMark> marks) {
  const PlanCurves& curves = report.curves;
  std::vector<ChartSeries> series = {
      Series("plan: both objectives", "both", 'o', curves.best.*points),
      Series("plan: TTFT only", "ttft", 't', curves.best.*points, Part::kTtft),
      Series("plan: TPOT only", "tpot", 'd', curves.best.*points, Part::kTpot)};
  if (report.plan.runner_up) {
    series.push_back(Series("runner-up: both", "second", 's', curves.runner_up.*points));
  }
  series.push_back(Series("all mixed: both", "all-mixed", 's', curves.colocated.*points));
  return absl::StrCat("<div class=\"card\">",
                      ChartSvg({.title = std::move(title),
                                .x_label = std::move(x_label),
                                .y_label = "requests that meet the objective, %",
                                .series = series,
                                .target = report.task.attainment_target,
                                .target_label = absl::StrFormat(
                                    "target %.4g %%", 100 * report.task.attainment_target),
                                .marks = std::move(marks)}),
                      "</div>\n");
}

std::string Curves(const PlanReport& report) {
  const Plan& plan = report.plan;
  std::vector<ChartMark> goodput;
  if (plan.best.goodput_rps > 0) {
    goodput.push_back(
        {plan.best.goodput_rps, absl::StrCat("goodput ", Rps(plan.best.goodput_rps))});
  }
  return absl::StrCat(
      "<section id=\"attainment\"><h2>Attainment</h2>\n<p>Left: what more requests do. Right: what "
      "stricter (below 1) and looser objectives do, at ",
      Rps(report.curves.scale_rps), " requests a second. The same requests everywhere.</p>\n",
      "<div class=\"charts\">\n",
      Chart(report, &PlacementCurves::by_rate, "Attainment by rate", "requests a second",
            std::move(goodput)),
      Chart(report, &PlacementCurves::by_scale, "Attainment by scale of both objectives",
            "scale of the TTFT and TPOT objectives, times", {{1, "as planned"}}),
      "</div></section>\n");
}

/// The first workers of each variant and phase, so that all kinds are seen.
std::vector<GanttRow> Rows(const PlannedDomain& domain) {
  const PlacedWorkers placed = WorkersOf(domain.task, domain.placement.counts);
  const std::vector<WorkerVariant> variants = VariantsOf(domain.task);
  std::vector<std::vector<GanttRow>> kinds;
  uint32_t number = 0;  // within its variant
  for (uint32_t w = 0; w < placed.workers.size(); ++w) {
    const uint32_t variant = placed.variant[w];
    const Phase phase = placed.workers[w].phase;
    const bool first = w == 0 || placed.variant[w - 1] != variant;
    number = first ? 1 : number + 1;
    if (first || placed.workers[w - 1].phase != phase) kinds.emplace_back();
    kinds.back().push_back(
        {.worker = w,
         .name = absl::StrCat(VariantName(domain.task, variants[variant]), " ", number),
         .phase = phase});
  }
  std::vector<size_t> taken(kinds.size(), 0);
  for (size_t n = 0, before = SIZE_MAX; n < kMostRows && n != before;) {
    before = n;
    for (size_t k = 0; k < kinds.size() && n < kMostRows; ++k) {
      if (taken[k] == kinds[k].size()) continue;
      ++taken[k];
      ++n;
    }
  }
  std::vector<GanttRow> rows;
  for (size_t k = 0; k < kinds.size(); ++k) {
    rows.insert(rows.end(), kinds[k].begin(),
                kinds[k].begin() + static_cast<std::ptrdiff_t>(taken[k]));
  }
  return rows;
}

std::string Gantt(const PlanReport& report) {
  const PlanCurves& curves = report.curves;
  std::string section = "<section id=\"gantt\"><h2>A simulated minute</h2>\n";
  if (!(curves.trace_end_s > 0)) return section + "<p>Nothing was simulated.</p></section>\n";
  const PlannedDomain& domain = report.plan.domains[curves.traced_domain];
  const std::vector<GanttRow> rows = Rows(domain);
  const size_t workers = WorkersOf(domain.task, domain.placement.counts).workers.size();
  absl::StrAppend(
      &section,
      "<p>Each worker has three lanes: prefill steps, decode steps, and KV that it sends or ",
      "receives (waiting for the rest of a prompt included). Darker is busier. ");
  if (report.plan.domains.size() > 1 || domain.members.size() > 1) {
    absl::StrAppend(&section, "Shown is one of ", domain.members.size(),
                    " equal sets of nodes that hand over to each other alone. ");
  }
  if (rows.size() < workers) {
    absl::StrAppend(&section, "Shown are ", rows.size(), " of its ", workers, " workers. ");
  }
  absl::StrAppend(
      &section, "</p>\n", kLegend, "<div class=\"card\">",
      GanttSvg(absl::StrFormat("The first %.3g s at the plan's goodput", curves.trace_end_s), rows,
               curves.trace, 0, curves.trace_end_s),
      "</div>\n");
  if (curves.trace_end_s > 4 * kCloseUpSeconds) {
    const double begin_s = std::floor(curves.trace_end_s / 2);
    absl::StrAppend(&section, "<div class=\"card\">",
                    GanttSvg(absl::StrFormat("%.3g s of it", kCloseUpSeconds), rows, curves.trace,
                             begin_s, begin_s + kCloseUpSeconds),
                    "</div>\n");
  }
  return section + "</section>\n";
}

std::string PlacementRow(const PlanReport& report, const char* what,
                         const PlannedPlacement& placement) {
  return absl::StrCat("<tr><td>", what, "</td><td>", EscapeXml(InWords(report.task, placement)),
                      "</td><td class=\"n\">", Rps(placement.goodput_rps), "</td><td class=\"n\">",
                      Rps(placement.goodput_rps / Devices(report.task)), "</td><td class=\"n\">",
                      Rps(placement.bound_rps), "</td></tr>\n");
}

std::string Use(const Plan& plan) {
  const PlanUse use = UseOf(plan);
  const std::pair<const char*, double> all[] = {{"prefill", use.prefill},
                                                {"decode", use.decode},
                                                {"links", use.links},
                                                {"KV room", use.kv_room}};
  std::string rows;
  for (const auto& [name, share] : all) {
    absl::StrAppendFormat(
        &rows,
        "<tr><td>%s</td><td><span class=\"meter\"><i style=\"width:%.0f%%\"></i></span>"
        "</td><td class=\"n\">%.0f %%</td></tr>\n",
        name, 100 * share, 100 * share);
  }
  return rows;
}

std::string GainRow(const PlanReport& report, const std::string& what, double rps) {
  const double best_rps = report.plan.best.goodput_rps;
  const std::string gain =
      best_rps > 0 ? absl::StrFormat("%+.0f %%", 100 * (rps / best_rps - 1)) : "";
  return absl::StrCat("<tr><td>", EscapeXml(what), "</td><td class=\"n\">", Rps(rps),
                      "</td><td class=\"n\">", gain, "</td></tr>\n");
}

std::string Tables(const PlanReport& report) {
  const Plan& plan = report.plan;
  const SimulationResult& result = plan.at_goodput;
  std::string html = absl::StrCat(
      "<section id=\"table\"><h2>The plan in figures</h2>\n<div "
      "class=\"card\"><table>\n<tr><th></th>"
      "<th>placement</th><th class=\"n\">goodput, requests/s</th><th class=\"n\">a device</th>"
      "<th class=\"n\">bound</th></tr>\n",
      PlacementRow(report, "plan", plan.best));
  if (plan.runner_up) absl::StrAppend(&html, PlacementRow(report, "runner-up", *plan.runner_up));
  absl::StrAppend(&html, PlacementRow(report, "all mixed", plan.colocated), "</table></div>\n");
  absl::StrAppendFormat(&html,
                        "<p>Predicted at that goodput: %.1f %% of the requests meet both "
                        "objectives (TTFT %.1f %%, TPOT "
                        "%.1f %%); mean wait %.3f s, prefill %.3f s, handoff %.3f s.</p>\n",
                        100 * result.attainment.both, 100 * result.attainment.ttft,
                        100 * result.attainment.tpot, result.queue_s, result.prefill_s,
                        result.handoff_s);
  absl::StrAppend(&html, "<p><b>Bottleneck:</b> ", EscapeXml(Bottleneck(plan)), "</p>\n",
                  "<div class=\"charts\"><div class=\"card\"><table>\n<tr><th>in use</th><th></th>"
                  "<th class=\"n\">share</th></tr>\n",
                  Use(plan),
                  "</table></div>\n<div class=\"card\"><table>\n<tr><th>what would buy</th>",
                  "<th class=\"n\">goodput, requests/s</th><th class=\"n\">gain</th></tr>\n");
  if (plan.with_fast_links_rps > 0) {
    absl::StrAppend(&html,
                    GainRow(report, "all links ten times as fast", plan.with_fast_links_rps));
  }
  for (size_t c = 0; c < plan.one_more.size() && c < kMostClasses; ++c) {
    const Plan::OneMore& one = plan.one_more[c];
    absl::StrAppend(&html, GainRow(report,
                                   absl::StrCat("one more node ", report.task.classes[c].name,
                                                " as ", planner::PhaseWord(one.phase)),
                                   one.goodput_rps));
  }
  absl::StrAppend(&html, "</table></div></div>\n<p class=\"soft\">");
  if (plan.one_more.size() > kMostClasses) {
    absl::StrAppend(&html, plan.one_more.size() - kMostClasses,
                    " more classes of nodes are in the JSON. ");
  }
  absl::StrAppend(&html, plan.simulated, " placements simulated, ", plan.simulations,
                  " simulations. Differences of a few per cent are within the noise of a sample.",
                  "</p></section>\n");
  return html;
}

}  // namespace

std::string PlanReportHtml(const PlanReport& report) {
  const PlanTask& task = report.task;
  std::string html = absl::StrCat(
      kHead, "<title>Plan for ", EscapeXml(report.cluster),
      "</title></head>\n<body><main>\n<h1>Plan for ", EscapeXml(report.cluster),
      "</h1>\n<p class=\"soft\">Workload ", EscapeXml(report.workload),
      absl::StrFormat(
          " (%d requests): %.4g %% of them must have their first token within %.4g s and "
          "every other one within %.4g s on average. %d devices.</p>\n",
          task.workload.size(), 100 * task.attainment_target, task.simulator.ttft_slo_s,
          task.simulator.tpot_slo_s, Devices(task)));
  if (!report.plan.complete) {
    absl::StrAppend(&html,
                    "<p class=\"card warn\">The search was interrupted: this is the best it had ",
                    "found.</p>\n");
  }
  if (report.plan.best.goodput_rps == 0) {
    absl::StrAppend(&html,
                    "<p class=\"card warn\">No placement meets the objectives at any rate that ",
                    "was tried. What follows is simulated at a tenth of the bound.</p>\n");
  }
  absl::StrAppend(&html, Tiles(report), Topology(report), Curves(report), Gantt(report),
                  Tables(report), "</main></body></html>\n");
  return html;
}

}  // namespace tandem::cli
