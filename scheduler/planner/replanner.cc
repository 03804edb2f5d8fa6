#include "scheduler/planner/replanner.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status_macros.h"
#include "scheduler/planner/placement_moves.h"
#include "scheduler/planner/workload_window.h"

namespace tandem::planner {
namespace {

constexpr size_t kDecisions = 64;
/// Rounds of steps to neighbours, where not all placements are tried.
constexpr int kRounds = 4;
/// A simulation's length in TTFT objectives, at the present rate.
constexpr double kTtftsSimulated = 40;
/// What a further worker's change must bring, as a share of the goodput.
constexpr double kPerMove = 0.02;

std::vector<std::string> IdsOf(const ClusterNow& cluster) {
  std::vector<std::string> ids;
  for (const Node& node : cluster.nodes) ids.push_back(node.worker_id);
  std::sort(ids.begin(), ids.end());
  return ids;
}

bool Differ(double a, double b, double factor) { return a > b * factor || b > a * factor; }

/// What a plan depends on has become different: in words, "" when it has not.
std::string SpeedsChanged(const std::vector<NodeClass>& before, const std::vector<NodeClass>& now) {
  if (before.size() != now.size()) return "";  // noise at the edge of a class
  for (size_t c = 0; c < now.size(); ++c) {
    const WorkerSpeed &a = before[c].speed, &b = now[c].speed;
    if (Differ(TypicalPrefillSeconds(a), TypicalPrefillSeconds(b), 1.5) ||
        Differ(TypicalDecodeSeconds(a), TypicalDecodeSeconds(b), 1.5)) {
      return absl::StrCat("the speed of ", now[c].name, " and its like");
    }
  }
  return "";
}

bool LinksChanged(const std::vector<Link>& before, const std::vector<Link>& now, double factor) {
  if (before.size() != now.size()) return false;
  for (size_t i = 0; i < now.size(); ++i) {
    if (Differ(before[i].bytes_per_s, now[i].bytes_per_s, factor)) return true;
  }
  return false;
}

double RateOf(std::span<const WorkloadRequest> sample, double now_s) {
  const double span_s = now_s - sample.front().arrival_s;
  return span_s > 0 ? static_cast<double>(sample.size()) / span_s : 0;
}

}  // namespace

std::string_view OutcomeWord(Outcome outcome) {
  switch (outcome) {
    case Outcome::kKept:
      return "kept";
    case Outcome::kChanged:
      return "changed";
    case Outcome::kDryRun:
      return "dry_run";
    case Outcome::kRescued:
      return "rescued";
    case Outcome::kJoined:
      return "joined";
    case Outcome::kFailed:
      return "failed";
  }
  return "";
}

/// The placements of one task, tried in order until it is told to stop. Two samples of the same
/// requests: the second one confirms what the first one found.
class Replanner::Search {
 public:
  Search(PlanTask task, PlanTask second, const Classes& classes, const Options& options,
         const std::function<bool()>& stop)
      : tasks_{std::move(task), std::move(second)},
        classes_(classes),
        options_(options),
        stop_(stop) {}

  /// Of the first or the second sample.
  absl::StatusOr<double> Goodput(int sample, const std::vector<PhaseCounts>& counts,
                                 double at_least_rps) {
    return PlacementGoodput(tasks_[sample], counts, at_least_rps, simulations_);
  }

  /// What a placement must reach to be worth a change from one with `present_rps`.
  double Needed(double present_rps, double rate_rps) const {
    const double gain = present_rps * (1 + options_.min_gain);
    if (present_rps >= rate_rps) return gain;
    // Where nothing carries the rate, it must be a share of the requests that is gained.
    return std::max(std::min(gain, rate_rps * (1 + options_.headroom)),
                    present_rps + options_.headroom * rate_rps);
  }

  /// The best one that reaches `needed_rps`; fewer changes win where goodput is about the same.
  absl::StatusOr<std::optional<Proposal>> Best(double needed_rps) {
    std::optional<Proposal> best;
    if (CountPlacements(classes_) <= options_.max_placements) {
      RETURN_IF_ERROR(Try(AllPlacements(classes_), needed_rps, best));
      return best;
    }
    std::vector<PhaseCounts> around = classes_.now;
    for (int round = 0; round < kRounds && !stop_(); ++round) {
      RETURN_IF_ERROR(Try(Neighbours(classes_, around), needed_rps, best));
      if (!best || best->counts == around) return best;
      around = best->counts;
    }
    return best;
  }

  uint64_t simulations() const { return simulations_; }

 private:
  static double Worth(const Proposal& proposal) {
    return proposal.goodput_rps * (1 - kPerMove * proposal.moves);
  }

  absl::Status Try(std::vector<std::vector<PhaseCounts>> placements, double needed_rps,
                   std::optional<Proposal>& best) {
    const auto moves = [this](const std::vector<PhaseCounts>& counts) {
      return CountMoves(classes_.now, counts);
    };
    std::stable_sort(placements.begin(), placements.end(),
                     [&](const auto& a, const auto& b) { return moves(a) < moves(b); });
    for (std::vector<PhaseCounts>& counts : placements) {
      if (stop_()) return absl::OkStatus();
      Proposal proposal = {.counts = std::move(counts)};
      proposal.moves = moves(proposal.counts);
      if (proposal.moves == 0) continue;
      const double left = std::max(0.1, 1 - kPerMove * proposal.moves);
      const double at_least_rps = std::max(needed_rps, best ? Worth(*best) / left : 0);
      ASSIGN_OR_RETURN(proposal.goodput_rps, Goodput(0, proposal.counts, at_least_rps));
      if (proposal.goodput_rps < at_least_rps || proposal.goodput_rps <= 0) continue;
      if (!best || Worth(proposal) > Worth(*best)) best = std::move(proposal);
    }
    return absl::OkStatus();
  }

  const PlanTask tasks_[2];
  const Classes& classes_;
  const Options& options_;
  const std::function<bool()>& stop_;
  uint64_t simulations_ = 0;
};

// ------------------------------------------------------------------ one look

std::optional<PhaseChange> Replanner::Step(const ClusterNow& cluster,
                                           std::span<const WorkloadRequest> recent, double now_s,
                                           const std::function<bool()>& stop) {
  if (!pending_.empty()) return Continue(cluster, now_s);
  if (const auto urgent = FindUrgent(cluster)) {
    if (!options_.dry_run) {
      RememberUrgent(*urgent, now_s);
      if (urgent->rescue) changed_s_ = now_s;
      return Begin({urgent->change}, now_s);
    }
    // It stays as it is: told once, not at every look.
    const std::string what =
        absl::StrCat(urgent->change.worker_id, " ", PhaseWord(urgent->change.to));
    if (std::exchange(dry_urgent_, what) != what) RememberUrgent(*urgent, now_s);
  }
  const bool movable = std::any_of(cluster.nodes.begin(), cluster.nodes.end(),
                                   [](const Node& node) { return node.movable; });
  if (!movable) return std::nullopt;  // nothing would come of it
  if (changed_s_ && now_s < *changed_s_ + options_.min_dwell_s) return std::nullopt;
  if (evaluations_ > 0 && now_s < planned_s_ + options_.evaluation_interval_s) return std::nullopt;
  const auto classes = Classify(cluster);
  if (!classes) return std::nullopt;
  const auto trigger = FindTrigger(cluster, *classes, recent, now_s);
  if (!trigger || !trigger->is_shift) shift_s_.reset();
  if (!trigger) return std::nullopt;
  if (trigger->is_shift) {
    if (!shift_s_) shift_s_ = now_s;
    if (now_s < *shift_s_ + options_.settle_s) return std::nullopt;
  }
  const auto sample = recent.last(trigger->requests);
  PlanDecision decision = Evaluate(cluster, *classes, *trigger, sample, now_s, stop);
  planned_for_.assign(sample.begin(), sample.end());
  planned_nodes_ = IdsOf(cluster);
  planned_classes_ = classes->classes;
  planned_links_ = classes->links;
  planned_s_ = now_s;
  ++evaluations_;
  std::vector<PhaseChange> changes;
  if (decision.outcome == Outcome::kChanged) changes = decision.changes;
  // In a dry run the same is not proposed again at once either.
  if (!decision.changes.empty()) changed_s_ = now_s;
  Remember(std::move(decision));
  return Begin(std::move(changes), now_s);
}

void Replanner::RememberUrgent(const UrgentChange& urgent, double now_s) {
  const PhaseChange& change = urgent.change;
  Remember({.at_s = now_s,
            .outcome = options_.dry_run ? Outcome::kDryRun
                       : urgent.rescue  ? Outcome::kRescued
                                        : Outcome::kJoined,
            .trigger = urgent.rescue
                           ? absl::StrCat("nobody is left that ",
                                          change.from == Phase::kPrefill ? "decodes" : "prefills")
                           : absl::StrCat(change.name, " is new"),
            .changes = {change}});
}

std::optional<PhaseChange> Replanner::Begin(std::vector<PhaseChange> changes, double now_s) {
  if (changes.empty()) return std::nullopt;
  pending_.assign(changes.begin(), changes.end());
  told_s_ = now_s;
  return pending_.front();
}

std::optional<PhaseChange> Replanner::Continue(const ClusterNow& cluster, double now_s) {
  const PhaseChange& told = pending_.front();
  const auto node = std::find_if(cluster.nodes.begin(), cluster.nodes.end(),
                                 [&](const Node& one) { return one.worker_id == told.worker_id; });
  const bool gone = node == cluster.nodes.end();
  if (!gone && (node->phase != told.to || node->changing || !node->assigned)) {
    if (now_s < told_s_ + options_.told_timeout_s) return std::nullopt;
    Refused(PhaseChange(told), "it has not changed in time", now_s);
    return std::nullopt;
  }
  pending_.pop_front();
  // Without one that is gone the rest may be wrong: what is needed then is looked at anew.
  if (gone) pending_.clear();
  if (pending_.empty()) return std::nullopt;
  told_s_ = now_s;
  return pending_.front();
}

void Replanner::Refused(const PhaseChange& change, const std::string& why, double now_s) {
  pending_.clear();
  Remember({.at_s = now_s,
            .outcome = Outcome::kFailed,
            .trigger = absl::StrCat(change.name, " was told: ", PhaseWord(change.to)),
            .reason = why,
            .changes = {change}});
}

void Replanner::Reset() {
  planned_for_.clear();
  pending_.clear();
  changed_s_.reset();
  shift_s_.reset();
  evaluations_ = 0;
  goodput_rps_ = 0;
}

void Replanner::Remember(PlanDecision decision) {
  ++made_;
  decisions_.push_back(std::move(decision));
  if (decisions_.size() > kDecisions) decisions_.pop_front();
}

// ------------------------------------------------------------------ when

std::optional<Replanner::Trigger> Replanner::FindTrigger(const ClusterNow& cluster,
                                                         const Classes& classes,
                                                         std::span<const WorkloadRequest> recent,
                                                         double now_s) const {
  const size_t since_plan = static_cast<size_t>(
      recent.end() - std::find_if(recent.begin(), recent.end(), [&](const auto& request) {
        return request.arrival_s > planned_s_;
      }));
  const size_t most = 4 * options_.full_requests;
  if (evaluations_ == 0) {
    if (recent.size() < options_.first_requests) return std::nullopt;
    return Trigger{.what = "no plan was made yet", .requests = std::min(recent.size(), most)};
  }
  if (auto shift =
          FindShift(planned_for_, recent.last(std::min(since_plan, most)), now_s, options_.shift)) {
    return Trigger{.what = std::move(shift->what), .is_shift = true, .requests = shift->requests};
  }
  // What follows does not say that requests are others: all since the plan, and what it knew.
  const size_t known = std::min({recent.size(), most, since_plan + planned_for_.size()});
  if (known < options_.shift.least_requests) return std::nullopt;
  if (planned_for_.size() < options_.full_requests &&
      known >= std::min(options_.full_requests, 4 * planned_for_.size())) {
    return Trigger{.what = "more requests are known", .requests = known};
  }
  if (IdsOf(cluster) != planned_nodes_) {
    return Trigger{.what = "nodes have come or gone", .requests = known};
  }
  if (const std::string speeds = SpeedsChanged(planned_classes_, classes.classes);
      !speeds.empty()) {
    return Trigger{.what = speeds, .requests = known};
  }
  if (LinksChanged(planned_links_, classes.links, options_.link_factor)) {
    return Trigger{.what = "the bandwidth of links", .requests = known};
  }
  return std::nullopt;
}

// ------------------------------------------------------------------ what

PlanDecision Replanner::Evaluate(const ClusterNow& cluster, const Classes& classes,
                                 const Trigger& trigger, std::span<const WorkloadRequest> sample,
                                 double now_s, const std::function<bool()>& stop) {
  PlanDecision decision = {.at_s = now_s,
                           .trigger = trigger.what,
                           .present = Describe(classes.now),
                           .rate_rps = RateOf(sample, now_s) / cluster.share_seen};
  const auto fails = [&](const absl::Status& status) {
    decision.outcome = Outcome::kFailed;
    decision.reason = std::string(status.message());
    return decision;
  };
  PlanTask task = {.classes = classes.classes,
                   .groups = static_cast<uint32_t>(classes.classes.size()),
                   .links = classes.links,
                   .simulator = {.ttft_slo_s = options_.ttft_slo_s,
                                 .tpot_slo_s = options_.tpot_slo_s,
                                 .kv_bytes_per_token = cluster.kv_bytes_per_token},
                   .attainment_target = options_.attainment_target};
  PlanTask second = task;
  const uint64_t seed = options_.seed + 2 * made_;
  // It must last much longer than the TTFT objective to say anything about it.
  const auto n = static_cast<uint32_t>(std::clamp(
      decision.rate_rps * options_.ttft_slo_s * kTtftsSimulated,
      static_cast<double>(options_.simulated_requests), 10.0 * options_.simulated_requests));
  task.workload = Resampled(sample, decision.rate_rps, n, seed);
  second.workload = Resampled(sample, decision.rate_rps, n, seed + 1);
  Search search(std::move(task), std::move(second), classes, options_, stop);

  const auto present = search.Goodput(0, classes.now, 0);
  if (!present.ok()) return fails(present.status());
  decision.present_rps = goodput_rps_ = *present;
  const double needed_rps = search.Needed(*present, decision.rate_rps);
  const auto best = search.Best(needed_rps);
  decision.simulations = search.simulations();
  if (!best.ok()) return fails(best.status());
  if (!*best) {
    decision.reason = absl::StrFormat("no placement reaches %.2f/s", needed_rps);
    return decision;
  }
  const Proposal& proposal = **best;
  decision.wanted = Describe(proposal.counts);
  decision.wanted_rps = proposal.goodput_rps;
  // What those that change do not serve meanwhile.
  const double lost_s =
      proposal.moves * options_.switch_s / static_cast<double>(classes.class_of.size());
  if ((proposal.goodput_rps - *present) * (options_.horizon_s - options_.switch_s) <=
      *present * lost_s) {
    decision.reason = "the change would cost more than it brings";
    return decision;
  }
  const auto again = search.Goodput(1, classes.now, 0);
  if (!again.ok()) return fails(again.status());
  const double needed_again_rps = search.Needed(*again, decision.rate_rps);
  const auto confirmed = search.Goodput(1, proposal.counts, needed_again_rps);
  decision.simulations = search.simulations();
  if (!confirmed.ok()) return fails(confirmed.status());
  if (*confirmed < needed_again_rps || *confirmed <= 0) {
    decision.reason = "another sample of the same requests does not confirm it";
    return decision;
  }
  decision.changes = ChangesTo(cluster, classes, proposal.counts);
  decision.outcome = options_.dry_run ? Outcome::kDryRun : Outcome::kChanged;
  decision.reason = *present < decision.rate_rps ? "the present placement does not carry the rate"
                                                 : "its goodput is higher";
  if (!options_.dry_run) goodput_rps_ = proposal.goodput_rps;
  return decision;
}

}  // namespace tandem::planner
