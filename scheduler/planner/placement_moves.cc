#include "scheduler/planner/placement_moves.h"

#include <algorithm>
#include <utility>

#include "scheduler/planner/placement_goodput.h"
#include "scheduler/planner/random.h"
#include "scheduler/planner/workload_window.h"

namespace tandem::planner {
namespace {

uint32_t FreeOf(const Classes& classes, size_t c) {
  return classes.classes[c].count - classes.fixed[c].workers();
}

/// Puts changes into an order in which somebody prefills and decodes all the time. Where two would
/// only change places, one of them is mixed in between.
std::vector<PhaseChange> InOrder(const ClusterNow& cluster, std::vector<PhaseChange> changes) {
  PhaseCounts counts;
  for (const Node& node : cluster.nodes) ++counts.of(node.phase);
  const auto apply = [&counts](const PhaseChange& change) {
    PhaseCounts after = counts;
    --after.of(change.from);
    ++after.of(change.to);
    return after;
  };
  std::vector<PhaseChange> ordered;
  while (!changes.empty()) {
    const auto next = std::find_if(changes.begin(), changes.end(), [&](const PhaseChange& change) {
      return Serves({apply(change)});
    });
    if (next != changes.end()) {
      counts = apply(*next);
      ordered.push_back(*next);
      changes.erase(next);
      continue;
    }
    PhaseChange step = changes.front();
    step.to = changes.front().from = Phase::kMixed;
    counts = apply(step);
    ordered.push_back(std::move(step));
  }
  return ordered;
}

}  // namespace

double CountPlacements(const Classes& classes) {
  double n = 1;
  for (size_t c = 0; c < classes.classes.size(); ++c) {
    const double free = FreeOf(classes, c);
    n *= (free + 1) * (free + 2) / 2;
  }
  return n;
}

std::vector<std::vector<PhaseCounts>> AllPlacements(const Classes& classes) {
  std::vector<std::vector<PhaseCounts>> all = {{}};
  for (size_t c = 0; c < classes.classes.size(); ++c) {
    const PhaseCounts& fixed = classes.fixed[c];
    const uint32_t free = FreeOf(classes, c);
    std::vector<std::vector<PhaseCounts>> longer;
    for (const std::vector<PhaseCounts>& counts : all) {
      for (uint32_t p = 0; p <= free; ++p) {
        for (uint32_t d = 0; p + d <= free; ++d) {
          longer.push_back(counts);
          longer.back().push_back({.prefill = fixed.prefill + p,
                                   .decode = fixed.decode + d,
                                   .mixed = fixed.mixed + free - p - d});
        }
      }
    }
    all = std::move(longer);
  }
  std::erase_if(all, [](const auto& counts) { return !Serves(counts); });
  return all;
}

std::vector<std::vector<PhaseCounts>> Neighbours(const Classes& classes,
                                                 const std::vector<PhaseCounts>& counts) {
  std::vector<std::vector<PhaseCounts>> found;
  for (size_t c = 0; c < counts.size(); ++c) {
    for (const Phase from : kPhases) {
      const uint32_t movable = counts[c].of(from) - classes.fixed[c].of(from);
      for (const Phase to : kPhases) {
        if (from == to) continue;
        for (uint32_t n = 1; n <= std::min(2u, movable); ++n) {
          std::vector<PhaseCounts> next = counts;
          next[c].of(from) -= n;
          next[c].of(to) += n;
          if (Serves(next)) found.push_back(std::move(next));
        }
      }
    }
  }
  return found;
}

uint32_t CountMoves(const std::vector<PhaseCounts>& from, const std::vector<PhaseCounts>& to) {
  uint32_t moves = 0;
  for (size_t c = 0; c < from.size(); ++c) {
    for (const Phase phase : kPhases) {
      const uint32_t before = from[c].of(phase), after = to[c].of(phase);
      if (after > before) moves += after - before;
    }
  }
  return moves;
}

std::vector<PhaseChange> ChangesTo(const ClusterNow& cluster, const Classes& classes,
                                   const std::vector<PhaseCounts>& counts) {
  std::vector<PhaseChange> changes;
  for (size_t c = 0; c < counts.size(); ++c) {
    std::vector<const Node*> leaving;
    for (const Phase phase : kPhases) {
      std::vector<const Node*> have;
      for (size_t i = 0; i < cluster.nodes.size(); ++i) {
        const Node& node = cluster.nodes[i];
        if (classes.class_of[i] == c && node.phase == phase && node.movable) have.push_back(&node);
      }
      std::stable_sort(have.begin(), have.end(),
                       [](const Node* a, const Node* b) { return a->requests < b->requests; });
      const uint32_t before = classes.now[c].of(phase), after = counts[c].of(phase);
      for (uint32_t n = after; n < before && n - after < have.size(); ++n) {
        leaving.push_back(have[n - after]);
      }
    }
    size_t next = 0;
    for (const Phase phase : kPhases) {
      const uint32_t before = classes.now[c].of(phase), after = counts[c].of(phase);
      for (uint32_t n = before; n < after && next < leaving.size(); ++n, ++next) {
        const Node& node = *leaving[next];
        changes.push_back(
            {.worker_id = node.worker_id, .name = node.name, .from = node.phase, .to = phase});
      }
    }
  }
  return InOrder(cluster, std::move(changes));
}

Workload Resampled(std::span<const WorkloadRequest> sample, double rate_rps, uint32_t n,
                   uint64_t seed) {
  std::vector<uint32_t> outputs;
  for (const WorkloadRequest& request : sample) {
    if (request.output_tokens != kUnknownTokens) outputs.push_back(request.output_tokens);
  }
  Workload drawn = Generate({.shape = {.mean_prompt_tokens = 1, .mean_output_tokens = 1},
                             .requests = n,
                             .rate_rps = rate_rps,
                             .gap_cv = std::clamp(Describe(sample).gap_cv, 1.0, 4.0),
                             .seed = seed});
  Random random(seed);
  for (WorkloadRequest& request : drawn) {
    const WorkloadRequest& like = sample[random() % sample.size()];
    request.prompt_tokens = like.prompt_tokens;
    request.output_tokens = like.output_tokens;
    request.cached_tokens = std::min(like.cached_tokens, like.prompt_tokens);
    if (like.output_tokens != kUnknownTokens) continue;
    request.output_tokens = outputs.empty() ? kNoLength : outputs[random() % outputs.size()];
  }
  return drawn;
}

}  // namespace tandem::planner
