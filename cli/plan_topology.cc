#include "cli/plan_topology.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "cli/plan_words.h"
#include "cli/svg.h"
#include "scheduler/planner/cluster_now.h"
#include "scheduler/planner/placement_goodput.h"

namespace tandem::cli {
namespace {

using namespace planner;  // NOLINT: this file is about nothing else

constexpr double kWidth = 1000, kGap = 28, kMostBoxWidth = 486;
constexpr size_t kMostBoxes = 5;
/// More workers of a kind than this are a bar, not a square each.
constexpr uint32_t kMostSquares = 48;
constexpr double kSquare = 12, kPitch = 15;

/// The workers of a kind in a group.
struct Row {
  std::string name;
  PhaseCounts counts;
  bool operator==(const Row&) const = default;
};

/// Groups that look the same.
struct Box {
  std::vector<uint32_t> groups;
  std::vector<Row> rows;
  double x = 0, width = 0;
  double centre() const { return x + width / 2; }
};

/// Shares of the requests, by the box in which they are prefilled and decoded.
struct Flows {
  /// From box × boxes + to, between different workers; of those the ones within one group.
  std::vector<double> between;
  std::vector<double> within_group;
  /// That stay on their worker.
  double stay = 0;
};

std::string GroupName(const PlanTask& task, uint32_t group) {
  return group < task.group_names.size() ? task.group_names[group] : absl::StrCat("group ", group);
}

std::vector<Box> Boxes(const PlanTask& task, const Plan& plan) {
  const std::vector<WorkerVariant> variants = VariantsOf(task);
  std::vector<Box> boxes;
  for (uint32_t group = 0; group < task.groups; ++group) {
    Box box;
    box.groups = {group};
    for (size_t v = 0; v < variants.size(); ++v) {
      const NodeClass& nodes = task.classes[variants[v].node_class];
      if (nodes.group != group || plan.best.counts[v].workers() == 0) continue;
      std::string name(absl::StripSuffix(nodes.name, absl::StrCat("@", GroupName(task, group))));
      if (!nodes.widths.empty()) absl::StrAppend(&name, ", ", variants[v].devices, " devices each");
      box.rows.push_back({.name = std::move(name), .counts = plan.best.counts[v]});
    }
    if (box.rows.empty()) continue;
    const auto same = std::find_if(boxes.begin(), boxes.end(),
                                   [&](const Box& other) { return other.rows == box.rows; });
    if (same == boxes.end()) {
      boxes.push_back(std::move(box));
    } else {
      same->groups.push_back(group);
    }
  }
  return boxes;
}

Flows FlowsOf(const PlanTask& task, const Plan& plan, const std::vector<Box>& boxes) {
  std::vector<size_t> box_of(task.groups, 0);
  for (size_t b = 0; b < boxes.size(); ++b) {
    for (const uint32_t group : boxes[b].groups) box_of[group] = b;
  }
  Flows flows = {.between = std::vector<double>(boxes.size() * boxes.size(), 0),
                 .within_group = std::vector<double>(boxes.size(), 0)};
  double sum = 0;
  for (const PlannedDomain& domain : plan.domains) {
    const std::vector<WorkerVariant> variants = VariantsOf(domain.task);
    const std::vector<uint32_t> variant = WorkersOf(domain.task, domain.placement.counts).variant;
    double requests = 0;
    for (const auto& [pair, n] : domain.at_goodput.pairs) requests += static_cast<double>(n);
    // Each set's requests are in proportion to its goodput.
    const double each = requests > 0 ? std::max(domain.placement.goodput_rps, 1e-9) / requests : 0;
    for (const std::vector<uint32_t>& member : domain.members) {
      const auto group_of = [&](uint32_t worker) {
        return task.classes[member[variants[variant[worker]].node_class]].group;
      };
      for (const auto& [pair, n] : domain.at_goodput.pairs) {
        const double share = each * static_cast<double>(n);
        sum += share;
        if (pair.first == pair.second) {
          flows.stay += share;
          continue;
        }
        const uint32_t from = group_of(pair.first), to = group_of(pair.second);
        flows.between[box_of[from] * boxes.size() + box_of[to]] += share;
        if (from == to) flows.within_group[box_of[from]] += share;
      }
    }
  }
  const double scale = sum > 0 ? 1 / sum : 0;
  for (double& one : flows.between) one *= scale;
  for (double& one : flows.within_group) one *= scale;
  flows.stay *= scale;
  return flows;
}

std::string Percent(double share) {
  return share < 0.0995 ? absl::StrFormat("%.1f %%", 100 * share)
                        : absl::StrFormat("%.0f %%", 100 * share);
}

/// Wider by two units for each factor of ten from 1 Mbit/s on.
double LinkWidth(const Link& link) {
  return std::clamp(1 + 2 * std::log10(std::max(1.0, link.bytes_per_s * 8 / 1e6)), 1.0, 12.0);
}

std::string LinkLine(double x1, double y1, double x2, double y2, const Link& link) {
  return absl::StrFormat(
      "<path d=\"M%.1f %.1fL%.1f %.1f\" class=\"link\" "
      "stroke-width=\"%.1f\"><title>%s</title></path>\n",
      x1, y1, x2, y2, LinkWidth(link), EscapeXml(LinkName(link)));
}

/// As many squares as workers, or a bar; returns its height.
double DrawWorkers(const Row& row, double x, double y, double width, std::string& svg) {
  const std::pair<uint32_t, const char*> phases[] = {
      {row.counts.prefill, "prefill"}, {row.counts.decode, "decode"}, {row.counts.mixed, "mixed"}};
  const uint32_t n = row.counts.workers();
  if (n > kMostSquares) {
    double at = x;
    for (const auto& [count, name] : phases) {
      if (count == 0) continue;
      const double part = width * count / n;
      absl::StrAppend(&svg, SvgRect(at, y, part, kSquare, absl::StrCat("fill ", name).c_str(), 0,
                                    absl::StrCat(count, " ", name)));
      at += part;
    }
    return kPitch;
  }
  const auto columns = std::max(1u, static_cast<uint32_t>(width / kPitch));
  uint32_t i = 0;
  for (const auto& [count, name] : phases) {
    for (uint32_t k = 0; k < count; ++k, ++i) {
      absl::StrAppend(&svg, SvgRect(x + kPitch * (i % columns), y + kPitch * (i / columns), kSquare,
                                    kSquare, absl::StrCat("fill ", name).c_str(), 2, name));
    }
  }
  return kPitch * ((n + columns - 1) / columns);
}

/// Draws a box's inside from `y` on and returns where it ends. `own`, `across`: shares of the
/// requests handed over within each of its groups, and between them.
double DrawBox(const PlanTask& task, const Box& box, double own, double across, double y,
               std::string& svg) {
  const double x = box.x + 14, width = box.width - 28;
  const size_t n = box.groups.size();
  const std::string title = n == 1 ? GroupName(task, box.groups[0])
                                   : absl::StrCat(n, " times as ", GroupName(task, box.groups[0]));
  absl::StrAppend(&svg, SvgText(x, y + 22, "start", "head", title));
  y += 34;
  for (const Row& row : box.rows) {
    absl::StrAppend(&svg, SvgText(x, y + 11, "start", "label", row.name),
                    SvgText(x, y + 26, "start", "tick", planner::Describe({row.counts})));
    y += 34 + DrawWorkers(row, x, y + 33, width, svg) + 8;
  }
  const Link& within = task.links[box.groups[0] * task.groups + box.groups[0]];
  absl::StrAppend(
      &svg, LinkLine(x, y + 6, x + 26, y + 6, within),
      SvgText(x + 34, y + 10, "start", "tick", absl::StrCat("within: ", LinkName(within))));
  y += 20;
  const auto share = [&](double part, const char* where) {
    if (part <= 0) return;
    absl::StrAppend(&svg,
                    SvgText(x, y + 12, "start", "tick",
                            absl::StrCat(Percent(part), " of all requests handed over ", where)));
    y += 17;
  };
  share(own, n == 1 ? "here" : "within these groups");
  share(across, "between these groups");
  return y + 10;
}

void DrawArc(const Box& from, const Box& to, double share, double top, std::string& svg) {
  const bool right = to.x > from.x;
  // There and back do not cover each other.
  const double x1 = from.centre() + (right ? 10 : -10), x2 = to.centre() + (right ? -10 : 10);
  const double rise = std::min(70.0, 26 + std::abs(x2 - x1) / 8) * (right ? 1 : 0.55);
  absl::StrAppendFormat(&svg,
                        "<path d=\"M%.1f %.1fC%.1f %.1f %.1f %.1f %.1f %.1f\" class=\"arc\" "
                        "stroke-width=\"%.1f\" marker-end=\"url(#head)\"/>\n",
                        x1, top, x1, top - rise, x2, top - rise, x2, top - 6, 1.5 + 9 * share);
  absl::StrAppend(&svg, SvgText((x1 + x2) / 2, top - 0.75 * rise - 7 - 5 * share, "middle", "tick",
                                absl::StrCat(Percent(share), right ? " →" : " ←")));
}

/// What joins the groups, below the boxes.
double DrawBetween(const PlanTask& task, const std::vector<Box>& boxes, double y,
                   std::string& svg) {
  if (task.groups < 2) return y;
  const Link* slowest = nullptr;
  const Link* fastest = nullptr;
  for (uint32_t from = 0; from < task.groups; ++from) {
    for (uint32_t to = 0; to < task.groups; ++to) {
      const Link& link = task.links[from * task.groups + to];
      if (from == to) continue;
      if (!slowest || link.bytes_per_s < slowest->bytes_per_s) slowest = &link;
      if (!fastest || link.bytes_per_s > fastest->bytes_per_s) fastest = &link;
    }
  }
  for (const Box& box : boxes) {
    const Link* widest = nullptr;
    for (uint32_t to = 0; to < task.groups; ++to) {
      const Link& link = task.links[box.groups[0] * task.groups + to];
      if (to == box.groups[0]) continue;
      if (!widest || link.bytes_per_s > widest->bytes_per_s) widest = &link;
    }
    absl::StrAppend(&svg, LinkLine(box.centre(), y, box.centre(), y + 26, *widest));
  }
  const double begin = boxes.front().centre() - 14, end = boxes.back().centre() + 14;
  absl::StrAppend(&svg, LinkLine(begin, y + 26, end, y + 26, *fastest));
  std::string words = absl::StrCat("between groups: ", LinkName(*fastest));
  if (slowest->bytes_per_s < fastest->bytes_per_s) {
    absl::StrAppend(&words, " down to ", LinkName(*slowest));
  }
  absl::StrAppend(&svg, SvgText((begin + end) / 2, y + 50, "middle", "tick", words));
  return y + 58;
}

}  // namespace

std::string LinkName(const planner::Link& link) {
  const double bits = link.bytes_per_s * 8;
  const std::string speed = bits >= 1e9   ? absl::StrFormat("%.3g Gbit/s", bits / 1e9)
                            : bits >= 1e6 ? absl::StrFormat("%.3g Mbit/s", bits / 1e6)
                                          : absl::StrFormat("%.3g kbit/s", bits / 1e3);
  return absl::StrFormat("%s, %.3g ms", speed, 1e3 * link.rtt_s);
}

std::string TopologySvg(const planner::PlanTask& task, const planner::Plan& plan) {
  std::vector<Box> boxes = Boxes(task, plan);
  const Flows flows = FlowsOf(task, plan, boxes);
  const size_t all = boxes.size();
  size_t unseen = 0;
  for (size_t b = kMostBoxes; b < all; ++b) unseen += boxes[b].groups.size();
  if (all > kMostBoxes) boxes.resize(kMostBoxes);
  const auto n = static_cast<double>(boxes.size());
  const double width = std::min(kMostBoxWidth, (kWidth - kGap * (n - 1)) / n);
  std::string arcs, insides, frames, links;
  for (size_t b = 0; b < boxes.size(); ++b) {
    boxes[b].width = width;
    boxes[b].x = static_cast<double>(b) * (width + kGap);
  }
  bool any_arc = false;
  for (size_t a = 0; a < boxes.size(); ++a) {
    for (size_t b = 0; b < boxes.size(); ++b) any_arc |= a != b && flows.between[a * all + b] > 0;
  }
  const double top = any_arc ? 96 : 8;
  double bottom = top;
  for (size_t b = 0; b < boxes.size(); ++b) {
    const double own = flows.within_group[b], both = flows.between[b * all + b];
    bottom =
        std::max(bottom, DrawBox(task, boxes[b], own, std::max(0.0, both - own), top, insides));
  }
  for (const Box& box : boxes) {
    absl::StrAppend(&frames, SvgRect(box.x + 1, top, box.width - 2, bottom - top, "box", 8));
  }
  for (size_t a = 0; a < boxes.size(); ++a) {
    for (size_t b = 0; b < boxes.size(); ++b) {
      const double share = flows.between[a * all + b];
      if (a != b && share > 0) DrawArc(boxes[a], boxes[b], share, top, arcs);
    }
  }
  double end = DrawBetween(task, boxes, bottom, links);
  const auto note = [&](const std::string& text) {
    absl::StrAppend(&links, SvgText(2, end + 18, "start", "tick", text));
    end += 20;
  };
  if (flows.stay > 0) {
    note(absl::StrCat(Percent(flows.stay),
                      " of all requests stay on the mixed worker that begins them."));
  }
  if (unseen > 0) note(absl::StrCat("Not drawn: ", unseen, " more groups, in other phases."));
  return absl::StrCat(
      absl::StrFormat("<svg viewBox=\"0 0 %.0f %.0f\" role=\"img\" "
                      "xmlns=\"http://www.w3.org/2000/svg\"><title>Groups, workers, links and "
                      "handovers</title>\n",
                      kWidth, end + 8),
      "<defs><marker id=\"head\" viewBox=\"0 0 8 8\" refX=\"6\" refY=\"4\" markerWidth=\"9\" "
      "markerHeight=\"9\" markerUnits=\"userSpaceOnUse\" orient=\"auto\"><path d=\"M0 0L8 4L0 8z\" "
      "class=\"arc-head\"/></marker></defs>\n",
      links, frames, insides, arcs, "</svg>\n");
}

}  // namespace tandem::cli
