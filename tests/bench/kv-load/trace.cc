#include "tests/bench/kv-load/trace.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <thread>

#include "tests/bench/kv-load/oracle.h"

namespace tandem::bench {
namespace {

using nlohmann::json;

constexpr double kHighMbit = 100, kLowMbit = 10, kTrickleMbit = 0.5;
/// Changes fall between the load's begin and this.
constexpr double kHorizonS = 0.4;
constexpr double kHalfPeriodS = 0.2, kTrickleS = 0.3;
constexpr int kHalfPeriods = 8;
const std::vector<std::string> kWays = {"adapter", "q1", "lossless"};

/// When the link gets which rate. The first is there before the load begins.
struct Change {
  double at_s = 0, mbit_per_s = 0;
};
struct Kind {
  const char* name;
  /// `phase_s`: the time that differs between contexts.
  std::function<std::vector<Change>(double phase_s)> plan;
};

/// Begins high or low, by the phase.
std::vector<Change> SquareWave(double phase_s) {
  bool high = std::fmod(phase_s, 2 * kHalfPeriodS) < kHalfPeriodS;
  std::vector<Change> changes = {{0, high ? kHighMbit : kLowMbit}};
  for (int i = 0; i < kHalfPeriods; ++i) {
    high = !high;
    changes.push_back(
        {std::fmod(phase_s, kHalfPeriodS) + i * kHalfPeriodS, high ? kHighMbit : kLowMbit});
  }
  return changes;
}

std::vector<Kind> Kinds() {
  return {
      {"step down",
       [](double s) -> std::vector<Change> {
         return {{0, kHighMbit}, {s, kLowMbit}};
       }},
      {"step up",
       [](double s) -> std::vector<Change> {
         return {{0, kLowMbit}, {s, kHighMbit}};
       }},
      {"square wave", SquareWave},
      {"cut of 300 ms",
       [](double s) -> std::vector<Change> {
         return {{0, kHighMbit}, {s, kTrickleMbit}, {s + kTrickleS, kHighMbit}};
       }},
  };
}

LinkTrace TraceOf(const std::vector<Change>& changes) {
  std::vector<LinkTrace::Step> steps;
  for (const Change& change : changes) steps.push_back({change.at_s, change.mbit_per_s * 1e6 / 8});
  return LinkTrace(std::move(steps));
}

class Traces {
 public:
  Traces(BenchPair& pair, const Context& context, const TraceOptions& options)
      : pair_(pair), options_(options) {
    const json& measured = measured_ = pair.Run({{"way", "costs"}});
    costs_.text_s = measured["text_s"].get<std::vector<double>>();
    costs_.rest_s = measured["rest_s"];
    costs_.decode_s = measured["decode_s"].get<std::map<std::string, double>>();
    for (const auto& [level, unused] : costs_.decode_s) {
      costs_.chunk_bytes[level] = pair.bytes().at(level) / context.n_chunks();
    }
    const double began = Now();
    for (int i = 0; i < kTries; ++i) pair_.SetRate(kHighMbit);
    lead_s_ = (Now() - began) / kTries;
    AddOverhead();
  }

  const json& costs() const { return measured_; }

  json Run(const Kind& kind) {
    json runs = json::array();
    std::map<std::string, uint32_t> missed;
    for (uint32_t i = 0; i < options_.contexts; ++i) {
      const double phase_s = kHorizonS * (i + 0.5) / options_.contexts;
      const std::vector<Change> plan = kind.plan(phase_s);
      const double limit_s = options_.slack * BestChoice(TraceOf(plan), costs_).ttft_s;
      double oracle_s = 0;
      for (const std::string& way : kWays) {
        json run = LoadOnce(way, plan, limit_s);
        missed[way] += run["ttft_s"] > limit_s ? 1 : 0;
        oracle_s = std::max<double>(oracle_s, run["oracle_s"]);
        run.update(
            {{"trace", kind.name}, {"phase_s", phase_s}, {"way", way}, {"limit_s", limit_s}});
        runs.push_back(run);
      }
      // It could not have done it on the changes as they came to be.
      missed["oracle"] += oracle_s > limit_s ? 1 : 0;
    }
    const auto share = [&](const char* way) { return 100.0 * missed[way] / options_.contexts; };
    std::printf("%-14s %9.0f%% %9.0f%% %9.0f%% %9.0f%%\n", kind.name, share("oracle"),
                share("adapter"), share("q1"), share("lossless"));
    std::fflush(stdout);
    return runs;
  }

 private:
  static constexpr int kTries = 5;

  /// What a whole load takes on a link that does not change, beyond the sum of its parts, nobody
  /// can avoid.
  void AddOverhead() {
    std::vector<double> seconds;
    for (int i = 0; i < kTries; ++i) seconds.push_back(pair_.Run({{"way", "q1"}})["ttft_s"]);
    std::sort(seconds.begin(), seconds.end());
    Costs q1 = costs_;
    q1.chunk_bytes = {{"q1", costs_.chunk_bytes["q1"]}};
    // Without text, as the measured loads are.
    std::fill(q1.text_s.begin(), q1.text_s.end(), 1e9);
    const double parts_s = BestChoice(TraceOf({{0, kHighMbit}}), q1).ttft_s;
    costs_.rest_s += std::max(0.0, seconds[kTries / 2] - parts_s);
    measured_["rest_and_overhead_s"] = costs_.rest_s;
  }

  /// Loads while the link changes as planned; "oracle_s" is by the changes' real times.
  json LoadOnce(const std::string& way, const std::vector<Change>& plan, double limit_s) {
    pair_.SetRate(plan[0].mbit_per_s);
    pair_.Settle();
    const double began = Now();
    pair_.loader().Send({{"way", way}, {"objective_s", limit_s}});
    std::vector<Change> real = {plan[0]};
    for (size_t i = 1; i < plan.size(); ++i) {
      const double wait_s = began + plan[i].at_s - lead_s_ - Now();
      if (wait_s > 0) std::this_thread::sleep_for(std::chrono::duration<double>(wait_s));
      pair_.SetRate(plan[i].mbit_per_s);
      real.push_back({Now() - began, plan[i].mbit_per_s});
    }
    json result = pair_.loader().Receive();
    const OracleChoice choice = BestChoice(TraceOf(real), costs_);
    result["oracle_s"] = choice.ttft_s;
    result["oracle_text_chunks"] = choice.text_chunks;
    result["oracle_level"] = choice.level;
    for (const Change& change : real) {
      result["link"].push_back({{"at_s", change.at_s}, {"mbit_per_s", change.mbit_per_s}});
    }
    return result;
  }

  BenchPair& pair_;
  const TraceOptions options_;
  json measured_;
  Costs costs_;
  /// How long a change takes to be made.
  double lead_s_ = 0;
};

}  // namespace

json RunTraces(BenchPair& pair, const Context& context, const TraceOptions& options) {
  pair.SetRate(kHighMbit);
  for (const std::string& way : kWays) pair.Run({{"way", way}});
  pair.Run({{"way", "recompute"}});
  Traces traces(pair, context, options);
  std::printf(
      "%s: contexts of %u tokens that miss the time limit, %.2f times what the oracle takes; "
      "%u loads each\n%-14s %10s %10s %10s %10s\n",
      context.name.c_str(), context.n_tokens, options.slack, options.contexts, "link", "oracle",
      "Tandem", "q1 only", "lossless");
  json runs = json::array();
  for (const Kind& kind : Kinds()) {
    for (json& run : traces.Run(kind)) runs.push_back(std::move(run));
  }
  return {{"slack", options.slack}, {"costs", traces.costs()}, {"runs", runs}};
}

}  // namespace tandem::bench
