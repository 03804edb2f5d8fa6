#include "server/planner_loop.h"

#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/log.h"
#include "server/cluster_service.h"
#include "server/planner_inputs.h"
#include "server/router.h"

namespace tandem::server {
namespace {

/// CPU seconds for one decision, after which it is made with what is known.
constexpr double kBudgetS = 2;
/// What the thread yields to the others (nice).
constexpr int kNice = 5;
/// Requests that the planner is shown.
constexpr size_t kRecent = 1024;

double ThreadCpuSeconds() {
  timespec used{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
  return static_cast<double>(used.tv_sec) + static_cast<double>(used.tv_nsec) * 1e-9;
}

planner::Replanner::Options ReplanOptions(const RouterOptions& options) {
  // "As fast as can be" is a very short objective, as it is for the dispatch.
  return {.ttft_slo_s = std::max(1e-3, absl::ToDoubleSeconds(options.ttft_objective)),
          .tpot_slo_s = std::max(1e-3, absl::ToDoubleSeconds(options.tpot_objective)),
          .min_gain = options.planner_min_gain,
          .min_dwell_s = absl::ToDoubleSeconds(options.planner_min_dwell),
          .dry_run = options.planner == "dry-run"};
}

std::string ChangesText(const std::vector<planner::PhaseChange>& changes) {
  return absl::StrJoin(changes, ", ", [](std::string* out, const planner::PhaseChange& change) {
    absl::StrAppend(out, change.name, ": ", planner::PhaseWord(change.from), " → ",
                    planner::PhaseWord(change.to));
  });
}

}  // namespace

PlannerLoop::PlannerLoop(RouterCore* core, ClusterServiceImpl* cluster)
    : core_(core), cluster_(cluster), replanner_(ReplanOptions(core->options())) {}

PlannerLoop::~PlannerLoop() { Stop(); }

void PlannerLoop::Start() {
  if (core_->options().planner == "off") return;
  thread_ = std::thread([this] { Run(); });
}

void PlannerLoop::Stop() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    wake_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
}

void PlannerLoop::Run() {
  // Where it is refused the thread competes like any other.
  (void)setpriority(PRIO_PROCESS, static_cast<id_t>(gettid()), kNice);
  while (true) {
    Look();
    Publish();
    std::unique_lock lock(mutex_);
    wake_.wait_for(lock, absl::ToChronoNanoseconds(core_->options().planner_interval),
                   [this] { return stopping_.load(); });
    if (stopping_) return;
  }
}

void PlannerLoop::Look() {
  const absl::Time now = absl::Now();
  const std::vector<v1::WorkerState> workers = core_->view().List(now);
  const absl::Duration timeout = core_->options().worker_timeout;
  const auto routers = RoutersFrom(workers, timeout);
  const std::string leader = planner::Leader(routers).value_or("");
  const bool led = leads();
  {
    std::lock_guard lock(mutex_);
    leader_ = leader;
  }
  if (!leads()) {
    if (led) replanner_.Reset();
    return;
  }
  planner::ClusterNow cluster = ClusterFrom(workers, timeout);
  cluster.share_seen = 1.0 / static_cast<double>(planner::CountRouters(routers));
  const double begin_s = ThreadCpuSeconds(), now_s = WorkloadLog::Seconds(now);
  const auto change = replanner_.Step(cluster, core_->workload().Recent(kRecent, now), now_s, [&] {
    return stopping_.load() || ThreadCpuSeconds() > begin_s + kBudgetS;
  });
  if (!change || stopping_) return;
  v1::AssignPhaseRequest request;
  request.set_worker(change->worker_id);
  request.set_phase(ToProto(change->to));
  const absl::Status status = cluster_->Assign(request, /*by_planner=*/true);
  spdlog::info("phase planned worker={} from={} to={} status=\"{}\"", change->name,
               planner::PhaseWord(change->from), planner::PhaseWord(change->to), status.ToString());
  if (!status.ok()) replanner_.Refused(*change, std::string(status.message()), now_s);
}

void PlannerLoop::Publish() {
  const auto& decisions = replanner_.decisions();
  const size_t n_new = std::min<size_t>(replanner_.made() - published_, decisions.size());
  for (size_t i = decisions.size() - n_new; i < decisions.size(); ++i) {
    const planner::PlanDecision& decision = decisions[i];
    core_->metrics().Planned(planner::OutcomeWord(decision.outcome));
    spdlog::info(
        "planned outcome={} trigger=\"{}\" reason=\"{}\" changes=\"{}\" present=\"{}\" "
        "wanted=\"{}\" rate_rps={:.3f} present_rps={:.3f} wanted_rps={:.3f} simulations={}",
        planner::OutcomeWord(decision.outcome), decision.trigger, decision.reason,
        ChangesText(decision.changes), decision.present, decision.wanted, decision.rate_rps,
        decision.present_rps, decision.wanted_rps, decision.simulations);
  }
  published_ = replanner_.made();
  std::lock_guard lock(mutex_);
  goodput_rps_ = replanner_.goodput_rps();
  changed_s_ = replanner_.changed_s();
  decisions_ = decisions;
  core_->metrics().Plan(leader_ == cluster_->router_id(), goodput_rps_, changed_s_.value_or(0));
}

bool PlannerLoop::leads() const {
  std::lock_guard lock(mutex_);
  return leader_ == cluster_->router_id();
}

void PlannerLoop::Tell(v1::GetPlanResponse& response, absl::Time now) const {
  const double now_s = WorkloadLog::Seconds(now);
  response.set_planner(core_->options().planner);
  response.set_router_id(cluster_->router_id());
  std::lock_guard lock(mutex_);
  response.set_leader(leader_);
  response.set_goodput_rps(goodput_rps_);
  response.set_change_age_s(changed_s_ ? now_s - *changed_s_ : -1);
  for (const planner::PlanDecision& decision : decisions_) {
    *response.add_decisions() = ToProto(decision, now_s);
  }
}

}  // namespace tandem::server
