#include "scheduler/planner/domain_search.h"

#include <algorithm>
#include <set>
#include <utility>

#include "base/status_macros.h"
#include "scheduler/planner/local_search.h"
#include "scheduler/planner/placement_goodput.h"

namespace tandem::planner {
namespace {

using Counts = std::vector<PhaseCounts>;
/// Nodes of a domain at most, and of the parts that a larger group is cut into.
constexpr uint32_t kMostNodes = 64, kPartNodes = 32;
/// Steps of the grid that joining two cells must gain.
constexpr int kWorthJoining = 2;
/// Pairs of kinds of cells that are looked at in one round.
constexpr size_t kMostPairs = 24;
/// Placements of two joined cells from which the search goes on.
constexpr size_t kMostStarts = 4;

/// One set of nodes: so many of each class, in groups of the whole task.
struct Cell {
  std::vector<uint32_t> classes, counts, groups;
  uint32_t parts = 1;
};

/// Cells with the same nodes and links.
struct CellKind {
  PlanTask task;
  std::vector<Cell> cells;
  LocalOptimum found;
};

PlanTask TaskOf(const PlanTask& whole, const Cell& cell) {
  PlanTask task = whole;
  task.classes.clear();
  task.links.clear();
  task.group_names.clear();
  task.groups = static_cast<uint32_t>(cell.groups.size());
  for (size_t i = 0; i < cell.classes.size(); ++i) {
    NodeClass nodes = whole.classes[cell.classes[i]];
    nodes.count = cell.counts[i];
    nodes.group = static_cast<uint32_t>(
        std::find(cell.groups.begin(), cell.groups.end(), nodes.group) - cell.groups.begin());
    task.classes.push_back(std::move(nodes));
  }
  for (const uint32_t from : cell.groups) {
    if (from < whole.group_names.size()) task.group_names.push_back(whole.group_names[from]);
    for (const uint32_t to : cell.groups) {
      task.links.push_back(whole.links[from * whole.groups + to]);
    }
  }
  // A sample lasts as long for a joined domain as for its parts.
  if (cell.parts > 1) task.workload = Repeated(whole.workload, cell.parts);
  return task;
}

bool SameNodes(const PlanTask& a, const PlanTask& b) {
  return a.links == b.links && a.workload.size() == b.workload.size() &&
         std::equal(a.classes.begin(), a.classes.end(), b.classes.begin(), b.classes.end(),
                    [](const NodeClass& x, const NodeClass& y) {
                      return x.count == y.count && x.group == y.group && x.speed == y.speed &&
                             x.devices == y.devices && x.widths == y.widths;
                    });
}

uint32_t NodesOf(const PlanTask& task) {
  uint32_t n = 0;
  for (const NodeClass& nodes : task.classes) n += nodes.count;
  return n;
}

class DomainSearch {
 public:
  DomainSearch(const PlanTask& whole, const std::atomic<bool>& stop) : whole_(whole), stop_(stop) {
    size_t variants = 0;
    for (const NodeClass& nodes : whole.classes) {
      first_variant_.push_back(variants);
      variants += std::max<size_t>(1, nodes.widths.size());
    }
    plan_.best.counts = plan_.colocated.counts = Counts(variants);
  }

  absl::StatusOr<Plan> Run() {
    for (const Cell& cell : Cells()) Add(cell);
    for (size_t i = 0; i < kinds_.size(); ++i) {
      Tell("domains", i, kinds_.size());
      RETURN_IF_ERROR(Search(kinds_[i].task, {}, kinds_[i].found));
      Sum(kinds_[i], kinds_[i].found.colocated, plan_.colocated);
    }
    if (stop_ && !whole_.keep_when_stopped) {
      return absl::CancelledError("the search was interrupted");
    }
    while (!stop_) {
      ASSIGN_OR_RETURN(const bool joined, Join());
      if (!joined) break;
    }
    RETURN_IF_ERROR(Finish());
    return std::move(plan_);
  }

 private:
  void Tell(const char* what, uint64_t done, uint64_t of) {
    if (whole_.progress) whole_.progress({.what = what, .done = done, .of = of});
  }

  std::vector<Cell> Cells() const {
    std::vector<Cell> cells;
    for (uint32_t group = 0; group < whole_.groups; ++group) {
      Cell all;
      all.groups = {group};
      uint32_t nodes = 0;
      for (uint32_t c = 0; c < whole_.classes.size(); ++c) {
        if (whole_.classes[c].group != group || whole_.classes[c].count == 0) continue;
        all.classes.push_back(c);
        all.counts.push_back(whole_.classes[c].count);
        nodes += whole_.classes[c].count;
      }
      if (nodes == 0) continue;
      const uint64_t parts = nodes <= kMostNodes ? 1 : (nodes + kPartNodes - 1) / kPartNodes;
      for (uint64_t i = 0; i < parts; ++i) cells.push_back(Part(all, i, parts));
    }
    return cells;
  }

  static Cell Part(const Cell& all, uint64_t i, uint64_t parts) {
    Cell part;
    part.groups = all.groups;
    for (size_t j = 0; j < all.classes.size(); ++j) {
      const uint64_t n = all.counts[j];
      const auto count = static_cast<uint32_t>(n * (i + 1) / parts - n * i / parts);
      if (count == 0) continue;
      part.classes.push_back(all.classes[j]);
      part.counts.push_back(count);
    }
    return part;
  }

  /// To the kind that it is of; a new one at the end when there is none.
  void Add(const Cell& cell) {
    PlanTask task = TaskOf(whole_, cell);
    for (CellKind& kind : kinds_) {
      if (SameNodes(kind.task, task)) return kind.cells.push_back(cell);
    }
    kinds_.push_back({.task = std::move(task), .cells = {cell}, .found = {}});
  }

  absl::Status Search(const PlanTask& task, const std::vector<Counts>& start, LocalOptimum& found) {
    absl::StatusOr<LocalOptimum> optimum = SearchLocally(task, start, stop_);
    RETURN_IF_ERROR(optimum.status());
    plan_.simulated += optimum->simulated;
    plan_.simulations += optimum->simulations;
    found = *std::move(optimum);
    return absl::OkStatus();
  }

  /// Adds the placement of a kind's every cell to that of the whole.
  void Sum(const CellKind& kind, const PlannedPlacement& placement, PlannedPlacement& whole) const {
    for (const Cell& cell : kind.cells) {
      size_t v = 0;
      for (const uint32_t c : cell.classes) {
        const size_t n = std::max<size_t>(1, whole_.classes[c].widths.size());
        for (size_t i = 0; i < n; ++i, ++v) {
          PhaseCounts& counts = whole.counts[first_variant_[c] + i];
          counts.prefill += placement.counts[v].prefill;
          counts.decode += placement.counts[v].decode;
          counts.mixed += placement.counts[v].mixed;
        }
      }
    }
    whole.goodput_rps += static_cast<double>(kind.cells.size()) * placement.goodput_rps;
    whole.bound_rps += static_cast<double>(kind.cells.size()) * placement.bound_rps;
  }

  // ---------------------------------------------------------------- joining

  static Cell Joined(const Cell& a, const Cell& b) {
    Cell joined = a;
    joined.parts += b.parts;
    joined.classes.insert(joined.classes.end(), b.classes.begin(), b.classes.end());
    joined.counts.insert(joined.counts.end(), b.counts.begin(), b.counts.end());
    for (const uint32_t group : b.groups) {
      if (std::find(a.groups.begin(), a.groups.end(), group) == a.groups.end()) {
        joined.groups.push_back(group);
      }
    }
    return joined;
  }

  struct Candidate {
    size_t a = 0, b = 0;
    PlanTask task;
    LocalOptimum found;
    double gain_rps = 0;  // a node
  };

  /// Joins the pair of kinds that gains most, as often as there are cells; false: none gains
  /// enough.
  absl::StatusOr<bool> Join() {
    std::vector<std::pair<size_t, size_t>> pairs;
    for (size_t a = 0; a < kinds_.size(); ++a) {
      for (size_t b = a; b < kinds_.size() && pairs.size() < kMostPairs; ++b) {
        const size_t cells_a = kinds_[a].cells.size(), cells_b = kinds_[b].cells.size();
        if (cells_a == 0 || cells_b == 0 || (a == b && cells_a < 2)) continue;
        if (NodesOf(kinds_[a].task) + NodesOf(kinds_[b].task) > kMostNodes) continue;
        if (!useless_.contains({a, b})) pairs.push_back({a, b});
      }
    }
    std::optional<Candidate> best;
    for (size_t i = 0; i < pairs.size() && !stop_; ++i) {
      Tell("joined domains", i, pairs.size());
      ASSIGN_OR_RETURN(std::optional<Candidate> one, TryJoining(pairs[i].first, pairs[i].second));
      if (!one) useless_.insert(pairs[i]);
      if (one && (!best || one->gain_rps > best->gain_rps)) best = std::move(one);
    }
    if (!best) return false;
    Merge(std::move(*best));
    return true;
  }

  absl::StatusOr<std::optional<Candidate>> TryJoining(size_t a, size_t b) {
    const CellKind &first = kinds_[a], &second = kinds_[b];
    Candidate candidate = {.a = a, .b = b};
    candidate.task = TaskOf(whole_, Joined(first.cells[0], second.cells[a == b ? 1 : 0]));
    const double apart_rps = first.found.best.goodput_rps + second.found.best.goodput_rps;
    Counts both = first.found.best.counts;
    both.insert(both.end(), second.found.best.counts.begin(), second.found.best.counts.end());
    // Together they can have shares of the phases that one alone, of few nodes, cannot.
    std::vector<Counts> starts = Neighbours(candidate.task, both);
    for (Counts& split : PhasesApart(candidate.task, 0, 4)) starts.push_back(std::move(split));
    starts.push_back(std::move(both));
    const double threshold_rps = RateOf(GridBelow(apart_rps) + kWorthJoining);
    std::vector<char> passes(starts.size(), 0);
    const PlacementBound bound(candidate.task);
    RETURN_IF_ERROR(ForEachInParallel(whole_.threads, starts.size(), [&](size_t i) -> absl::Status {
      if (bound.Rps(starts[i]) < threshold_rps) return absl::OkStatus();
      ASSIGN_OR_RETURN(const SimulationResult result,
                       SimulatePlacement(candidate.task, starts[i], threshold_rps));
      passes[i] = result.attainment.both >= whole_.attainment_target;
      return absl::OkStatus();
    }));
    plan_.simulations += starts.size();
    std::vector<Counts> good;
    for (size_t i = 0; i < starts.size() && good.size() < kMostStarts; ++i) {
      if (passes[i]) good.push_back(std::move(starts[i]));
    }
    if (good.empty()) return std::nullopt;
    RETURN_IF_ERROR(Search(candidate.task, good, candidate.found));
    candidate.gain_rps = (candidate.found.best.goodput_rps - apart_rps) / NodesOf(candidate.task);
    if (candidate.gain_rps <= 0) return std::nullopt;
    return candidate;
  }

  void Merge(Candidate candidate) {
    CellKind joined = {.task = std::move(candidate.task), .cells = {}, .found = {}};
    joined.found = std::move(candidate.found);
    std::vector<Cell>&a = kinds_[candidate.a].cells, &b = kinds_[candidate.b].cells;
    const bool same = candidate.a == candidate.b;
    // Only pairs with the links that were simulated; what is left stays as it is.
    for (size_t i = 0; i < a.size();) {
      size_t j = same ? i + 1 : 0;
      Cell both;
      for (; j < b.size(); ++j) {
        both = Joined(a[i], b[j]);
        if (SameNodes(TaskOf(whole_, both), joined.task)) break;
      }
      if (j >= b.size()) {
        ++i;
        continue;
      }
      joined.cells.push_back(std::move(both));
      b.erase(b.begin() + static_cast<std::ptrdiff_t>(j));
      a.erase(a.begin() + static_cast<std::ptrdiff_t>(i));
    }
    kinds_.push_back(std::move(joined));
  }

  // ---------------------------------------------------------------- the plan

  absl::Status Finish() {
    std::erase_if(kinds_, [](const CellKind& kind) { return kind.cells.empty(); });
    for (const CellKind& kind : kinds_) {
      Sum(kind, kind.found.best, plan_.best);
      PlannedDomain& domain = plan_.domains.emplace_back();
      domain.task = kind.task;
      domain.placement = kind.found.best;
      domain.colocated = kind.found.colocated;
      for (const Cell& cell : kind.cells) domain.members.push_back(cell.classes);
    }
    RunnerUp();
    plan_.complete = !stop_;
    return absl::OkStatus();
  }

  /// The plan in which one kind of domain has its second best placement.
  void RunnerUp() {
    std::optional<size_t> chosen;
    for (size_t k = 0; k < kinds_.size(); ++k) {
      const CellKind& other = kinds_[k];
      if (!other.found.runner_up) continue;
      PlannedPlacement sum;
      sum.counts = Counts(plan_.best.counts.size());
      for (const CellKind& kind : kinds_) {
        Sum(kind, &kind == &other ? *kind.found.runner_up : kind.found.best, sum);
      }
      if (!plan_.runner_up || sum.goodput_rps > plan_.runner_up->goodput_rps) {
        plan_.runner_up = std::move(sum);
        chosen = k;
      }
    }
    if (chosen) plan_.domains[*chosen].runner_up = kinds_[*chosen].found.runner_up;
  }

  const PlanTask& whole_;
  const std::atomic<bool>& stop_;
  std::vector<size_t> first_variant_;
  std::vector<CellKind> kinds_;
  std::set<std::pair<size_t, size_t>> useless_;
  Plan plan_;
};

}  // namespace

absl::StatusOr<Plan> SearchDomains(const PlanTask& task, const std::atomic<bool>& stop) {
  return DomainSearch(task, stop).Run();
}

}  // namespace tandem::planner
