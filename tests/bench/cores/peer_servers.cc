#include "tests/bench/cores/peer_servers.h"

#include <algorithm>
#include <deque>
#include <limits>

namespace tandem::bench {
namespace {

constexpr double kIdle = std::numeric_limits<double>::infinity();

struct Slot {
  size_t request = 0;
  uint32_t computed = 0, generated = 0;
  /// What of it is in the step that is under way: prompt tokens, or the next token.
  uint32_t piece = 0;
  bool decodes = false;
};

struct Server {
  bool prompts_last = false;
  double step_end_s = kIdle;
  std::vector<Slot> slots;
  std::deque<size_t> waiting;
  size_t connections() const { return slots.size() + waiting.size(); }
};

class Servers {
 public:
  Servers(std::span<const planner::WorkloadRequest> workload,
          const scheduler::LatencyModel& latency, const PeerOptions& options)
      : workload_(workload),
        latency_(latency),
        options_(options),
        servers_(options.servers),
        first_s_(workload.size()) {
    result_.ttft_s.resize(workload.size());
    result_.tpot_s.resize(workload.size());
  }

  PeerLatencies Run() {
    for (size_t arrived = 0;;) {
      const auto next = std::ranges::min_element(servers_, {}, &Server::step_end_s);
      if (arrived < workload_.size() && workload_[arrived].arrival_s <= next->step_end_s) {
        Server& server = FewestConnections();
        server.waiting.push_back(arrived);
        if (server.step_end_s == kIdle) BeginStep(server, workload_[arrived].arrival_s);
        ++arrived;
      } else if (next->step_end_s < kIdle) {
        EndStep(*next);
        BeginStep(*next, next->step_end_s);
      } else {
        return std::move(result_);
      }
    }
  }

 private:
  Server& FewestConnections() {
    size_t best = turn_ % servers_.size();
    for (size_t i = 1; i < servers_.size(); ++i) {
      const size_t at = (turn_ + i) % servers_.size();
      if (servers_[at].connections() < servers_[best].connections()) best = at;
    }
    turn_ = best + 1;
    return servers_[best];
  }

  void BeginStep(Server& server, double now_s) {
    while (!server.waiting.empty() && server.slots.size() < options_.sequences) {
      server.slots.push_back({.request = server.waiting.front()});
      server.waiting.pop_front();
    }
    const auto n_prompts = std::ranges::count(server.slots, 0u, &Slot::generated);
    const bool any_sequence = n_prompts < std::ssize(server.slots);
    const bool prompts_too =
        n_prompts > 0 && !(options_.by_turns && server.prompts_last && any_sequence);
    server.prompts_last = prompts_too;
    uint32_t sequences = 0;
    uint64_t context_tokens = 0;
    for (Slot& slot : server.slots) {
      slot.piece = 0;
      slot.decodes = slot.generated > 0 && !(options_.by_turns && prompts_too);
      if (!slot.decodes) continue;
      ++sequences;
      context_tokens += slot.computed + slot.generated;
    }
    uint32_t prompt_tokens = 0;
    double positions = 0;
    for (Slot& slot : server.slots) {
      if (slot.generated > 0 || !prompts_too) continue;
      slot.piece = std::min(workload_[slot.request].prompt_tokens - slot.computed,
                            options_.step_tokens - sequences - prompt_tokens);
      prompt_tokens += slot.piece;
      positions += scheduler::PrefillCost::PositionSum(slot.piece, slot.computed);
    }
    double step_s = kIdle;
    if (prompt_tokens > 0) {
      step_s = latency_.prefill.StepSeconds(sequences + prompt_tokens, positions) +
               static_cast<double>(context_tokens) * latency_.decode.per_context_token_s;
    } else if (sequences > 0) {
      step_s = latency_.decode.StepSeconds(sequences, context_tokens);
    }
    server.step_end_s = now_s + step_s;
  }

  void EndStep(Server& server) {
    const double now_s = server.step_end_s;
    for (Slot& slot : server.slots) {
      const planner::WorkloadRequest& wanted = workload_[slot.request];
      if (slot.decodes) ++slot.generated;
      slot.computed += slot.piece;
      if (slot.generated == 0 && slot.computed == wanted.prompt_tokens) {
        slot.generated = 1;
        first_s_[slot.request] = now_s;
        result_.ttft_s[slot.request] = now_s - wanted.arrival_s;
      }
      if (slot.generated == wanted.output_tokens && wanted.output_tokens > 1) {
        result_.tpot_s[slot.request] =
            (now_s - first_s_[slot.request]) / (wanted.output_tokens - 1);
      }
    }
    std::erase_if(server.slots, [&](const Slot& slot) {
      return slot.generated == workload_[slot.request].output_tokens;
    });
  }

  const std::span<const planner::WorkloadRequest> workload_;
  const scheduler::LatencyModel& latency_;
  const PeerOptions options_;
  std::vector<Server> servers_;
  size_t turn_ = 0;
  std::vector<double> first_s_;
  PeerLatencies result_;
};

}  // namespace

PeerLatencies ServeByPeer(std::span<const planner::WorkloadRequest> workload,
                          const scheduler::LatencyModel& latency, const PeerOptions& options) {
  return Servers(workload, latency, options).Run();
}

}  // namespace tandem::bench
