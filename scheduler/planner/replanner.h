// When the phases of a running cluster should change, and to what: the decisions of the online
// planner. No I/O, no clock: the router (server/planner_loop.h) and the tests pass the nodes, the
// requests and the time in. The method: docs/plan.md.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "scheduler/planner/cluster_now.h"
#include "scheduler/planner/workload_shift.h"

namespace tandem::planner {

/// What became of a decision.
enum class Outcome {
  /// Nothing that is enough better was found, or it was not worth the change.
  kKept,
  kChanged,
  /// A dry run: it would have been changed.
  kDryRun,
  /// Somebody has taken over from workers that were lost.
  kRescued,
  /// A new worker was given its phase.
  kJoined,
  /// A worker was told, and its phase has not changed; or the simulation refused.
  kFailed,
};
/// "kept", "changed", "dry_run", "rescued", "joined", "failed".
std::string_view OutcomeWord(Outcome outcome);

struct PlanDecision {
  double at_s = 0;
  Outcome outcome = Outcome::kKept;
  /// Why it was looked at, and why it ended so, in words.
  std::string trigger = {}, reason = {};
  std::vector<PhaseChange> changes = {};
  /// Phases before, and those wanted: "2 prefill, 1 decode".
  std::string present = {}, wanted = {};
  /// Of the requests that it was made for; predicted goodput of both. 0: not predicted.
  double rate_rps = 0, present_rps = 0, wanted_rps = 0;
  uint64_t simulations = 0;
};

/// States:
///
///   still ── something urgent ──> changing       (rescued, joined)
///   still ── a trigger, dwell over ──> changing, or still   (changed; kept, dry_run, failed)
///   changing ── the told worker reports the phase ──> changing (the next one), still
///   changing ── told_timeout_s ──> still          (failed)
///
/// Triggers: no plan was made yet; the requests have shifted since the plan (FindShift); the plan
/// was made for few requests and there are many more now; nodes have come or gone, or their speed
/// is another; links are. Not thread-safe.
class Replanner {
 public:
  struct Options {
    double ttft_slo_s = 0.25, tpot_slo_s = 0.1, attainment_target = 0.9;
    /// What a change must bring. Where the present placement carries the rate: a goodput higher by
    /// the share `min_gain`. Where it does not: that, or the rate with `headroom` on top, and
    /// `headroom` of the rate at least. A phase that is made smaller is judged so too: those that
    /// are left of n have n/(n-1) of the load.
    double min_gain = 0.2, headroom = 0.1;
    /// Between two changes that are not urgent, at least.
    double min_dwell_s = 30;
    /// What a worker that changes its phase does not serve, and for how long a plan should pay.
    double switch_s = 2, horizon_s = 300;
    /// Decide, and change nothing.
    bool dry_run = false;
    /// Requests that a placement is simulated with, at least (at most ten times as many), and
    /// placements that are tried: all when there are no more, else the present one's neighbours,
    /// and theirs.
    uint32_t simulated_requests = 400;
    size_t max_placements = 300;
    /// Requests that the first plan is made for, and those it is soon made anew for.
    size_t first_requests = 64, full_requests = 256;
    /// Bandwidths that differ by more have changed.
    double link_factor = 2.5;
    double told_timeout_s = 20;
    /// Evaluations are no closer than this, whatever comes of them.
    double evaluation_interval_s = 5;
    /// From the first sign of a shift until it is planned for: so that there is more of it to see.
    double settle_s = 4;
    ShiftOptions shift;
    uint64_t seed = 1;
  };
  explicit Replanner(const Options& options) : options_(options) {}

  /// One look at things, to be had about once a second: `recent` are the last requests (see
  /// WorkloadWindow::Recent). Returns what to tell which worker now, if anything. `stop`: asked
  /// between simulations; true: decide with what is known. Takes as long as the search does.
  std::optional<PhaseChange> Step(const ClusterNow& cluster,
                                  std::span<const WorkloadRequest> recent, double now_s,
                                  const std::function<bool()>& stop);
  /// The change that Step returned was refused.
  void Refused(const PhaseChange& change, const std::string& why, double now_s);
  /// Forgets its plan and what is under way, not its decisions: another router leads.
  void Reset();

  /// The last ones, the latest last.
  const std::deque<PlanDecision>& decisions() const { return decisions_; }
  /// All that were ever made.
  uint64_t made() const { return made_; }
  /// Predicted for the phases of now, as of the last evaluation; 0: none yet.
  double goodput_rps() const { return goodput_rps_; }
  /// When phases last changed, urgent or not; nothing: never.
  std::optional<double> changed_s() const { return changed_s_; }

 private:
  struct Trigger {
    std::string what;
    bool is_shift = false;
    /// The last so many of the recent requests are what to plan for.
    size_t requests = 0;
  };
  struct Proposal {
    std::vector<PhaseCounts> counts;
    double goodput_rps = 0;
    uint32_t moves = 0;
  };
  class Search;

  std::optional<PhaseChange> Continue(const ClusterNow& cluster, double now_s);
  std::optional<PhaseChange> Begin(std::vector<PhaseChange> changes, double now_s);
  std::optional<Trigger> FindTrigger(const ClusterNow& cluster, const Classes& classes,
                                     std::span<const WorkloadRequest> recent, double now_s) const;
  PlanDecision Evaluate(const ClusterNow& cluster, const Classes& classes, const Trigger& trigger,
                        std::span<const WorkloadRequest> sample, double now_s,
                        const std::function<bool()>& stop);
  void Remember(PlanDecision decision);
  void RememberUrgent(const UrgentChange& urgent, double now_s);

  const Options options_;
  // What the present plan was made for.
  Workload planned_for_;
  std::vector<std::string> planned_nodes_;
  std::vector<NodeClass> planned_classes_;
  std::vector<Link> planned_links_;
  double planned_s_ = 0;
  uint64_t evaluations_ = 0;
  std::optional<double> shift_s_;  // since when there are signs of a shift
  // Told in this order, each when the one before it has been done.
  std::deque<PhaseChange> pending_;
  double told_s_ = 0;
  std::optional<double> changed_s_;
  std::string dry_urgent_;  // the urgent change that a dry run has told of
  double goodput_rps_ = 0;
  std::deque<PlanDecision> decisions_;
  uint64_t made_ = 0;
};

}  // namespace tandem::planner
