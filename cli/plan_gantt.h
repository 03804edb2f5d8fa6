// A Gantt strip: when which worker prefilled, decoded, and sent or received KV, as SVG. For the
// report of `tandem plan search`. Pure function, thread-safe.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "scheduler/planner/simulator.h"

namespace tandem::cli {

struct GanttRow {
  /// Index in the simulation.
  uint32_t worker = 0;
  std::string name;
  planner::Phase phase = planner::Phase::kMixed;
};

/// An `<svg>` as wide as 1,000. A row a worker with three lanes: prefill steps, decode steps, and
/// handoffs (sent or received). How dark a place is tells which share of its time the lane was
/// busy, in four steps. REQUIRES: begin_s < end_s.
std::string GanttSvg(const std::string& title, std::span<const GanttRow> rows,
                     const planner::SimulationResult& trace, double begin_s, double end_s);

}  // namespace tandem::cli
