// A running cluster for tests of the online planner, without processes: nodes that change their
// phase when they are told, and generated requests, on a clock that jumps.
#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "scheduler/planner/replanner.h"
#include "scheduler/planner/workload_window.h"

namespace tandem::planner {

inline WorkerSpeed TestSpeed(double factor = 1) {
  WorkerSpeed speed;
  speed.latency.prefill = {
      .base_s = 18e-3 / factor, .per_token_s = 1e-4 / factor, .per_position_s = 1e-8 / factor};
  speed.latency.decode.base_s = 20e-3;
  speed.latency.decode.per_sequence_s = 4e-4;
  speed.latency.decode.per_context_token_s = 6e-7;
  speed.latency.prefill_samples = speed.latency.decode_samples = 1000;
  speed.max_sequences = 64;
  return speed;
}

inline Node TestNode(const std::string& name, Phase phase) {
  return {.worker_id = name, .name = name, .phase = phase, .movable = true, .speed = TestSpeed()};
}

inline ClusterNow TestCluster(const std::vector<Phase>& phases) {
  ClusterNow cluster = {.kv_bytes_per_token = 1e5};
  for (const Phase phase : phases) {
    cluster.nodes.push_back(TestNode("w" + std::to_string(cluster.nodes.size()), phase));
  }
  const auto n = static_cast<uint32_t>(phases.size());
  for (uint32_t from = 0; from < n; ++from) {
    for (uint32_t to = 0; to < n; ++to) {
      if (from == to) continue;
      cluster.links.push_back(
          {.from = from, .to = to, .link = {.bytes_per_s = 1.25e9, .rtt_s = 1e-4}});
    }
  }
  return cluster;
}

inline uint32_t Count(const ClusterNow& cluster, Phase phase) {
  return static_cast<uint32_t>(std::count_if(cluster.nodes.begin(), cluster.nodes.end(),
                                             [&](const Node& n) { return n.phase == phase; }));
}

/// Plays requests and a look a second against a Replanner.
class OnlineRun {
 public:
  explicit OnlineRun(ClusterNow cluster, Replanner::Options options)
      : cluster_(std::move(cluster)), replanner_(options) {}

  /// Requests like these come from now on, for so long; each ends `life_s` after it came. What it
  /// is told a node does by the next look.
  void Play(const GeneratedWorkload& requests, double seconds, double life_s = 3) {
    GeneratedWorkload options = requests;
    options.requests = static_cast<uint32_t>(requests.rate_rps * seconds * 2) + 10;
    const Workload workload = Generate(options);
    const double begin_s = now_s_;
    std::vector<std::pair<double, std::pair<uint64_t, uint32_t>>> running;
    size_t next = 0, ended = 0;
    for (; now_s_ < begin_s + seconds; now_s_ += 1) {
      for (; next < workload.size() && begin_s + workload[next].arrival_s <= now_s_; ++next) {
        const double at_s = begin_s + workload[next].arrival_s;
        running.push_back(
            {at_s + life_s,
             {window_.Arrived(workload[next].prompt_tokens, at_s), workload[next].output_tokens}});
      }
      for (; ended < running.size() && running[ended].first <= now_s_; ++ended) {
        window_.Ended(running[ended].second.first, running[ended].second.second, 0);
      }
      Look();
    }
  }

  void Look() {
    const Workload recent = window_.Recent(1024, now_s_);
    const auto change = replanner_.Step(cluster_, recent, now_s_, [] { return false; });
    if (!change) return;
    for (Node& node : cluster_.nodes) {
      if (node.worker_id != change->worker_id) continue;
      node.phase = change->to;
      node.assigned = true;
    }
  }

  /// Times of decisions with this outcome.
  std::vector<double> Times(Outcome outcome) const {
    std::vector<double> times;
    for (const PlanDecision& decision : replanner_.decisions()) {
      if (decision.outcome == outcome) times.push_back(decision.at_s);
    }
    return times;
  }

  ClusterNow& cluster() { return cluster_; }
  const Replanner& replanner() const { return replanner_; }
  double now_s() const { return now_s_; }

 private:
  ClusterNow cluster_;
  Replanner replanner_;
  WorkloadWindow window_;
  double now_s_ = 1000;
};

}  // namespace tandem::planner
