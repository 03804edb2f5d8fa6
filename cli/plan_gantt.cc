#include "cli/plan_gantt.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/svg.h"
#include "scheduler/planner/cluster_now.h"

namespace tandem::cli {
namespace {

constexpr double kWidth = 1000, kLeft = 170, kRight = 12, kTop = 34, kRow = 22, kBottom = 46;
/// Places of a lane, one unit wide each.
constexpr size_t kPlaces = static_cast<size_t>(kWidth - kLeft - kRight);
/// Shades of a lane.
constexpr int kShades = 4;

/// Busy seconds by place.
class Lane {
 public:
  Lane(double begin_s, double end_s)
      : begin_s_(begin_s), per_s_(kPlaces / (end_s - begin_s)), busy_(kPlaces, 0) {}

  /// Overlaps count once or several times; what is more than all of a place counts as all.
  void Add(double begin_s, double end_s) {
    const double from = std::max(0.0, (begin_s - begin_s_) * per_s_);
    const double to = std::min<double>(kPlaces, (end_s - begin_s_) * per_s_);
    for (double at = from; at < to;) {
      const double next = std::min(to, std::floor(at) + 1);
      busy_[static_cast<size_t>(at)] += next - at;
      at = next;
    }
  }

  /// Runs of places with the same shade, a path for each shade.
  void Draw(double y, double height, const char* css, std::string& svg) const {
    std::string paths[kShades];
    for (size_t i = 0; i < kPlaces;) {
      const int shade = Shade(i);
      size_t end = i + 1;
      while (end < kPlaces && Shade(end) == shade) ++end;
      if (shade > 0) {
        absl::StrAppendFormat(&paths[shade - 1], "M%.0f %.1fh%d", kLeft + static_cast<double>(i), y,
                              end - i);
      }
      i = end;
    }
    for (int shade = 0; shade < kShades; ++shade) {
      if (paths[shade].empty()) continue;
      absl::StrAppendFormat(
          &svg,
          "<path d=\"%s\" class=\"lane %s\" stroke-width=\"%.1f\" stroke-opacity=\"%.2f\"/>\n",
          paths[shade], css, height, (shade + 1.0) / kShades);
    }
  }

 private:
  int Shade(size_t place) const {
    return static_cast<int>(std::ceil(kShades * std::min(1.0, busy_[place]) - 0.02));
  }

  double begin_s_, per_s_;
  std::vector<double> busy_;
};

struct Lanes {
  Lane prefill, decode, handoff;
};

}  // namespace

std::string GanttSvg(const std::string& title, std::span<const GanttRow> rows,
                     const planner::SimulationResult& trace, double begin_s, double end_s) {
  std::map<uint32_t, Lanes> lanes;
  const Lane idle(begin_s, end_s);
  for (const GanttRow& row : rows) lanes.insert({row.worker, {idle, idle, idle}});
  for (const planner::SimulatedStep& step : trace.steps) {
    const auto at = lanes.find(step.worker);
    if (at == lanes.end()) continue;
    (step.prefill ? at->second.prefill : at->second.decode).Add(step.begin_s, step.end_s);
  }
  for (const planner::SimulatedHandoff& one : trace.handoffs) {
    for (const uint32_t worker : {one.from, one.to}) {
      const auto at = lanes.find(worker);
      if (at != lanes.end()) at->second.handoff.Add(one.begin_s, one.end_s);
    }
  }
  const double bottom = kTop + kRow * static_cast<double>(rows.size());
  std::string svg = absl::StrFormat(
      "<svg viewBox=\"0 0 %.0f %.0f\" role=\"img\" xmlns=\"http://www.w3.org/2000/svg\">"
      "<title>%s</title>\n",
      kWidth, bottom + kBottom, EscapeXml(title));
  absl::StrAppend(&svg, SvgText(0, 18, "start", "head", title));
  const double per_s = kPlaces / (end_s - begin_s);
  for (const double tick : NiceTicks(begin_s, end_s, 12)) {
    const double x = kLeft + (tick - begin_s) * per_s;
    absl::StrAppend(&svg, SvgLine(x, kTop - 4, x, bottom, "grid"),
                    SvgText(x, bottom + 16, "middle", "tick", absl::StrCat(tick)));
  }
  absl::StrAppend(
      &svg, SvgText(kLeft + kPlaces / 2.0, bottom + 36, "middle", "label", "simulated time, s"));
  for (size_t i = 0; i < rows.size(); ++i) {
    const double y = kTop + kRow * static_cast<double>(i);
    const char* const phase = planner::PhaseWord(rows[i].phase);
    absl::StrAppend(&svg,
                    SvgRect(0, y + 3, 8, kRow - 7, absl::StrCat("fill ", phase).c_str(), 2, phase),
                    SvgText(14, y + 14, "start", "tick", rows[i].name),
                    SvgLine(kLeft, y + kRow - 1, kWidth - kRight, y + kRow - 1, "grid"));
    const Lanes& own = lanes.at(rows[i].worker);
    own.prefill.Draw(y + 4, 6, "prefill", svg);
    own.decode.Draw(y + 11, 6, "decode", svg);
    own.handoff.Draw(y + 17, 4, "handoff", svg);
  }
  return svg + "</svg>\n";
}

}  // namespace tandem::cli
