#include "scheduler/planner/plan_search.h"

#include <algorithm>
#include <cmath>
#include <thread>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace tandem::planner {
namespace {

constexpr double kMostPlacements = 200'000;
/// Rates of the grid: kLowestRps × kStep^k.
constexpr double kLowestRps = 1e-3, kStep = 1.02;
/// Of the grid below the bound: a thousandth of it is as good as nothing.
constexpr int kGridSteps = 350;
/// Placements that are simulated with one threshold: not the number of threads, which must not
/// change the result.
constexpr size_t kBatch = 8;

double RateOf(int k) { return kLowestRps * std::pow(kStep, k); }
/// The highest k with a rate of at most `rps`, at least -1.
int GridBelow(double rps) {
  if (!(rps >= kLowestRps)) return -1;
  return static_cast<int>(std::floor(std::log(rps / kLowestRps) / std::log(kStep) + 1e-9));
}

// ------------------------------------------------------------------ bound

/// The least work that the requests can cost, of which only the target's share must be done.
struct LeastWork {
  double requests = 0, prefill_tokens = 0, decode_tokens = 0;
};

double CheapestSum(std::vector<double> costs, double share) {
  std::sort(costs.begin(), costs.end());
  const auto n = static_cast<size_t>(std::ceil(share * static_cast<double>(costs.size()) - 1e-9));
  double sum = 0;
  for (size_t i = 0; i < n; ++i) sum += costs[i];
  return sum;
}

LeastWork WorkOf(const PlanTask& task) {
  std::vector<double> prefill, decode;
  for (const WorkloadRequest& request : task.workload) {
    const uint32_t cached = std::min(request.cached_tokens, request.prompt_tokens - 1);
    prefill.push_back(request.prompt_tokens - cached);
    decode.push_back(request.output_tokens - 1);
  }
  return {.requests = static_cast<double>(task.workload.size()),
          .prefill_tokens = CheapestSum(prefill, task.attainment_target),
          .decode_tokens = CheapestSum(decode, task.attainment_target)};
}

/// Tokens a second that a worker can do at best, of either kind.
struct TopSpeed {
  double prefill = 0, decode = 0;
};

TopSpeed TopSpeedOf(const WorkerSpeed& speed) {
  const auto& [prefill, decode, saturation, p, d] = speed.latency;
  double least_s = std::numeric_limits<double>::infinity();
  for (uint32_t n = 1; n <= speed.max_sequences; ++n) {
    least_s = std::min(least_s, decode.StepSeconds(n, n) / n);
  }
  return {.prefill = 1 / (prefill.per_token_s + prefill.base_s / std::max(1u, saturation)),
          .decode = 1 / least_s};
}

/// Whether mixed workers, each for `time_s` and that divided as well as can be, do what the others
/// leave.
bool CanDo(const std::vector<std::pair<TopSpeed, uint32_t>>& mixed, double time_s,
           double prefill_tokens, double decode_tokens) {
  for (const auto& [speed, count] : mixed) {
    const double most = count * time_s * speed.prefill;
    const double share = std::min(1.0, std::max(0.0, prefill_tokens) / most);
    prefill_tokens -= share * most;
    decode_tokens -= (1 - share) * count * time_s * speed.decode;
  }
  // What rounding leaves is nothing.
  return prefill_tokens <= 1e-6 && decode_tokens <= 1e-6;
}

double BoundOf(const std::vector<TopSpeed>& speeds, const LeastWork& work,
               const std::vector<PhaseCounts>& counts) {
  double prefill = 0, decode = 0;
  std::vector<std::pair<TopSpeed, uint32_t>> mixed;
  for (size_t c = 0; c < counts.size(); ++c) {
    prefill += counts[c].prefill * speeds[c].prefill;
    decode += counts[c].decode * speeds[c].decode;
    if (counts[c].mixed > 0) mixed.push_back({speeds[c], counts[c].mixed});
  }
  // Those first that are better at prefill than at decode.
  std::sort(mixed.begin(), mixed.end(), [](const auto& a, const auto& b) {
    return a.first.prefill * b.first.decode > b.first.prefill * a.first.decode;
  });
  double low = kLowestRps, high = 1e9;
  for (int i = 0; i < 60; ++i) {
    const double rate = std::sqrt(low * high), time_s = work.requests / rate;
    const bool can = CanDo(mixed, time_s, work.prefill_tokens - prefill * time_s,
                           work.decode_tokens - decode * time_s);
    (can ? low : high) = rate;
  }
  return high;
}

// ------------------------------------------------------------------ one placement

struct Cluster {
  std::vector<SimulatedWorker> workers;
  LinkTable links;
};

Cluster ClusterOf(const PlanTask& task, const std::vector<PhaseCounts>& counts) {
  std::vector<SimulatedWorker> workers;
  std::vector<uint32_t> group;
  for (size_t c = 0; c < counts.size(); ++c) {
    const NodeClass& nodes = task.classes[c];
    const std::pair<Phase, uint32_t> phases[] = {{Phase::kPrefill, counts[c].prefill},
                                                 {Phase::kDecode, counts[c].decode},
                                                 {Phase::kMixed, counts[c].mixed}};
    for (const auto& [phase, n] : phases) {
      for (uint32_t i = 0; i < n; ++i) {
        workers.push_back(
            {.node = static_cast<uint32_t>(group.size()), .phase = phase, .speed = nodes.speed});
        group.push_back(nodes.group);
      }
    }
  }
  // The table takes its size from the highest group in use; one that is not has no traffic.
  std::vector<uint32_t> used(group);
  std::sort(used.begin(), used.end());
  used.erase(std::unique(used.begin(), used.end()), used.end());
  std::vector<Link> links;
  for (const uint32_t from : used) {
    for (const uint32_t to : used) links.push_back(task.links[from * task.groups + to]);
  }
  for (uint32_t& one : group) {
    one = static_cast<uint32_t>(std::lower_bound(used.begin(), used.end(), one) - used.begin());
  }
  return {.workers = std::move(workers), .links = LinkTable(std::move(group), std::move(links))};
}

absl::StatusOr<SimulationResult> SimulateAt(const PlanTask& task, const Cluster& cluster,
                                            double rps) {
  SimulatorOptions options = task.simulator;
  options.failures.clear();
  options.keep_steps_until_s = 0;
  return Simulate(cluster.workers, cluster.links, AtRate(task.workload, rps), options);
}

double Bound(const PlanTask& task, const std::vector<PhaseCounts>& counts) {
  std::vector<TopSpeed> speeds;
  for (const NodeClass& nodes : task.classes) speeds.push_back(TopSpeedOf(nodes.speed));
  return BoundOf(speeds, WorkOf(task), counts);
}

absl::StatusOr<double> GoodputUpTo(const PlanTask& task, const std::vector<PhaseCounts>& counts,
                                   double bound_rps, double at_least_rps, uint64_t& simulations) {
  const Cluster cluster = ClusterOf(task, counts);
  const auto passes = [&](int k) -> absl::StatusOr<bool> {
    ++simulations;
    ASSIGN_OR_RETURN(const SimulationResult result, SimulateAt(task, cluster, RateOf(k)));
    return result.attainment.both >= task.attainment_target;
  };
  // Always the same steps, whatever the least: what is not given up has the goodput that it has
  // alone, even where noise makes attainment rise with the rate.
  const int least = GridBelow(at_least_rps);
  int high = GridBelow(bound_rps) + 1;
  int low = std::max(-1, high - kGridSteps);
  bool found = false;
  while (high - low > 1) {
    if (high <= least) return 0;
    const int middle = low + (high - low) / 2;
    ASSIGN_OR_RETURN(const bool good, passes(middle));
    (good ? low : high) = middle;
    found |= good;
  }
  return found ? RateOf(low) : 0;
}

// ------------------------------------------------------------------ all placements

absl::Status Check(const PlanTask& task) {
  if (Describe(task.workload).rate_rps <= 0) {
    return absl::InvalidArgumentError("the workload has fewer than two arrivals in time");
  }
  const SimulatorOptions& options = task.simulator;
  if (!(options.ttft_slo_s > 0) || !(options.tpot_slo_s > 0) || !(task.attainment_target > 0) ||
      task.attainment_target > 1) {
    return absl::InvalidArgumentError(
        "objectives must be positive, and the attainment target above 0 and at most 1");
  }
  if (task.links.size() != size_t{task.groups} * task.groups) {
    return absl::InvalidArgumentError(
        absl::StrCat("there are ", task.links.size(), " links for ", task.groups, " groups"));
  }
  for (const NodeClass& nodes : task.classes) {
    if (nodes.group >= task.groups) {
      return absl::InvalidArgumentError(absl::StrCat(nodes.name, " is in no group"));
    }
  }
  return absl::OkStatus();
}

bool AllMixed(const PlannedPlacement& placement) {
  return std::all_of(placement.counts.begin(), placement.counts.end(),
                     [](const PhaseCounts& c) { return c.prefill + c.decode == 0; });
}

/// Simulates a batch of placements in parallel; `goodput[i]` belongs to `batch[i]`.
absl::Status SimulateBatch(const PlanTask& task, std::span<PlannedPlacement> batch,
                           double at_least_rps, uint64_t& simulations) {
  std::vector<absl::Status> statuses(batch.size());
  std::vector<uint64_t> counts(batch.size(), 0);
  std::atomic<size_t> next = 0;
  const auto work = [&] {
    for (size_t i = next++; i < batch.size(); i = next++) {
      const auto goodput =
          GoodputUpTo(task, batch[i].counts, batch[i].bound_rps, at_least_rps, counts[i]);
      statuses[i] = goodput.status();
      if (goodput.ok()) batch[i].goodput_rps = *goodput;
    }
  };
  std::vector<std::thread> threads;
  for (uint32_t t = 1; t < std::min<size_t>(task.threads, batch.size()); ++t) {
    threads.emplace_back(work);
  }
  work();
  for (std::thread& thread : threads) thread.join();
  for (size_t i = 0; i < batch.size(); ++i) {
    simulations += counts[i];
    RETURN_IF_ERROR(statuses[i]);
  }
  return absl::OkStatus();
}

/// Keeps the two best; of equals, what came first.
void Offer(const PlannedPlacement& placement, Plan& plan) {
  if (placement.goodput_rps > plan.best.goodput_rps) {
    plan.runner_up = std::exchange(plan.best, placement);
  } else if (!plan.runner_up || placement.goodput_rps > plan.runner_up->goodput_rps) {
    plan.runner_up = placement;
  }
}

/// What faster links and one more node would buy.
absl::Status FindSensitivities(const PlanTask& task, Plan& plan) {
  PlanTask fast = task;
  for (Link& link : fast.links) link.bytes_per_s *= 10;
  ASSIGN_OR_RETURN(plan.with_fast_links_rps,
                   PlacementGoodput(fast, plan.best.counts, 0, plan.simulations));
  for (size_t c = 0; c < task.classes.size(); ++c) {
    Plan::OneMore& gain = plan.one_more.emplace_back();
    for (const Phase phase : {Phase::kPrefill, Phase::kDecode, Phase::kMixed}) {
      std::vector<PhaseCounts> counts = plan.best.counts;
      PhaseCounts& own = counts[c];
      ++(phase == Phase::kPrefill ? own.prefill : phase == Phase::kDecode ? own.decode : own.mixed);
      ASSIGN_OR_RETURN(const double goodput_rps,
                       PlacementGoodput(task, counts, gain.goodput_rps, plan.simulations));
      if (goodput_rps > gain.goodput_rps) gain = {.phase = phase, .goodput_rps = goodput_rps};
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<PlannedPlacement>> EnumeratePlacements(const PlanTask& task) {
  RETURN_IF_ERROR(Check(task));
  double n = task.classes.empty() ? 0 : 1;
  for (const NodeClass& nodes : task.classes) n *= (nodes.count + 2.0) * (nodes.count + 1.0) / 2;
  if (n == 0 || n > kMostPlacements) {
    return absl::InvalidArgumentError(
        absl::StrCat("there are ", n, " placements; the search takes 1 to ", kMostPlacements,
                     ": plan for a part of the nodes, or tell fewer kinds and groups apart"));
  }
  std::vector<std::vector<PhaseCounts>> all = {{}};
  for (const NodeClass& nodes : task.classes) {
    std::vector<std::vector<PhaseCounts>> longer;
    for (const std::vector<PhaseCounts>& counts : all) {
      for (uint32_t p = 0; p <= nodes.count; ++p) {
        for (uint32_t d = 0; p + d <= nodes.count; ++d) {
          longer.push_back(counts);
          longer.back().push_back({.prefill = p, .decode = d, .mixed = nodes.count - p - d});
        }
      }
    }
    all = std::move(longer);
  }
  const LeastWork work = WorkOf(task);
  std::vector<TopSpeed> speeds;
  for (const NodeClass& nodes : task.classes) speeds.push_back(TopSpeedOf(nodes.speed));
  std::vector<PlannedPlacement> placements;
  for (std::vector<PhaseCounts>& counts : all) {
    bool prefills = false, decodes = false;
    for (const PhaseCounts& one : counts) {
      prefills |= one.prefill + one.mixed > 0;
      decodes |= one.decode + one.mixed > 0;
    }
    if (!prefills || !decodes) continue;
    const double bound_rps = BoundOf(speeds, work, counts);
    placements.push_back({.counts = std::move(counts), .bound_rps = bound_rps});
  }
  return placements;
}

absl::StatusOr<double> PlacementGoodput(const PlanTask& task,
                                        const std::vector<PhaseCounts>& counts, double at_least_rps,
                                        uint64_t& simulations) {
  RETURN_IF_ERROR(Check(task));
  return GoodputUpTo(task, counts, Bound(task, counts), at_least_rps, simulations);
}

absl::StatusOr<Plan> SearchPlan(const PlanTask& task, const std::atomic<bool>& stop) {
  ASSIGN_OR_RETURN(std::vector<PlannedPlacement> placements, EnumeratePlacements(task));
  Plan plan;
  plan.placements = placements.size();
  // All mixed first, then the most promising.
  std::stable_sort(placements.begin(), placements.end(), [](const auto& a, const auto& b) {
    const bool a_mixed = AllMixed(a), b_mixed = AllMixed(b);
    return a_mixed != b_mixed ? a_mixed : a.bound_rps > b.bound_rps;
  });
  const std::span<PlannedPlacement> all(placements);
  RETURN_IF_ERROR(SimulateBatch(task, all.first(1), 0, plan.simulations));
  plan.best = plan.colocated = placements[0];
  plan.simulated = 1;
  for (size_t i = 1; i < placements.size(); i += kBatch) {
    if (stop) return absl::CancelledError("the search was interrupted");
    const double threshold = plan.runner_up ? plan.runner_up->goodput_rps * kStep : 0;
    // They are in falling order: none of the rest can do more.
    if (placements[i].bound_rps < threshold) break;
    const auto batch = all.subspan(i, std::min(kBatch, placements.size() - i));
    RETURN_IF_ERROR(SimulateBatch(task, batch, threshold, plan.simulations));
    plan.simulated += batch.size();
    for (const PlannedPlacement& placement : batch) Offer(placement, plan);
  }
  const double rps = plan.best.goodput_rps > 0 ? plan.best.goodput_rps : plan.best.bound_rps / 10;
  ASSIGN_OR_RETURN(plan.at_goodput, SimulateAt(task, ClusterOf(task, plan.best.counts), rps));
  RETURN_IF_ERROR(FindSensitivities(task, plan));
  return plan;
}

}  // namespace tandem::planner
