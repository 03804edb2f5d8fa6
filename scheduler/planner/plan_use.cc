#include "scheduler/planner/plan_use.h"

#include <algorithm>

#include "scheduler/core/decode_policy.h"
#include "scheduler/planner/placement_goodput.h"

namespace tandem::planner {
namespace {

double Share(double part, double whole) { return whole > 0 ? std::min(1.0, part / whole) : 0; }

PlanUse UseOf(const PlannedDomain& domain) {
  const SimulationResult& result = domain.at_goodput;
  const PlacedWorkers placed = WorkersOf(domain.task, domain.placement.counts);
  const double time_s = result.end_s;
  double prefill_s = 0, prefill_time_s = 0, sequences_s = 0, limit_s = 0, kv_s = 0, room_s = 0;
  std::vector<double> sent_s(placed.links.nodes(), 0), received_s(placed.links.nodes(), 0);
  for (size_t w = 0; w < placed.workers.size(); ++w) {
    const SimulatedWorker& worker = placed.workers[w];
    const WorkerUse& use = result.workers[w];
    if (worker.phase != Phase::kDecode) {
      prefill_s += use.prefill_busy_s;
      prefill_time_s += time_s - use.decode_busy_s;
    }
    sent_s[worker.node] += use.send_s;
    received_s[worker.node] += use.receive_s;
    if (worker.phase == Phase::kPrefill) continue;
    const double context = use.sequence_s > 0 ? use.kv_token_s / use.sequence_s : 1;
    const scheduler::DecodeRoom room = {.max_sequences = worker.speed.max_sequences,
                                        .tpot_objective_s = domain.task.simulator.tpot_slo_s};
    sequences_s += use.sequence_s;
    limit_s += time_s * StepLimit(room, worker.speed.latency.decode,
                                  static_cast<uint32_t>(std::max(1.0, context)));
    kv_s += use.kv_token_s;
    room_s += time_s * static_cast<double>(worker.speed.kv_capacity_tokens);
  }
  PlanUse use = {.prefill = Share(prefill_s, prefill_time_s),
                 .decode = Share(sequences_s, limit_s),
                 .kv_room = Share(kv_s, room_s)};
  for (size_t node = 0; node < sent_s.size(); ++node) {
    use.links = std::max(use.links, Share(std::max(sent_s[node], received_s[node]), time_s));
  }
  return use;
}

}  // namespace

PlanUse UseOf(const Plan& plan) {
  PlanUse most;
  for (const PlannedDomain& domain : plan.domains) {
    const PlanUse use = UseOf(domain);
    most.prefill = std::max(most.prefill, use.prefill);
    most.decode = std::max(most.decode, use.decode);
    most.links = std::max(most.links, use.links);
    most.kv_room = std::max(most.kv_room, use.kv_room);
  }
  return most;
}

}  // namespace tandem::planner
