#include "scheduler/planner/cluster_now.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "scheduler/planner/statistics.h"

namespace tandem::planner {
namespace {

/// Of one class: times of typical steps differ by less.
constexpr double kAlike = 1.3;
/// A link slower than this share of the fastest leads to another place.
constexpr double kFar = 0.25;
constexpr Link kUnmeasured = {.bytes_per_s = 125e6, .rtt_s = 1e-3};
/// A typical step of each kind.
constexpr uint32_t kStepTokens = 256, kSequences = 8, kContextTokens = 8 * 512;

PhaseChange To(const Node& node, Phase phase) {
  return {.worker_id = node.worker_id, .name = node.name, .from = node.phase, .to = phase};
}

/// Workers that have been told what to do, by phase.
PhaseCounts Told(const ClusterNow& cluster) {
  PhaseCounts pool;
  for (const Node& node : cluster.nodes) {
    if (node.assigned) ++pool.of(node.phase);
  }
  return pool;
}

/// Of those with the phase that may be moved the least busy one.
const Node* LeastBusy(const ClusterNow& cluster, Phase phase) {
  const Node* found = nullptr;
  for (const Node& node : cluster.nodes) {
    if (!node.movable || node.changing || !node.assigned || node.phase != phase) continue;
    if (found == nullptr || node.requests < found->requests) found = &node;
  }
  return found;
}

/// The routers that more than half of the workers know, in order.
std::vector<std::string> CommonRouters(const std::vector<std::vector<std::string>>& routers) {
  std::map<std::string, size_t> votes;
  for (const std::vector<std::string>& own : routers) {
    for (const std::string& router : std::set<std::string>(own.begin(), own.end())) {
      ++votes[router];
    }
  }
  std::vector<std::string> common;
  for (const auto& [router, n] : votes) {
    if (2 * n > routers.size()) common.push_back(router);
  }
  return common;
}

/// The mean of the coefficients of those that have measured this kind.
struct Means {
  uint32_t prefill_nodes = 0, decode_nodes = 0;
  WorkerSpeed speed;
};

Means MeanSpeed(const ClusterNow& cluster) {
  Means means;
  scheduler::PrefillCost prefill = {0, 0, 0};
  scheduler::DecodeCost decode;
  decode.base_s = decode.per_sequence_s = decode.per_context_token_s = 0;
  uint64_t saturation_tokens = 0;
  for (const Node& node : cluster.nodes) {
    const scheduler::LatencyModel& own = node.speed.latency;
    if (own.prefill_samples > 0) {
      ++means.prefill_nodes;
      prefill.base_s += own.prefill.base_s;
      prefill.per_token_s += own.prefill.per_token_s;
      prefill.per_position_s += own.prefill.per_position_s;
      saturation_tokens += own.saturation_tokens;
    }
    if (own.decode_samples > 0) {
      ++means.decode_nodes;
      decode.base_s += own.decode.base_s;
      decode.per_sequence_s += own.decode.per_sequence_s;
      decode.per_context_token_s += own.decode.per_context_token_s;
    }
  }
  const double n = means.prefill_nodes, m = means.decode_nodes;
  scheduler::LatencyModel& mean = means.speed.latency;
  if (n > 0) {
    mean.prefill = {prefill.base_s / n, prefill.per_token_s / n, prefill.per_position_s / n};
    mean.saturation_tokens = static_cast<uint32_t>(saturation_tokens / means.prefill_nodes);
  }
  if (m > 0) {
    mean.decode.base_s = decode.base_s / m;
    mean.decode.per_sequence_s = decode.per_sequence_s / m;
    mean.decode.per_context_token_s = decode.per_context_token_s / m;
  }
  return means;
}

/// What was not measured is taken from the mean, as much slower or faster as the node is otherwise.
WorkerSpeed Completed(WorkerSpeed speed, const WorkerSpeed& mean) {
  scheduler::LatencyModel& own = speed.latency;
  const bool prefill = own.prefill_samples > 0, decode = own.decode_samples > 0;
  if (!prefill) {
    const double times = decode ? TypicalDecodeSeconds(speed) / TypicalDecodeSeconds(mean) : 1;
    own.prefill = mean.latency.prefill;
    own.prefill.base_s *= times;
    own.prefill.per_token_s *= times;
    own.prefill.per_position_s *= times;
    own.saturation_tokens = mean.latency.saturation_tokens;
  }
  if (!decode) {
    const double times = prefill ? TypicalPrefillSeconds(speed) / TypicalPrefillSeconds(mean) : 1;
    own.decode = mean.latency.decode;
    own.decode.base_s *= times;
    own.decode.per_sequence_s *= times;
    own.decode.per_context_token_s *= times;
  }
  return speed;
}

bool Alike(double a, double b) { return a < b * kAlike && b < a * kAlike; }
bool Alike(const WorkerSpeed& a, const WorkerSpeed& b) {
  return Alike(TypicalPrefillSeconds(a), TypicalPrefillSeconds(b)) &&
         Alike(TypicalDecodeSeconds(a), TypicalDecodeSeconds(b)) &&
         a.kv_capacity_tokens == b.kv_capacity_tokens && a.max_sequences == b.max_sequences;
}

bool Far(const ClusterNow& cluster, uint32_t a, uint32_t b, double fastest) {
  return std::any_of(cluster.links.begin(), cluster.links.end(), [&](const MeasuredLink& measured) {
    const bool theirs =
        (measured.from == a && measured.to == b) || (measured.from == b && measured.to == a);
    return theirs && measured.link.bytes_per_s < kFar * fastest;
  });
}

Link MedianLink(const std::vector<Link>& links, const Link& otherwise) {
  if (links.empty()) return otherwise;
  std::vector<double> bytes_per_s, rtt_s;
  for (const Link& link : links) {
    bytes_per_s.push_back(link.bytes_per_s);
    rtt_s.push_back(link.rtt_s);
  }
  return {.bytes_per_s = Quantile(bytes_per_s, 0.5), .rtt_s = Quantile(rtt_s, 0.5)};
}

std::vector<Link> LinksOf(const ClusterNow& cluster, const std::vector<uint32_t>& class_of,
                          size_t n_classes) {
  std::vector<Link> all;
  std::vector<std::vector<Link>> by_pair(n_classes * n_classes);
  for (const MeasuredLink& measured : cluster.links) {
    all.push_back(measured.link);
    by_pair[class_of[measured.from] * n_classes + class_of[measured.to]].push_back(measured.link);
  }
  const Link typical = MedianLink(all, kUnmeasured);
  std::vector<Link> links;
  for (const std::vector<Link>& pair : by_pair) links.push_back(MedianLink(pair, typical));
  return links;
}

}  // namespace

double TypicalPrefillSeconds(const WorkerSpeed& speed) {
  return speed.latency.prefill.Seconds(kStepTokens);
}

double TypicalDecodeSeconds(const WorkerSpeed& speed) {
  return speed.latency.decode.StepSeconds(kSequences, kContextTokens);
}

const char* PhaseWord(Phase phase) {
  return phase == Phase::kPrefill ? "prefill" : phase == Phase::kDecode ? "decode" : "mixed";
}

std::optional<std::string> Leader(const std::vector<std::vector<std::string>>& routers) {
  const std::vector<std::string> common = CommonRouters(routers);
  if (common.empty()) return std::nullopt;
  return common.front();
}

size_t CountRouters(const std::vector<std::vector<std::string>>& routers) {
  return CommonRouters(routers).size();
}

std::string Describe(const std::vector<PhaseCounts>& counts) {
  std::vector<std::string> parts;
  for (const Phase phase : kPhases) {
    uint32_t n = 0;
    for (const PhaseCounts& one : counts) n += one.of(phase);
    if (n > 0) parts.push_back(absl::StrCat(n, " ", PhaseWord(phase)));
  }
  return absl::StrJoin(parts, ", ");
}

std::optional<UrgentChange> FindUrgent(const ClusterNow& cluster) {
  const PhaseCounts pool = Told(cluster);
  // New workers do both until they are told: as long as there is one, nobody is missed.
  const bool new_one = std::any_of(cluster.nodes.begin(), cluster.nodes.end(),
                                   [](const Node& node) { return !node.assigned; });
  for (const auto& [missing, have] :
       {std::pair{Phase::kDecode, Phase::kPrefill}, {Phase::kPrefill, Phase::kDecode}}) {
    const uint32_t n = pool.of(have);
    if (pool.of(missing) + pool.mixed > 0 || n == 0 || new_one) continue;
    const Node* node = LeastBusy(cluster, have);
    if (node == nullptr) return std::nullopt;
    return UrgentChange{.change = To(*node, n > 1 ? missing : Phase::kMixed), .rescue = true};
  }
  if (!new_one || cluster.nodes.size() == 1) return std::nullopt;
  for (const Node& node : cluster.nodes) {
    if (node.assigned || !node.movable || node.changing) continue;
    return UrgentChange{
        .change = To(node, pool.decode <= pool.prefill ? Phase::kDecode : Phase::kPrefill)};
  }
  return std::nullopt;
}

std::optional<Classes> Classify(const ClusterNow& cluster) {
  const Means means = MeanSpeed(cluster);
  if (means.prefill_nodes == 0 || means.decode_nodes == 0) return std::nullopt;
  double fastest = 0;
  for (const MeasuredLink& measured : cluster.links) {
    fastest = std::max(fastest, measured.link.bytes_per_s);
  }
  Classes found;
  std::vector<std::vector<uint32_t>> members;
  for (uint32_t i = 0; i < cluster.nodes.size(); ++i) {
    const Node& node = cluster.nodes[i];
    const WorkerSpeed speed = Completed(node.speed, means.speed);
    size_t c = 0;
    while (c < members.size() &&
           (!Alike(found.classes[c].speed, speed) ||
            std::any_of(members[c].begin(), members[c].end(),
                        [&](uint32_t other) { return Far(cluster, i, other, fastest); }))) {
      ++c;
    }
    if (c == members.size()) {
      members.emplace_back();
      found.classes.push_back(
          {.name = node.name, .count = 0, .group = static_cast<uint32_t>(c), .speed = speed});
      found.now.emplace_back();
      found.fixed.emplace_back();
    }
    members[c].push_back(i);
    ++found.classes[c].count;
    found.class_of.push_back(static_cast<uint32_t>(c));
    ++found.now[c].of(node.phase);
    if (!node.movable) ++found.fixed[c].of(node.phase);
  }
  found.links = LinksOf(cluster, found.class_of, found.classes.size());
  return found;
}

}  // namespace tandem::planner
