#include "scheduler/planner/placement_goodput.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace tandem::planner {
namespace {

/// Rates of the grid: kLowestRps × kStep^k.
constexpr double kLowestRps = 1e-3, kStep = 1.02;
/// Of the grid below the bound: a thousandth of it is as good as nothing.
constexpr int kGridSteps = 350;

double CheapestSum(std::vector<double> costs, double share) {
  std::sort(costs.begin(), costs.end());
  const auto n = static_cast<size_t>(std::ceil(share * static_cast<double>(costs.size()) - 1e-9));
  double sum = 0;
  for (size_t i = 0; i < n; ++i) sum += costs[i];
  return sum;
}

}  // namespace

double RateOf(int k) { return kLowestRps * std::pow(kStep, k); }

int GridBelow(double rps) {
  if (!(rps >= kLowestRps)) return -1;
  return static_cast<int>(std::floor(std::log(rps / kLowestRps) / std::log(kStep) + 1e-9));
}

absl::Status CheckTask(const PlanTask& task) {
  const double rate_rps = Describe(task.workload).rate_rps;
  if (rate_rps <= 0) {
    return absl::InvalidArgumentError("the workload has fewer than two arrivals in time");
  }
  // Arrivals so close together could not be told apart at another rate.
  if (rate_rps > 1e9) {
    return absl::InvalidArgumentError("the workload has more than 1e9 requests a second");
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
    for (const WorkerWidth& width : nodes.widths) {
      if (width.devices == 0 || nodes.devices % width.devices != 0) {
        return absl::InvalidArgumentError(absl::StrCat(nodes.name, ": a width of ", width.devices,
                                                       " does not divide the node's ",
                                                       nodes.devices, " devices"));
      }
    }
  }
  return absl::OkStatus();
}

std::vector<WorkerVariant> VariantsOf(const PlanTask& task) {
  std::vector<WorkerVariant> variants;
  for (uint32_t c = 0; c < task.classes.size(); ++c) {
    const NodeClass& nodes = task.classes[c];
    if (nodes.widths.empty()) {
      variants.push_back({.node_class = c, .devices = nodes.devices, .speed = nodes.speed});
    }
    for (const WorkerWidth& width : nodes.widths) {
      variants.push_back({.node_class = c,
                          .devices = width.devices,
                          .per_node = nodes.devices / width.devices,
                          .speed = width.speed});
    }
  }
  return variants;
}

// ------------------------------------------------------------------ bound

PlacementBound::PlacementBound(const PlanTask& task) {
  for (const WorkerVariant& variant : VariantsOf(task)) {
    speeds_.push_back(TopSpeedOf(variant.speed));
  }
  std::vector<double> prefill, decode;
  for (const WorkloadRequest& request : task.workload) {
    const uint32_t cached = std::min(request.cached_tokens, request.prompt_tokens - 1);
    prefill.push_back(request.prompt_tokens - cached);
    decode.push_back(request.output_tokens - 1);
  }
  work_ = {.requests = static_cast<double>(task.workload.size()),
           .prefill_tokens = CheapestSum(prefill, task.attainment_target),
           .decode_tokens = CheapestSum(decode, task.attainment_target)};
}

PlacementBound::TopSpeed PlacementBound::TopSpeedOf(const WorkerSpeed& speed) {
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
bool PlacementBound::CanDo(const std::vector<std::pair<TopSpeed, uint32_t>>& mixed, double time_s,
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

double PlacementBound::Rps(const std::vector<PhaseCounts>& counts) const {
  double prefill = 0, decode = 0;
  std::vector<std::pair<TopSpeed, uint32_t>> mixed;
  for (size_t c = 0; c < counts.size(); ++c) {
    prefill += counts[c].prefill * speeds_[c].prefill;
    decode += counts[c].decode * speeds_[c].decode;
    if (counts[c].mixed > 0) mixed.push_back({speeds_[c], counts[c].mixed});
  }
  // Those first that are better at prefill than at decode.
  std::sort(mixed.begin(), mixed.end(), [](const auto& a, const auto& b) {
    return a.first.prefill * b.first.decode > b.first.prefill * a.first.decode;
  });
  double low = kLowestRps, high = 1e9;
  for (int i = 0; i < 60; ++i) {
    const double rate = std::sqrt(low * high), time_s = work_.requests / rate;
    const bool can = CanDo(mixed, time_s, work_.prefill_tokens - prefill * time_s,
                           work_.decode_tokens - decode * time_s);
    (can ? low : high) = rate;
  }
  return high;
}

// ------------------------------------------------------------------ one placement

void KeepTwoBest(const PlannedPlacement& placement, PlannedPlacement& best,
                 std::optional<PlannedPlacement>& runner_up) {
  if (placement.goodput_rps > best.goodput_rps) {
    runner_up = std::exchange(best, placement);
  } else if (!runner_up || placement.goodput_rps > runner_up->goodput_rps) {
    runner_up = placement;
  }
}

bool Serves(const std::vector<PhaseCounts>& counts) {
  bool prefills = false, decodes = false;
  for (const PhaseCounts& one : counts) {
    prefills |= one.prefill + one.mixed > 0;
    decodes |= one.decode + one.mixed > 0;
  }
  return prefills && decodes;
}

PlacedWorkers WorkersOf(const PlanTask& task, const std::vector<PhaseCounts>& counts) {
  const std::vector<WorkerVariant> variants = VariantsOf(task);
  std::vector<SimulatedWorker> workers;
  std::vector<uint32_t> variant_of, group;
  for (uint32_t v = 0; v < variants.size(); ++v) {
    const std::pair<Phase, uint32_t> phases[] = {{Phase::kPrefill, counts[v].prefill},
                                                 {Phase::kDecode, counts[v].decode},
                                                 {Phase::kMixed, counts[v].mixed}};
    // Dealt out over the nodes, so that the phases of a variant share as many nodes as they can.
    const auto first = static_cast<uint32_t>(group.size());
    const uint32_t nodes = std::max(1u, counts[v].workers() / variants[v].per_node);
    uint32_t dealt = 0;
    for (const auto& [phase, n] : phases) {
      for (uint32_t i = 0; i < n; ++i) {
        workers.push_back(
            {.node = first + dealt++ % nodes, .phase = phase, .speed = variants[v].speed});
        variant_of.push_back(v);
      }
    }
    if (dealt > 0) group.resize(first + nodes, task.classes[variants[v].node_class].group);
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
  return {.workers = std::move(workers),
          .variant = std::move(variant_of),
          .links = LinkTable(std::move(group), std::move(links), task.local_link)};
}

absl::StatusOr<SimulationResult> SimulatePlacement(const PlanTask& task,
                                                   const std::vector<PhaseCounts>& counts,
                                                   double rps, double keep_steps_until_s) {
  const PlacedWorkers placed = WorkersOf(task, counts);
  SimulatorOptions options = task.simulator;
  options.failures.clear();
  options.keep_steps_until_s = keep_steps_until_s;
  return Simulate(placed.workers, placed.links, AtRate(task.workload, rps), options);
}

absl::StatusOr<double> GoodputUpTo(const PlanTask& task, const std::vector<PhaseCounts>& counts,
                                   double bound_rps, double at_least_rps, uint64_t& simulations) {
  const auto passes = [&](int k) -> absl::StatusOr<bool> {
    ++simulations;
    ASSIGN_OR_RETURN(const SimulationResult result, SimulatePlacement(task, counts, RateOf(k)));
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

absl::StatusOr<double> GoodputFrom(const PlanTask& task, const std::vector<PhaseCounts>& counts,
                                   double bound_rps, double from_rps, uint64_t& simulations,
                                   int patience) {
  const int from = GridBelow(from_rps);
  int low = from, high = GridBelow(bound_rps) + 1;
  for (int step = 1; high - low > 1; step *= 2) {
    const int k = std::min(low + step, low + (high - low) / 2);
    ++simulations;
    ASSIGN_OR_RETURN(const SimulationResult result, SimulatePlacement(task, counts, RateOf(k)));
    if (result.attainment.both >= task.attainment_target) {
      low = k;
    } else if (low > from || --patience <= 0 || step >= (high - low) / 2) {
      patience = 0;  // there is no larger step, so the next one would be this one again
      high = k;
      step = 1;
    }
  }
  return low == from ? from_rps : RateOf(low);
}

absl::Status ForEachInParallel(uint32_t threads, size_t n,
                               const std::function<absl::Status(size_t)>& work) {
  std::vector<absl::Status> statuses(n);
  std::atomic<size_t> next = 0;
  const auto run = [&] {
    for (size_t i = next++; i < n; i = next++) statuses[i] = work(i);
  };
  std::vector<std::thread> others;
  for (size_t t = 1; t < std::min<size_t>(threads, n); ++t) others.emplace_back(run);
  run();
  for (std::thread& thread : others) thread.join();
  for (absl::Status& status : statuses) RETURN_IF_ERROR(status);
  return absl::OkStatus();
}

absl::StatusOr<double> PlacementGoodput(const PlanTask& task,
                                        const std::vector<PhaseCounts>& counts, double at_least_rps,
                                        uint64_t& simulations) {
  RETURN_IF_ERROR(CheckTask(task));
  return GoodputUpTo(task, counts, PlacementBound(task).Rps(counts), at_least_rps, simulations);
}

}  // namespace tandem::planner
