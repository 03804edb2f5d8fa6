#include "scheduler/planner/local_search.h"

#include <algorithm>
#include <set>
#include <tuple>
#include <utility>

#include "base/status_macros.h"
#include "scheduler/planner/placement_goodput.h"

namespace tandem::planner {
namespace {

using Counts = std::vector<PhaseCounts>;
/// Splits that are tried, and pairs of moves.
constexpr size_t kSplits = 6, kPairs = 64;

/// All workers mixed, each class at its width in that place (or its last one).
Counts AllMixed(const PlanTask& task, size_t width) {
  Counts counts;
  for (const NodeClass& nodes : task.classes) {
    const size_t n = std::max<size_t>(1, nodes.widths.size());
    for (size_t i = 0; i < n; ++i) {
      const uint32_t per_node = nodes.widths.empty() ? 1 : nodes.devices / nodes.widths[i].devices;
      counts.push_back({.mixed = i == std::min(width, n - 1) ? nodes.count * per_node : 0});
    }
  }
  return counts;
}

size_t MostWidths(const PlanTask& task) {
  size_t most = 1;
  for (const NodeClass& nodes : task.classes) most = std::max(most, nodes.widths.size());
  return most;
}

class Climb {
 public:
  Climb(const PlanTask& task, const std::atomic<bool>& stop)
      : task_(task), stop_(stop), variants_(VariantsOf(task)), bound_(task) {}

  absl::StatusOr<LocalOptimum> Run(const std::vector<Counts>& start) {
    RETURN_IF_ERROR(Begin(start));
    uint32_t step = 1;
    for (const PhaseCounts& one : found_.best.counts) step += one.workers() / 4;
    while (!stop_) {
      ASSIGN_OR_RETURN(bool better, Try(Moves(found_.best.counts, step)));
      if (better) continue;
      if (step > 1) {
        step /= 2;
        continue;
      }
      ASSIGN_OR_RETURN(better, Try(Pairs()));
      if (!better) break;
    }
    return std::move(found_);
  }

  /// Changes of one phase, or of one width.
  std::vector<Counts> Moves(const Counts& from, uint32_t step) const {
    std::vector<Counts> moves;
    for (size_t v = 0; v < from.size(); ++v) {
      for (const Phase x : kPhases) {
        const uint32_t n = std::min(step, from[v].of(x));
        if (n == 0) continue;
        for (const Phase y : kPhases) {
          if (x == y) continue;
          moves.push_back(from);
          moves.back()[v].of(x) -= n;
          moves.back()[v].of(y) += n;
        }
        for (size_t other = 0; other < from.size(); ++other) Widen(from, v, x, other, step, moves);
      }
    }
    return moves;
  }

 private:
  absl::Status Begin(const std::vector<Counts>& start) {
    std::vector<PlannedPlacement> seeds;
    const size_t widths = MostWidths(task_);
    for (size_t width = 0; width < widths; ++width) {
      seeds.push_back({.counts = AllMixed(task_, width)});
    }
    for (size_t width = 0; width < widths; ++width) {
      for (Counts& counts : PhasesApart(task_, width, kSplits)) {
        seeds.push_back({.counts = std::move(counts)});
      }
    }
    for (const Counts& counts : start) seeds.push_back({.counts = counts});
    std::vector<uint64_t> simulations(seeds.size(), 0);
    const auto simulate = [&](size_t i, double at_least_rps) -> absl::Status {
      PlannedPlacement& seed = seeds[i];
      seed.bound_rps = bound_.Rps(seed.counts);
      ASSIGN_OR_RETURN(seed.goodput_rps, GoodputUpTo(task_, seed.counts, seed.bound_rps,
                                                     at_least_rps, simulations[i]));
      return absl::OkStatus();
    };
    RETURN_IF_ERROR(
        ForEachInParallel(task_.threads, widths, [&](size_t i) { return simulate(i, 0); }));
    RETURN_IF_ERROR(ForEachInParallel(task_.threads, seeds.size() - widths, [&](size_t i) {
      return simulate(widths + i, seeds[0].goodput_rps);
    }));
    found_.best = found_.colocated = seeds[0];
    for (size_t i = 0; i < seeds.size(); ++i) {
      found_.simulations += simulations[i];
      if (!tried_.insert(seeds[i].counts).second) continue;
      ++found_.simulated;
      if (i < widths && seeds[i].goodput_rps > found_.colocated.goodput_rps) {
        found_.colocated = seeds[i];
      }
      if (i > 0) Offer(seeds[i]);
    }
    return absl::OkStatus();
  }

  void Offer(const PlannedPlacement& placement) {
    KeepTwoBest(placement, found_.best, found_.runner_up);
  }

  /// Whether one of them is better than the best; the best of those takes its place.
  absl::StatusOr<bool> Try(std::vector<Counts> candidates) {
    const double threshold = RateOf(GridBelow(found_.best.goodput_rps) + 1);
    std::vector<PlannedPlacement> placements;
    for (Counts& counts : candidates) {
      if (!Serves(counts)) continue;
      const double bound_rps = bound_.Rps(counts);
      if (bound_rps < threshold || !tried_.insert(counts).second) continue;
      placements.push_back({.counts = std::move(counts), .bound_rps = bound_rps});
    }
    std::vector<uint64_t> simulations(placements.size(), 0);
    RETURN_IF_ERROR(
        ForEachInParallel(task_.threads, placements.size(), [&](size_t i) -> absl::Status {
          PlannedPlacement& one = placements[i];
          ASSIGN_OR_RETURN(one.goodput_rps, GoodputFrom(task_, one.counts, one.bound_rps,
                                                        found_.best.goodput_rps, simulations[i]));
          return absl::OkStatus();
        }));
    found_.simulated += placements.size();
    const double before_rps = found_.best.goodput_rps;
    for (size_t i = 0; i < placements.size(); ++i) {
      found_.simulations += simulations[i];
      // Those that are not better are only known to be no better.
      if (placements[i].goodput_rps > before_rps) Offer(placements[i]);
    }
    return found_.best.goodput_rps > before_rps;
  }

  /// Some nodes of variant `v` get the width of another: workers of phase `x` go first.
  void Widen(const Counts& from, size_t v, Phase x, size_t other, uint32_t step,
             std::vector<Counts>& moves) const {
    if (v == other || variants_[v].node_class != variants_[other].node_class) return;
    const uint32_t per_node = variants_[v].per_node;
    const uint32_t nodes = std::min(std::max(1u, step / per_node), from[v].workers() / per_node);
    Counts base = from;
    uint32_t left = nodes * per_node;
    const auto take = [&](Phase phase) {
      const uint32_t n = std::min(left, base[v].of(phase));
      base[v].of(phase) -= n;
      left -= n;
    };
    take(x);
    for (const Phase phase : kPhases) take(phase);
    for (const Phase phase : kPhases) {
      moves.push_back(base);
      moves.back()[other].of(phase) += nodes * variants_[other].per_node;
    }
  }

  /// Two moves at once: those with the highest bounds.
  std::vector<Counts> Pairs() const {
    std::set<Counts> pairs;
    for (const Counts& one : Moves(found_.best.counts, 1)) {
      for (Counts& two : Moves(one, 1)) {
        if (Serves(two) && !tried_.contains(two)) pairs.insert(std::move(two));
      }
    }
    std::vector<std::pair<double, const Counts*>> order;
    for (const Counts& counts : pairs) order.push_back({bound_.Rps(counts), &counts});
    std::stable_sort(order.begin(), order.end(),
                     [](const auto& a, const auto& b) { return a.first > b.first; });
    std::vector<Counts> best;
    for (size_t i = 0; i < std::min(kPairs, order.size()); ++i) best.push_back(*order[i].second);
    return best;
  }

  const PlanTask& task_;
  const std::atomic<bool>& stop_;
  const std::vector<WorkerVariant> variants_;
  const PlacementBound bound_;
  LocalOptimum found_;
  std::set<Counts> tried_;
};

/// Of the placements whose first 1, 2, … of these workers prefill: `most` evenly spread, and the
/// one with the highest bound. `counts`: all decode.
std::vector<Counts> Splits(const PlacementBound& bound, Counts counts,
                           const std::vector<std::tuple<double, double, size_t>>& workers,
                           size_t most) {
  std::vector<Counts> splits;
  size_t highest = 0;
  double highest_rps = 0;
  for (size_t k = 0; k + 1 < workers.size(); ++k) {
    PhaseCounts& one = counts[std::get<2>(workers[k])];
    --one.decode;
    ++one.prefill;
    splits.push_back(counts);
    const double rps = bound.Rps(counts);
    if (rps > highest_rps) highest = k;
    highest_rps = std::max(highest_rps, rps);
  }
  std::vector<Counts> chosen;
  const size_t n = std::min(most, splits.size());
  for (size_t i = 0; i < n; ++i) chosen.push_back(splits[(2 * i + 1) * splits.size() / (2 * n)]);
  if (n > 0) chosen.push_back(splits[highest]);
  return chosen;
}

}  // namespace

std::vector<std::vector<PhaseCounts>> Neighbours(const PlanTask& task,
                                                 const std::vector<PhaseCounts>& counts) {
  const std::atomic<bool> go_on = false;
  return Climb(task, go_on).Moves(counts, 1);
}

std::vector<std::vector<PhaseCounts>> PhasesApart(const PlanTask& task, size_t width, size_t most) {
  const PlacementBound bound(task);
  Counts counts = AllMixed(task, width);
  // One entry a worker, the best at prefill first; equals of several classes (racks) take turns.
  std::vector<std::tuple<double, double, size_t>> workers;
  for (size_t v = 0; v < counts.size(); ++v) {
    for (uint32_t i = 0; i < counts[v].mixed; ++i) {
      workers.push_back({-bound.PrefillAdvantage(v), (i + 0.5) / counts[v].mixed, v});
    }
    counts[v] = {.decode = counts[v].mixed};
  }
  std::sort(workers.begin(), workers.end());
  // As good as the best at prefill may be those that would be missed least for decoding.
  std::vector<Counts> chosen = Splits(bound, counts, workers, most);
  std::reverse(workers.begin(), workers.end());
  for (Counts& split : Splits(bound, counts, workers, most)) chosen.push_back(std::move(split));
  return chosen;
}

absl::StatusOr<LocalOptimum> SearchLocally(const PlanTask& task,
                                           const std::vector<std::vector<PhaseCounts>>& start,
                                           const std::atomic<bool>& stop) {
  return Climb(task, stop).Run(start);
}

}  // namespace tandem::planner
