// The report of `tandem plan search --html`: one HTML page, well-formed XML, without scripts and
// without anything from elsewhere; light or dark as the browser wishes. Pure function, thread-safe.
#pragma once

#include <string>

#include "scheduler/planner/plan_curves.h"
#include "scheduler/planner/plan_search.h"

namespace tandem::cli {

struct PlanReport {
  const planner::PlanTask& task;
  const planner::Plan& plan;
  const planner::PlanCurves& curves;
  /// Names of the cluster's file and the workload, as they were given.
  std::string cluster, workload;
};

/// Sections: the plan in figures, "topology", "attainment", "gantt" and "table". All text of the
/// outside is escaped.
std::string PlanReportHtml(const PlanReport& report);

}  // namespace tandem::cli
