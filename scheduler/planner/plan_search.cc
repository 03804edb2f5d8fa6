#include "scheduler/planner/plan_search.h"

#include <algorithm>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "scheduler/planner/domain_search.h"
#include "scheduler/planner/local_search.h"
#include "scheduler/planner/placement_goodput.h"

namespace tandem::planner {
namespace {

constexpr double kMostPlacements = 200'000;
/// Beyond, simulating all of them at once takes too long: see domain_search.h.
constexpr uint32_t kMostWorkers = 64;
/// Clusters of so many workers are simulated as a whole once their domains are planned, with
/// samples of as many times the requests as there are groups, this many times at most;
/// SearchLocally's work.
constexpr uint32_t kMostWholeWorkers = 128, kMostRepeats = 4;
constexpr double kWholeWork = 2e6;
/// Of climbing from a plan whose links have become faster.
constexpr double kWhatIfWork = 3e5;
/// GoodputFrom's, for what more links or nodes would buy.
constexpr int kWhatIfPatience = 3;
/// Placements that are simulated with one threshold: not the number of threads, which must not
/// change the result.
constexpr size_t kBatch = 8;

bool AllMixed(const PlannedPlacement& placement) {
  return std::all_of(placement.counts.begin(), placement.counts.end(),
                     [](const PhaseCounts& c) { return c.prefill + c.decode == 0; });
}

/// Ways to divide `nodes` nodes of one class among its variants from `v` on, and their workers
/// among the phases.
double CountWays(std::span<const WorkerVariant> variants, uint32_t nodes) {
  const auto ways = [&](uint32_t n) {
    const double workers = static_cast<double>(n) * variants[0].per_node;
    return (workers + 2) * (workers + 1) / 2;
  };
  if (variants.size() == 1) return ways(nodes);
  double sum = 0;
  for (uint32_t n = 0; n <= nodes; ++n) sum += ways(n) * CountWays(variants.subspan(1), nodes - n);
  return sum;
}

/// Appends all of them to the counts given.
void Divide(std::span<const WorkerVariant> variants, uint32_t nodes,
            std::vector<PhaseCounts>& counts, std::vector<std::vector<PhaseCounts>>& all) {
  if (variants.empty()) return all.push_back(counts);
  for (uint32_t n = variants.size() == 1 ? nodes : 0; n <= nodes; ++n) {
    const uint32_t workers = n * variants[0].per_node;
    for (uint32_t p = 0; p <= workers; ++p) {
      for (uint32_t d = 0; p + d <= workers; ++d) {
        counts.push_back({.prefill = p, .decode = d, .mixed = workers - p - d});
        Divide(variants.subspan(1), nodes - n, counts, all);
        counts.pop_back();
      }
    }
  }
}

/// The variants of a class, among all.
std::span<const WorkerVariant> VariantsOfClass(std::span<const WorkerVariant> variants,
                                               uint32_t node_class) {
  size_t begin = 0;
  while (variants[begin].node_class != node_class) ++begin;
  size_t end = begin;
  while (end < variants.size() && variants[end].node_class == node_class) ++end;
  return variants.subspan(begin, end - begin);
}

double CountPlacements(const PlanTask& task, std::span<const WorkerVariant> variants) {
  double n = task.classes.empty() ? 0 : 1;
  for (uint32_t c = 0; c < task.classes.size(); ++c) {
    n *= CountWays(VariantsOfClass(variants, c), std::min(task.classes[c].count, 10'000u));
  }
  return n;
}

uint32_t MostWorkers(const PlanTask& task, std::span<const WorkerVariant> variants) {
  uint32_t most = 0;
  for (uint32_t c = 0; c < task.classes.size(); ++c) {
    uint32_t per_node = 1;
    for (const WorkerVariant& one : VariantsOfClass(variants, c)) {
      per_node = std::max(per_node, one.per_node);
    }
    most += task.classes[c].count * per_node;
  }
  return most;
}

/// Simulates a batch of placements in parallel.
absl::Status SimulateBatch(const PlanTask& task, std::span<PlannedPlacement> batch,
                           double at_least_rps, uint64_t& simulations) {
  std::vector<uint64_t> counts(batch.size(), 0);
  RETURN_IF_ERROR(ForEachInParallel(task.threads, batch.size(), [&](size_t i) -> absl::Status {
    ASSIGN_OR_RETURN(batch[i].goodput_rps, GoodputUpTo(task, batch[i].counts, batch[i].bound_rps,
                                                       at_least_rps, counts[i]));
    return absl::OkStatus();
  }));
  for (const uint64_t n : counts) simulations += n;
  return absl::OkStatus();
}

/// All nodes hand over to each other, in the plan's placements.
void TakeForOneDomain(const PlanTask& task, Plan& plan) {
  PlannedDomain domain = {.task = task,
                          .placement = plan.best,
                          .runner_up = plan.runner_up,
                          .colocated = plan.colocated,
                          .members = {{}},
                          .at_goodput = {}};
  for (uint32_t c = 0; c < task.classes.size(); ++c) domain.members[0].push_back(c);
  plan.domains = {std::move(domain)};
}

/// Branch and bound over all placements.
absl::StatusOr<Plan> SearchAll(const PlanTask& task, const std::atomic<bool>& stop) {
  ASSIGN_OR_RETURN(std::vector<PlannedPlacement> placements, EnumeratePlacements(task));
  Plan plan;
  plan.placements = placements.size();
  // All mixed first, then the most promising.
  std::stable_sort(placements.begin(), placements.end(), [](const auto& a, const auto& b) {
    const bool a_mixed = AllMixed(a), b_mixed = AllMixed(b);
    return a_mixed != b_mixed ? a_mixed : a.bound_rps > b.bound_rps;
  });
  const std::span<PlannedPlacement> all(placements);
  const auto n_mixed = static_cast<size_t>(std::count_if(all.begin(), all.end(), AllMixed));
  RETURN_IF_ERROR(SimulateBatch(task, all.first(n_mixed), 0, plan.simulations));
  plan.best = placements[0];
  for (const PlannedPlacement& mixed : all.subspan(1, n_mixed - 1)) {
    KeepTwoBest(mixed, plan.best, plan.runner_up);
  }
  plan.colocated = plan.best;
  plan.simulated = n_mixed;
  for (size_t i = n_mixed; i < placements.size(); i += kBatch) {
    if (stop && !task.keep_when_stopped) {
      return absl::CancelledError("the search was interrupted");
    }
    const double threshold_rps =
        plan.runner_up ? RateOf(GridBelow(plan.runner_up->goodput_rps) + 1) : 0;
    // They are in falling order: none of the rest can do more.
    if (placements[i].bound_rps < threshold_rps) break;
    if (stop) {
      plan.complete = false;
      break;
    }
    const auto batch = all.subspan(i, std::min(kBatch, placements.size() - i));
    RETURN_IF_ERROR(SimulateBatch(task, batch, threshold_rps, plan.simulations));
    plan.simulated += batch.size();
    for (const PlannedPlacement& placement : batch) {
      KeepTwoBest(placement, plan.best, plan.runner_up);
    }
    if (task.progress) {
      task.progress({.what = "placements",
                     .done = i + batch.size(),
                     .of = placements.size(),
                     .best_rps = plan.best.goodput_rps});
    }
  }
  TakeForOneDomain(task, plan);
  return plan;
}

/// Takes all nodes for one domain, as the daemon's dispatcher does, and climbs on from the domains'
/// plan, all mixed and splits over the whole.
absl::Status Polish(const PlanTask& task, const std::atomic<bool>& stop, Plan& plan) {
  std::vector<char> used(task.groups, 0);
  for (const NodeClass& nodes : task.classes) used[nodes.group] |= nodes.count > 0;
  const auto groups = static_cast<uint32_t>(std::count(used.begin(), used.end(), 1));
  PlanTask whole = task;
  whole.workload = Repeated(task.workload, std::min(groups, kMostRepeats));
  ASSIGN_OR_RETURN(LocalOptimum found, SearchLocally(whole, {plan.best.counts}, stop, kWholeWork));
  plan.simulated += found.simulated;
  plan.simulations += found.simulations;
  plan.best = std::move(found.best);
  plan.runner_up = std::move(found.runner_up);
  plan.colocated = std::move(found.colocated);
  TakeForOneDomain(whole, plan);
  return absl::OkStatus();
}

/// Simulates every kind of domain at its goodput.
absl::Status SimulateDomains(Plan& plan) {
  std::vector<PlannedDomain>& domains = plan.domains;
  RETURN_IF_ERROR(
      ForEachInParallel(domains[0].task.threads, domains.size(), [&](size_t i) -> absl::Status {
        const PlannedPlacement& placement = domains[i].placement;
        ASSIGN_OR_RETURN(domains[i].at_goodput, SimulatePlacement(domains[i].task, placement.counts,
                                                                  placement.ShownRps()));
        return absl::OkStatus();
      }));
  if (domains.size() == 1 && domains[0].members.size() == 1) {
    plan.at_goodput = domains[0].at_goodput;
    return absl::OkStatus();
  }
  SimulationResult& sum = plan.at_goodput;
  double weight = 0;
  for (const PlannedDomain& domain : domains) {
    weight += static_cast<double>(domain.members.size()) * domain.placement.goodput_rps;
  }
  for (const PlannedDomain& domain : domains) {
    const double rps = static_cast<double>(domain.members.size()) * domain.placement.goodput_rps;
    const double share = weight > 0 ? rps / weight : 1.0 / static_cast<double>(domains.size());
    const SimulationResult& one = domain.at_goodput;
    sum.attainment.ttft += share * one.attainment.ttft;
    sum.attainment.tpot += share * one.attainment.tpot;
    sum.attainment.both += share * one.attainment.both;
    sum.queue_s += share * one.queue_s;
    sum.prefill_s += share * one.prefill_s;
    sum.handoff_s += share * one.handoff_s;
    sum.end_s = std::max(sum.end_s, one.end_s);
  }
  return absl::OkStatus();
}

/// A variant and a phase in which one more node is tried.
struct WhatIf {
  size_t variant = 0;
  Phase phase = Phase::kMixed;
  double goodput_rps = 0;
  uint64_t simulations = 0;
};

/// By class of the domain: the first one that must gain the same by another node.
std::vector<uint32_t> EqualClasses(const PlannedDomain& domain,
                                   const std::vector<WorkerVariant>& variants) {
  const std::vector<uint32_t> kinds = GroupKinds(domain.task);
  std::vector<std::vector<uint32_t>> classes(domain.task.groups);
  std::vector<std::vector<PhaseCounts>> counts(domain.task.groups);
  std::vector<uint32_t> equal;
  for (uint32_t c = 0; c < domain.task.classes.size(); ++c) {
    classes[domain.task.classes[c].group].push_back(c);
    equal.push_back(c);
  }
  for (size_t v = 0; v < variants.size(); ++v) {
    counts[domain.task.classes[variants[v].node_class].group].push_back(domain.placement.counts[v]);
  }
  for (uint32_t group = 0; group < domain.task.groups; ++group) {
    for (uint32_t before = 0; before < group; ++before) {
      if (kinds[before] != kinds[group] || counts[before] != counts[group]) continue;
      for (size_t i = 0; i < classes[group].size(); ++i)
        equal[classes[group][i]] = classes[before][i];
      break;
    }
  }
  return equal;
}

/// What one more node of each of the domain's classes would do for the whole plan.
absl::Status FindOneMore(const PlannedDomain& domain, const std::atomic<bool>& stop, Plan& plan) {
  const std::vector<WorkerVariant> variants = VariantsOf(domain.task);
  const std::vector<uint32_t> equal = EqualClasses(domain, variants);
  const PlacementBound bound(domain.task);
  std::vector<WhatIf> tries;
  for (size_t v = 0; v < variants.size(); ++v) {
    if (equal[variants[v].node_class] != variants[v].node_class) continue;
    for (const Phase phase : kPhases) tries.push_back({.variant = v, .phase = phase});
  }
  RETURN_IF_ERROR(
      ForEachInParallel(domain.task.threads, tries.size(), [&](size_t i) -> absl::Status {
        if (stop) return absl::OkStatus();  // the caller forgets all of them
        WhatIf& one = tries[i];
        std::vector<PhaseCounts> counts = domain.placement.counts;
        counts[one.variant].of(one.phase) += variants[one.variant].per_node;
        ASSIGN_OR_RETURN(one.goodput_rps, GoodputFrom(domain.task, counts, bound.Rps(counts),
                                                      domain.placement.goodput_rps, one.simulations,
                                                      kWhatIfPatience));
        return absl::OkStatus();
      }));
  for (const WhatIf& one : tries) {
    plan.simulations += one.simulations;
    const double rps = plan.best.goodput_rps - domain.placement.goodput_rps + one.goodput_rps;
    const uint32_t node_class = variants[one.variant].node_class;
    for (uint32_t c = 0; c < equal.size(); ++c) {
      if (equal[c] != node_class) continue;
      for (const std::vector<uint32_t>& member : domain.members) {
        Plan::OneMore& gain = plan.one_more[member[c]];
        if (rps < gain.goodput_rps) continue;
        gain = {.phase = one.phase, .devices = variants[one.variant].devices, .goodput_rps = rps};
      }
    }
  }
  return absl::OkStatus();
}

/// What faster links and one more node would buy.
absl::Status FindSensitivities(const PlanTask& task, const std::atomic<bool>& stop, Plan& plan) {
  plan.one_more.assign(task.classes.size(), {.goodput_rps = plan.best.goodput_rps});
  plan.with_fast_links_rps = plan.best.goodput_rps;
  for (const PlannedDomain& domain : plan.domains) {
    PlanTask fast = domain.task;
    for (Link& link : fast.links) link.bytes_per_s *= 10;
    PlannedPlacement now = domain.placement;
    now.bound_rps = PlacementBound(fast).Rps(now.counts);
    ASSIGN_OR_RETURN(now.goodput_rps,
                     GoodputFrom(fast, now.counts, now.bound_rps, domain.placement.goodput_rps,
                                 plan.simulations, kWhatIfPatience));
    // Other placements may be better then.
    ASSIGN_OR_RETURN(const LocalOptimum then, ClimbFrom(fast, now, kWhatIfWork, stop));
    plan.simulations += then.simulations;
    plan.with_fast_links_rps += static_cast<double>(domain.members.size()) *
                                (then.best.goodput_rps - domain.placement.goodput_rps);
    if (!stop) RETURN_IF_ERROR(FindOneMore(domain, stop, plan));
    if (stop) {
      plan.one_more.clear();
      break;
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<PlannedPlacement>> EnumeratePlacements(const PlanTask& task) {
  RETURN_IF_ERROR(CheckTask(task));
  const std::vector<WorkerVariant> variants = VariantsOf(task);
  const double n = CountPlacements(task, variants);
  if (n == 0 || n > kMostPlacements) {
    return absl::InvalidArgumentError(absl::StrCat("there are ", n, " placements; all of 1 to ",
                                                   kMostPlacements, " can be looked at"));
  }
  std::vector<std::vector<PhaseCounts>> all = {{}};
  for (uint32_t c = 0; c < task.classes.size(); ++c) {
    std::vector<std::vector<PhaseCounts>> longer;
    for (std::vector<PhaseCounts>& counts : all) {
      Divide(VariantsOfClass(variants, c), task.classes[c].count, counts, longer);
    }
    all = std::move(longer);
  }
  const PlacementBound bound(task);
  std::vector<PlannedPlacement> placements;
  for (std::vector<PhaseCounts>& counts : all) {
    if (!Serves(counts)) continue;
    const double bound_rps = bound.Rps(counts);
    placements.push_back({.counts = std::move(counts), .bound_rps = bound_rps});
  }
  return placements;
}

absl::StatusOr<Plan> SearchPlan(const PlanTask& task, const std::atomic<bool>& stop) {
  RETURN_IF_ERROR(CheckTask(task));
  const std::vector<WorkerVariant> variants = VariantsOf(task);
  const uint32_t most = MostWorkers(task, variants);
  if (most == 0) return absl::InvalidArgumentError("there is no node to plan for");
  const bool small = most <= kMostWorkers && CountPlacements(task, variants) <= kMostPlacements;
  ASSIGN_OR_RETURN(Plan plan, small ? SearchAll(task, stop) : SearchDomains(task, stop));
  if (!small && most <= kMostWholeWorkers && !stop) RETURN_IF_ERROR(Polish(task, stop, plan));
  RETURN_IF_ERROR(SimulateDomains(plan));
  if (!stop) RETURN_IF_ERROR(FindSensitivities(task, stop, plan));
  plan.complete = plan.complete && !stop;
  return plan;
}

}  // namespace tandem::planner
