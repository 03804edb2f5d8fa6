// How `tandem plan search` names workers, placements and what limits a plan, in its table, its JSON
// and its report. Pure functions, thread-safe.
#pragma once

#include <cstdint>
#include <string>

#include "scheduler/planner/plan_search.h"

namespace tandem::cli {

/// A rate, three digits.
std::string Rps(double rps);
/// "big@rack1", or "big@rack1 x2" for workers of two devices where there is a choice.
std::string VariantName(const planner::PlanTask& task, const planner::WorkerVariant& variant);
/// "2 prefill (big@rack1), 3 decode (small@rack2)".
std::string InWords(const planner::PlanTask& task, const planner::PlannedPlacement& placement);
/// Of all nodes.
uint32_t Devices(const planner::PlanTask& task);
/// What is busiest, and which objective is missed.
std::string Bottleneck(const planner::Plan& plan);

}  // namespace tandem::cli
