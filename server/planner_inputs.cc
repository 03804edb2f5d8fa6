#include "server/planner_inputs.h"

#include <algorithm>
#include <map>

#include "scheduler/cluster_view.h"

namespace tandem::server {
namespace {

bool Usable(const v1::WorkerState& worker, absl::Duration timeout) {
  return worker.info().phase() != v1::PHASE_STORE && !worker.load().draining() &&
         worker.load().phase() != v1::PHASE_UNSPECIFIED &&
         absl::Seconds(worker.report_age_s()) <= timeout;
}

planner::Phase FromProto(v1::Phase phase) {
  return phase == v1::PHASE_PREFILL  ? planner::Phase::kPrefill
         : phase == v1::PHASE_DECODE ? planner::Phase::kDecode
                                     : planner::Phase::kMixed;
}

planner::WorkerSpeed SpeedFrom(const v1::WorkerInfo& info, const v1::LatencyModel& told) {
  planner::WorkerSpeed speed;
  speed.latency = scheduler::ModelFrom(told, speed.latency);
  if (info.decode_kv_tokens() > 0) speed.kv_capacity_tokens = info.decode_kv_tokens();
  if (info.decode_sequences() > 0) speed.max_sequences = info.decode_sequences();
  if (info.prefill_sequences() > 0) speed.prefill_sequences = info.prefill_sequences();
  if (info.step_tokens() > 0) speed.step_tokens = info.step_tokens();
  return speed;
}

planner::Node NodeFrom(const v1::WorkerState& worker) {
  const v1::WorkerInfo& info = worker.info();
  const v1::WorkerLoad& load = worker.load();
  const bool changing = load.changing_to() != v1::PHASE_UNSPECIFIED;
  return {
      .worker_id = info.worker_id(),
      .name = info.name(),
      .phase = FromProto(changing ? load.changing_to() : load.phase()),
      .changing = changing,
      .movable = load.phase_planned() && !info.phase_pinned(),
      .assigned = !load.phase_unassigned(),
      .requests = load.running() + load.waiting(),
      .speed = SpeedFrom(info, load.has_usual_latency() ? load.usual_latency() : load.latency())};
}

}  // namespace

planner::ClusterNow ClusterFrom(const std::vector<v1::WorkerState>& workers,
                                absl::Duration timeout) {
  planner::ClusterNow cluster;
  std::map<std::string, uint32_t> by_address;
  std::vector<const v1::WorkerState*> used;
  for (const v1::WorkerState& worker : workers) {
    if (!Usable(worker, timeout)) continue;
    by_address[worker.info().data_address()] = static_cast<uint32_t>(used.size());
    used.push_back(&worker);
    cluster.nodes.push_back(NodeFrom(worker));
    cluster.kv_bytes_per_token = std::max(cluster.kv_bytes_per_token,
                                          static_cast<double>(worker.info().kv_bytes_per_token()));
  }
  for (uint32_t to = 0; to < used.size(); ++to) {
    for (const v1::LinkEstimate& link : used[to]->load().links()) {
      const auto from = by_address.find(link.data_address());
      if (from == by_address.end() || from->second == to || !(link.bytes_per_s() > 0)) continue;
      cluster.links.push_back(
          {.from = from->second,
           .to = to,
           .link = {.bytes_per_s = link.bytes_per_s(), .rtt_s = std::max(0.0, link.rtt_s())}});
    }
  }
  return cluster;
}

std::vector<std::vector<std::string>> RoutersFrom(const std::vector<v1::WorkerState>& workers,
                                                  absl::Duration timeout) {
  std::vector<std::vector<std::string>> routers;
  for (const v1::WorkerState& worker : workers) {
    if (!Usable(worker, timeout)) continue;
    routers.emplace_back(worker.load().routers().begin(), worker.load().routers().end());
  }
  return routers;
}

v1::Phase ToProto(planner::Phase phase) {
  return phase == planner::Phase::kPrefill  ? v1::PHASE_PREFILL
         : phase == planner::Phase::kDecode ? v1::PHASE_DECODE
                                            : v1::PHASE_MIXED;
}

v1::PlanDecision ToProto(const planner::PlanDecision& decision, double now_s) {
  v1::PlanDecision told;
  told.set_age_s(now_s - decision.at_s);
  told.set_outcome(std::string(planner::OutcomeWord(decision.outcome)));
  told.set_trigger(decision.trigger);
  told.set_reason(decision.reason);
  for (const planner::PhaseChange& change : decision.changes) {
    v1::PhaseChange& one = *told.add_changes();
    one.set_worker_id(change.worker_id);
    one.set_worker(change.name);
    one.set_from(ToProto(change.from));
    one.set_to(ToProto(change.to));
  }
  told.set_present(decision.present);
  told.set_wanted(decision.wanted);
  told.set_rate_rps(decision.rate_rps);
  told.set_present_rps(decision.present_rps);
  told.set_wanted_rps(decision.wanted_rps);
  told.set_simulations(decision.simulations);
  return told;
}

}  // namespace tandem::server
