#include "scheduler/planner/plan_curves.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/status_macros.h"
#include "scheduler/planner/placement_goodput.h"

namespace tandem::planner {
namespace {

/// Of the goodput.
constexpr double kRates[] = {0.3, 0.45, 0.6, 0.7, 0.8,  0.9, 0.95,
                             1.0, 1.05, 1.1, 1.2, 1.35, 1.5, 1.7};
constexpr double kScales[] = {0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.4, 1.7, 2.0};
constexpr size_t kMostTraced = 40'000;

/// What a domain does in one of the three plans.
using Chosen = const PlannedPlacement& (*)(const PlannedDomain&);

const PlannedPlacement& Best(const PlannedDomain& domain) { return domain.placement; }
const PlannedPlacement& RunnerUp(const PlannedDomain& domain) {
  return domain.runner_up ? *domain.runner_up : domain.placement;
}
const PlannedPlacement& Colocated(const PlannedDomain& domain) { return domain.colocated; }

/// By domain: the share of all requests that one of its sets gets.
std::vector<double> Shares(const Plan& plan, Chosen chosen) {
  std::vector<double> shares(plan.domains.size(), 0);
  for (const bool by_bound : {false, true}) {
    double sum = 0;
    for (size_t d = 0; d < shares.size(); ++d) {
      const PlannedPlacement& one = chosen(plan.domains[d]);
      shares[d] = by_bound ? one.bound_rps : one.goodput_rps;
      sum += static_cast<double>(plan.domains[d].members.size()) * shares[d];
    }
    if (sum <= 0) continue;
    for (double& share : shares) share /= sum;
    break;
  }
  return shares;
}

/// One simulation: a domain's part of one point.
struct Job {
  const PlannedDomain* domain = nullptr;
  const std::vector<PhaseCounts>* counts = nullptr;
  double rps = 0, scale = 1;
  /// Of all requests, that the domain's sets get together.
  double weight = 0;
  CurvePoint* point = nullptr;
  Attainment attainment;
  bool done = false;
};

absl::Status Simulate(Job& job) {
  PlanTask task = job.domain->task;
  task.simulator.ttft_slo_s *= job.scale;
  task.simulator.tpot_slo_s *= job.scale;
  ASSIGN_OR_RETURN(const SimulationResult result, SimulatePlacement(task, *job.counts, job.rps));
  job.attainment = result.attainment;
  job.done = true;
  return absl::OkStatus();
}

/// Appends the jobs of a point, which must stay where it is.
void Add(const Plan& plan, Chosen chosen, double rps, double scale, CurvePoint& point,
         std::vector<Job>& jobs) {
  const std::vector<double> shares = Shares(plan, chosen);
  for (size_t d = 0; d < shares.size(); ++d) {
    const std::vector<PhaseCounts>& counts = chosen(plan.domains[d]).counts;
    if (shares[d] <= 0 || !Serves(counts)) continue;
    const double weight = static_cast<double>(plan.domains[d].members.size()) * shares[d];
    jobs.push_back({.domain = &plan.domains[d],
                    .counts = &counts,
                    .rps = rps * shares[d],
                    .scale = scale,
                    .weight = weight,
                    .point = &point,
                    .attainment = {}});
  }
}

absl::Status Trace(const Plan& plan, double trace_s, PlanCurves& curves) {
  const auto nodes = [](const PlannedDomain& domain) {
    uint32_t n = 0;
    for (const NodeClass& one : domain.task.classes) n += one.count;
    return n;
  };
  for (size_t d = 1; d < plan.domains.size(); ++d) {
    if (nodes(plan.domains[d]) > nodes(plan.domains[curves.traced_domain])) {
      curves.traced_domain = d;
    }
  }
  const PlannedDomain& domain = plan.domains[curves.traced_domain];
  const PlannedPlacement& placement = domain.placement;
  const double rps = placement.ShownRps();
  PlanTask task = domain.task;
  const auto n = static_cast<double>(task.workload.size());
  const double most = std::max(1.0, std::floor(kMostTraced / n));
  task.workload = Repeated(
      task.workload, static_cast<uint32_t>(std::clamp(std::ceil(trace_s * rps / n), 1.0, most)));
  ASSIGN_OR_RETURN(curves.trace, SimulatePlacement(task, placement.counts, rps, trace_s));
  curves.trace_end_s = std::min(trace_s, curves.trace.end_s);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<PlanCurves> CurvesOf(const Plan& plan, double trace_s,
                                    const std::atomic<bool>& stop) {
  PlanCurves curves;
  curves.scale_rps = plan.best.ShownRps();
  std::vector<std::pair<PlacementCurves*, Chosen>> all = {{&curves.best, &Best},
                                                          {&curves.colocated, &Colocated}};
  if (plan.runner_up) all.push_back({&curves.runner_up, &RunnerUp});
  std::vector<Job> jobs;
  for (const auto& [of, chosen] : all) {
    of->by_rate.resize(std::size(kRates));
    for (size_t i = 0; i < std::size(kRates); ++i) {
      CurvePoint& point = of->by_rate[i];
      point.x = kRates[i] * curves.scale_rps;
      Add(plan, chosen, point.x, 1, point, jobs);
    }
    of->by_scale.resize(std::size(kScales));
    for (size_t i = 0; i < std::size(kScales); ++i) {
      CurvePoint& point = of->by_scale[i];
      point.x = kScales[i];
      Add(plan, chosen, curves.scale_rps, point.x, point, jobs);
    }
  }
  RETURN_IF_ERROR(ForEachInParallel(plan.domains[0].task.threads, jobs.size(), [&](size_t i) {
    return stop ? absl::OkStatus() : Simulate(jobs[i]);
  }));
  std::map<const CurvePoint*, double> weights;
  for (const Job& job : jobs) {
    if (!job.done) continue;
    weights[job.point] += job.weight;
    job.point->attainment.ttft += job.weight * job.attainment.ttft;
    job.point->attainment.tpot += job.weight * job.attainment.tpot;
    job.point->attainment.both += job.weight * job.attainment.both;
  }
  for (const auto& [of, chosen] : all) {
    for (std::vector<CurvePoint>* points : {&of->by_rate, &of->by_scale}) {
      std::vector<CurvePoint> whole;
      for (const CurvePoint& point : *points) {
        if (weights[&point] > 1 - 1e-6) whole.push_back(point);
      }
      *points = std::move(whole);
    }
  }
  if (!stop) RETURN_IF_ERROR(Trace(plan, trace_s, curves));
  return curves;
}

}  // namespace tandem::planner
