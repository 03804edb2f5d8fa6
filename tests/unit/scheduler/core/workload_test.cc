// Dispatch under load, simulated: prefill workers that compute prompts one after another, keep the
// prefixes that they have seen, and report now and then. What is judged is what happens, not what
// was predicted.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <list>
#include <random>
#include <vector>

#include "scheduler/core/dispatcher.h"

namespace tandem::scheduler {
namespace {

constexpr double kReportEvery = 0.1;
constexpr double kKvBytesPerToken = 20000;

struct SimRequest {
  double arrival_s = 0;
  uint32_t prefix = 0, prefix_tokens = 0, prompt_tokens = 0;
};

/// Serves requests in order of arrival on the worker that `place` names.
class Simulation {
 public:
  Simulation(int n_workers, size_t cached_prefixes) : cached_prefixes_(cached_prefixes) {
    store_ = dispatcher_.Add();
    for (int i = 0; i < n_workers; ++i) {
      workers_.push_back({.index = dispatcher_.Add()});
      Report(workers_.back(), 0);
    }
    const WorkerIndex decode = dispatcher_.Add();
    dispatcher_.Report(decode, {.takes_decode = true, .max_sequences = 1u << 20}, 0);
  }

  /// The store holds every prefix; links from it to the workers.
  void UseStore(const std::function<double(int)>& bytes_per_s) {
    use_store_ = true;
    for (size_t i = 0; i < workers_.size(); ++i) {
      dispatcher_.SetLink(store_, workers_[i].index,
                          {.bytes_per_s = bytes_per_s(static_cast<int>(i)), .rtt_s = 1e-3});
    }
  }

  void Run(const std::vector<SimRequest>& requests, bool round_robin) {
    double next_report_s = 0;
    for (const SimRequest& request : requests) {
      for (; next_report_s <= request.arrival_s; next_report_s += kReportEvery) {
        for (Worker& worker : workers_) Report(worker, next_report_s);
      }
      Work work = {.prompt_tokens = request.prompt_tokens,
                   .expected_output_tokens = 50,
                   .kv_bytes_per_token = kKvBytesPerToken};
      if (use_store_) work.cached.push_back({store_, request.prefix_tokens});
      for (Worker& worker : workers_) {
        if (worker.Has(request.prefix))
          work.cached.push_back({worker.index, request.prefix_tokens});
      }
      if (round_robin) {
        Serve(workers_[turn_++ % workers_.size()], request, work.cached);
        continue;
      }
      const auto decision = dispatcher_.Choose(work, request.arrival_s, random_);
      ASSERT_TRUE(decision.ok()) << decision.status();
      const AssignmentId id = dispatcher_.Assign(work, decision->choice, request.arrival_s);
      dispatcher_.ReleaseDecode(id);
      const auto worker = std::find_if(workers_.begin(), workers_.end(), [&](const Worker& each) {
        return each.index == decision->choice.prefill;
      });
      worker->running.emplace_back(Serve(*worker, request, work.cached), id);
    }
  }

  double mean_ttft_s() const { return ttft_s_ / static_cast<double>(n_); }
  double hit_rate() const { return static_cast<double>(hits_) / static_cast<double>(n_); }
  /// The busiest worker's time over the mean.
  double imbalance() const {
    double most = 0, sum = 0;
    for (const Worker& worker : workers_) {
      most = std::max(most, worker.busy_s);
      sum += worker.busy_s;
    }
    return most * static_cast<double>(workers_.size()) / sum;
  }

 private:
  struct Worker {
    WorkerIndex index = kNoWorker;
    double free_s = 0, busy_s = 0;
    std::list<uint32_t> prefixes;  // the last used first
    std::list<std::pair<double, AssignmentId>> running;

    bool Has(uint32_t prefix) const {
      return std::find(prefixes.begin(), prefixes.end(), prefix) != prefixes.end();
    }
  };

  void Report(Worker& worker, double now_s) {
    while (!worker.running.empty() && worker.running.front().first <= now_s) {
      dispatcher_.ReleasePrefill(worker.running.front().second);
      worker.running.pop_front();
    }
    const double token_s = model_.prefill.Seconds(512) / 512;
    const double ahead_s = std::max(0.0, worker.free_s - now_s);
    dispatcher_.Report(worker.index,
                       {.takes_prefill = true,
                        .tokens_to_compute = static_cast<uint64_t>(ahead_s / token_s),
                        .latency = model_},
                       now_s);
  }

  /// What really happens: the prefix is computed, or loaded from where that is soonest, behind what
  /// the worker has to do already. Returns when it ends.
  double Serve(Worker& worker, const SimRequest& request, const std::vector<CachedAt>& cached) {
    const double start_s = std::max(worker.free_s, request.arrival_s);
    double end_s = start_s + model_.PromptSeconds(request.prompt_tokens);
    bool hit = false;
    const double rest_s =
        model_.PromptSeconds(request.prompt_tokens - request.prefix_tokens, request.prefix_tokens);
    for (const CachedAt& at : cached) {
      const Link link = dispatcher_.LinkBetween(at.worker, worker.index);
      const double loaded_s =
          request.arrival_s + link.rtt_s + at.tokens * kKvBytesPerToken / link.bytes_per_s;
      const double with_s = std::max(start_s, loaded_s) + rest_s;
      hit |= with_s < end_s;
      end_s = std::min(end_s, with_s);
    }
    hits_ += hit;
    ++n_;
    ttft_s_ += end_s - request.arrival_s;
    worker.busy_s += end_s - start_s;
    worker.free_s = end_s;
    worker.prefixes.remove(request.prefix);
    worker.prefixes.push_front(request.prefix);
    if (worker.prefixes.size() > cached_prefixes_) worker.prefixes.pop_back();
    return end_s;
  }

  const LatencyModel model_ = [] {
    LatencyModel model;
    model.prefill = {.base_s = 5e-3, .per_token_s = 2e-4, .per_position_s = 0};
    model.prefill_samples = 1000;
    return model;
  }();
  const size_t cached_prefixes_;
  Dispatcher dispatcher_{{.report_lag_s = 0}};
  std::mt19937_64 random_{3};
  WorkerIndex store_ = kNoWorker;
  bool use_store_ = false;
  std::vector<Worker> workers_;
  size_t turn_ = 0, n_ = 0, hits_ = 0;
  double ttft_s_ = 0;
};

std::vector<SimRequest> Poisson(int n, double per_s, double shared, int n_prefixes, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::exponential_distribution<double> gap(per_s);
  std::vector<SimRequest> requests;
  double at_s = 0;
  for (int i = 0; i < n; ++i) {
    at_s += gap(random);
    const bool popular = std::uniform_real_distribution<double>(0, 1)(random) < shared;
    const auto own = static_cast<uint32_t>(random() % 128);
    requests.push_back({.arrival_s = at_s,
                        .prefix = popular ? 0 : 1 + static_cast<uint32_t>(random() % n_prefixes),
                        .prefix_tokens = 1024,
                        .prompt_tokens = 1024 + 64 + own});
  }
  return requests;
}

/// 80 % of the requests share one prefix, the others have one of 100. A worker's cache holds 40.
/// The workers can do about 340 requests a second: a third and two thirds of that.
TEST(SkewedWorkloadTest, SpreadsTheLoadAndKeepsTheHits) {
  for (const double per_s : {120.0, 240.0}) {
    const auto requests = Poisson(6000, per_s, 0.8, 100, 11);
    Simulation simulation(8, 40);
    simulation.Run(requests, /*round_robin=*/false);
    // The best: every prefix is computed once.
    const double best = 1 - 101.0 / 6000;
    printf("%.0f/s: imbalance %.2f, hit rate %.3f of %.3f, mean TTFT %.3f s\n", per_s,
           simulation.imbalance(), simulation.hit_rate(), best, simulation.mean_ttft_s());
    EXPECT_LE(simulation.imbalance(), 1.5) << per_s;
    EXPECT_GE(simulation.hit_rate(), 0.9 * best) << per_s;
  }
}

/// Cached prefixes lie in a store; half of the workers are ten times further from it.
TEST(LinksTest, UnequalLinksBeatRoundRobinAndEqualOnesLoseNothing) {
  const auto requests = Poisson(4000, 12, 0, 1u << 20, 12);
  auto run = [&](const std::function<double(int)>& links, bool round_robin) {
    Simulation simulation(4, 0);
    simulation.UseStore(links);
    simulation.Run(requests, round_robin);
    return simulation.mean_ttft_s();
  };
  auto unequal = [](int worker) { return worker % 2 == 0 ? 1e9 : 1e8; };
  auto equal = [](int) { return 1e9; };
  const double ours = run(unequal, false), theirs = run(unequal, true);
  printf("10:1 links: mean TTFT %.4f s, round robin %.4f s (%.0f %% less)\n", ours, theirs,
         100 * (1 - ours / theirs));
  EXPECT_LE(ours, 0.8 * theirs);
  const double ours_equal = run(equal, false), theirs_equal = run(equal, true);
  printf("equal links: mean TTFT %.4f s, round robin %.4f s\n", ours_equal, theirs_equal);
  EXPECT_LE(ours_equal, 1.02 * theirs_equal);  // drawing lots costs no more
}

}  // namespace
}  // namespace tandem::scheduler
