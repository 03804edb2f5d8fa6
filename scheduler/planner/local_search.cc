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

bool SameClass(const NodeClass& a, const NodeClass& b) {
  return a.count == b.count && a.devices == b.devices && a.speed == b.speed && a.widths == b.widths;
}

/// Placements that differ only in which of several interchangeable groups does what, as one.
class Symmetry {
 public:
  explicit Symmetry(const PlanTask& task) {
    const std::vector<WorkerVariant> variants = VariantsOf(task);
    const std::vector<uint32_t> kinds = GroupKinds(task);
    std::vector<std::vector<size_t>> places(task.groups);
    for (size_t v = 0; v < variants.size(); ++v) {
      places[task.classes[variants[v].node_class].group].push_back(v);
    }
    for (uint32_t group = 0; group < task.groups; ++group) {
      if (kinds[group] != group || places[group].empty()) continue;
      std::vector<std::vector<size_t>> equal;
      for (uint32_t other = group; other < task.groups; ++other) {
        if (kinds[other] == group) equal.push_back(places[other]);
      }
      if (equal.size() > 1) equal_.push_back(std::move(equal));
    }
  }

  /// One for all of them.
  Counts Canonical(Counts counts) const {
    for (const std::vector<std::vector<size_t>>& groups : equal_) {
      std::vector<Counts> parts;
      for (const std::vector<size_t>& places : groups) {
        Counts& part = parts.emplace_back();
        for (const size_t v : places) part.push_back(counts[v]);
      }
      std::sort(parts.begin(), parts.end());
      for (size_t g = 0; g < groups.size(); ++g) {
        for (size_t i = 0; i < groups[g].size(); ++i) counts[groups[g][i]] = parts[g][i];
      }
    }
    return counts;
  }

 private:
  /// Sets of groups, and of each group the places of its variants, in the same order.
  std::vector<std::vector<std::vector<size_t>>> equal_;
};

class Climb {
 public:
  Climb(const PlanTask& task, const std::atomic<bool>& stop, double most_work = kAnyWork)
      : task_(task),
        stop_(stop),
        most_work_(most_work),
        variants_(VariantsOf(task)),
        bound_(task),
        symmetry_(task) {}

  absl::StatusOr<LocalOptimum> From(const PlannedPlacement& start) {
    found_.best = start;
    tried_.insert(symmetry_.Canonical(start.counts));
    while (GoesOn()) {
      ASSIGN_OR_RETURN(const bool better, Try(Moves(found_.best.counts, 1)));
      if (!better) break;
    }
    return std::move(found_);
  }

  absl::StatusOr<LocalOptimum> Run(const std::vector<Counts>& start) {
    RETURN_IF_ERROR(Begin(start));
    uint32_t step = 1;
    for (const PhaseCounts& one : found_.best.counts) step += one.workers() / 4;
    while (GoesOn()) {
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
  bool GoesOn() const {
    uint32_t workers = 0;
    for (const PhaseCounts& one : found_.best.counts) workers += one.workers();
    const double of_one = static_cast<double>(task_.workload.size()) * (1 + workers / 64.0);
    return !stop_ && static_cast<double>(found_.simulations) * of_one < most_work_;
  }

  absl::Status Begin(const std::vector<Counts>& start) {
    std::vector<PlannedPlacement> seeds;
    const size_t widths = MostWidths(task_);
    for (size_t width = 0; width < widths; ++width) {
      seeds.push_back({.counts = AllMixed(task_, width)});
    }
    for (const Counts& counts : start) seeds.push_back({.counts = counts});
    // What these reach the others must.
    const size_t first = seeds.size();
    for (size_t width = 0; width < widths; ++width) {
      for (Counts& counts : PhasesApart(task_, width, kSplits)) {
        seeds.push_back({.counts = std::move(counts)});
      }
    }
    std::vector<uint64_t> simulations(seeds.size(), 0);
    const auto simulate = [&](size_t i, double at_least_rps) -> absl::Status {
      PlannedPlacement& seed = seeds[i];
      seed.bound_rps = bound_.Rps(seed.counts);
      ASSIGN_OR_RETURN(seed.goodput_rps, GoodputUpTo(task_, seed.counts, seed.bound_rps,
                                                     at_least_rps, simulations[i]));
      return absl::OkStatus();
    };
    RETURN_IF_ERROR(
        ForEachInParallel(task_.threads, first, [&](size_t i) { return simulate(i, 0); }));
    double least_rps = 0;
    for (size_t i = 0; i < first; ++i) least_rps = std::max(least_rps, seeds[i].goodput_rps);
    RETURN_IF_ERROR(ForEachInParallel(task_.threads, seeds.size() - first,
                                      [&](size_t i) { return simulate(first + i, least_rps); }));
    found_.best = found_.colocated = seeds[0];
    for (size_t i = 0; i < seeds.size(); ++i) {
      found_.simulations += simulations[i];
      if (!tried_.insert(symmetry_.Canonical(seeds[i].counts)).second) continue;
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
      counts = symmetry_.Canonical(std::move(counts));
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
        if (!Serves(two)) continue;
        two = symmetry_.Canonical(std::move(two));
        if (!tried_.contains(two)) pairs.insert(std::move(two));
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
  const double most_work_;
  const std::vector<WorkerVariant> variants_;
  const PlacementBound bound_;
  const Symmetry symmetry_;
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

std::vector<uint32_t> GroupKinds(const PlanTask& task) {
  std::vector<std::vector<const NodeClass*>> nodes(task.groups);
  for (const NodeClass& one : task.classes) nodes[one.group].push_back(&one);
  const auto link = [&](uint32_t from, uint32_t to) -> const Link& {
    return task.links[from * task.groups + to];
  };
  const auto exchangeable = [&](uint32_t a, uint32_t b) {
    if (!std::equal(nodes[a].begin(), nodes[a].end(), nodes[b].begin(), nodes[b].end(),
                    [](const auto* x, const auto* y) { return SameClass(*x, *y); })) {
      return false;
    }
    bool same = link(a, a) == link(b, b) && link(a, b) == link(b, a);
    for (uint32_t other = 0; other < task.groups && same; ++other) {
      if (other == a || other == b) continue;
      same = link(a, other) == link(b, other) && link(other, a) == link(other, b);
    }
    return same;
  };
  std::vector<uint32_t> kinds(task.groups);
  for (uint32_t group = 0; group < task.groups; ++group) {
    kinds[group] = group;
    for (uint32_t before = 0; before < group; ++before) {
      if (kinds[before] != before || !exchangeable(before, group)) continue;
      kinds[group] = before;
      break;
    }
  }
  return kinds;
}

absl::StatusOr<LocalOptimum> SearchLocally(const PlanTask& task,
                                           const std::vector<std::vector<PhaseCounts>>& start,
                                           const std::atomic<bool>& stop, double most_work) {
  return Climb(task, stop, most_work).Run(start);
}

absl::StatusOr<LocalOptimum> ClimbFrom(const PlanTask& task, const PlannedPlacement& start,
                                       double most_work, const std::atomic<bool>& stop) {
  return Climb(task, stop, most_work).From(start);
}

}  // namespace tandem::planner
