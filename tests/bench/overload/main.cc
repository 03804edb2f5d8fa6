// `./dev bench overload`: what becomes of goodput, memory and latency when five times as many
// requests arrive as can be served, how quickly and with which advice the others are refused, how
// soon all is well again; and what a tenant that floods does to another.
#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/strings/str_cat.h"
#include "tests/bench/goodput/attainment.h"
#include "tests/bench/goodput/systems.h"
#include "tests/bench/goodput/workload.h"

ABSL_FLAG(std::string, system, "split", "split or mixed");
ABSL_FLAG(std::string, workload, "code", "chat, code or summary");
ABSL_FLAG(std::string, model, TANDEM_SOURCE_DIR "/models/demo-q8_0.gguf", "GGUF file");
ABSL_FLAG(double, overload, 5, "Times the capacity");
ABSL_FLAG(double, seconds, 60, "Of overload");
ABSL_FLAG(double, other_seconds, 15, "Of each other part");
ABSL_FLAG(double, ttft_slo, 8, "TTFT objective in unloaded TTFTs");
ABSL_FLAG(double, tpot_slo, 8, "TPOT objective in unloaded TPOTs");
ABSL_FLAG(std::vector<std::string>, worker_flags, {}, "Further flags of the workers");
ABSL_FLAG(std::vector<std::string>, router_flags, {}, "Further flags of the router");
ABSL_FLAG(std::vector<std::string>, parts, std::vector<std::string>({"overload", "flood"}),
          "Of overload and flood (what a tenant that floods does to another)");
ABSL_FLAG(std::string, json, "", "Write the figures there");

namespace tandem::bench {
namespace {

using nlohmann::json;

/// The largest resident memory while the object is.
class MemoryWatch {
 public:
  explicit MemoryWatch(const System& system) : system_(system) {
    thread_ = std::thread([this] {
      while (!done_) {
        most_ = std::max(most_.load(), system_.ResidentBytes());
        std::this_thread::sleep_for(std::chrono::milliseconds(100));
      }
    });
  }
  ~MemoryWatch() {
    done_ = true;
    thread_.join();
  }
  uint64_t most_bytes() const { return most_; }

 private:
  const System& system_;
  std::atomic<uint64_t> most_{0};
  std::atomic<bool> done_{false};
  std::thread thread_;
};

class Overload {
 public:
  Overload() {
    const Workload* workload = FindWorkload(absl::GetFlag(FLAGS_workload));
    if (workload == nullptr) Die("--workload: there are chat, code and summary");
    workload_ = *workload;
    options_ = {.model = absl::GetFlag(FLAGS_model),
                .worker_flags = absl::GetFlag(FLAGS_worker_flags),
                .router_flags = {"--tenants", "steady,flood", "--max-requests", "64"}};
    const Outcome alone = MeasureAlone(*StartSystem(absl::GetFlag(FLAGS_system), options_));
    slo_ = {.ttft_s = absl::GetFlag(FLAGS_ttft_slo) * alone.ttft_s(),
            .tpot_s = absl::GetFlag(FLAGS_tpot_slo) * alone.tpot_s()};
    options_.ttft_slo_s = slo_.ttft_s;
    options_.tpot_slo_s = slo_.tpot_s;
    // What would be late is refused: serving it late helps nobody.
    options_.router_flags.push_back("--max-ttft");
    options_.router_flags.push_back(absl::StrCat(1e3 * slo_.ttft_s, "ms"));
    for (const auto& flag : absl::GetFlag(FLAGS_router_flags))
      options_.router_flags.push_back(flag);
    system_ = StartSystem(absl::GetFlag(FLAGS_system), options_);
    MeasureAlone(*system_);
    std::printf("objectives: TTFT %.0f ms, TPOT %.2f ms\n", 1e3 * slo_.ttft_s, 1e3 * slo_.tpot_s);
  }

  json Run() {
    const double capacity = MeasureCapacity();
    std::printf("capacity: %.2f requests a second\n", capacity);
    json out = {{"capacity_per_s", capacity}};
    for (const std::string& part : absl::GetFlag(FLAGS_parts)) {
      if (part == "overload") {
        ReportOverload(capacity, out);
      } else if (part == "flood") {
        ReportFlood(capacity, out);
      } else {
        Die("--parts: there are overload and flood");
      }
    }
    return out;
  }

 private:
  static constexpr double kCalmAfterS = 5;
  static constexpr uint32_t kFloodRounds = 4;
  /// Of the capacity, where the peak of goodput is looked for.
  static constexpr std::array kShares = {0.6, 0.8, 1.0};

  [[noreturn]] static void Die(const std::string& why) {
    std::fprintf(stderr, "bench_overload: %s\n", why.c_str());
    std::exit(1);
  }

  void ReportOverload(double capacity, json& out) {
    const double other_s = absl::GetFlag(FLAGS_other_seconds);
    const auto before = Send({{"steady", 0.4 * capacity}}, other_s);
    const std::array<double, kShares.size()> first = MeasureGoodputs(capacity);

    const double calm_bytes = static_cast<double>(system_->ResidentBytes());
    const double seconds = absl::GetFlag(FLAGS_seconds);
    std::vector<Outcome> overloaded;
    {
      const MemoryWatch memory(*system_);
      overloaded = Send({{"steady", absl::GetFlag(FLAGS_overload) * capacity}}, seconds);
      out["memory_growth"] = static_cast<double>(memory.most_bytes()) / calm_bytes;
    }
    const auto after = Send({{"steady", 0.4 * capacity}}, other_s + kCalmAfterS);
    // Before and after: the machine's speed drifts.
    const std::array<double, kShares.size()> second = MeasureGoodputs(capacity);
    double peak = 0;
    for (size_t i = 0; i < kShares.size(); ++i) {
      peak = std::max(peak, (first[i] + second[i]) / 2);
    }
    out["peak_per_s"] = peak;

    out["goodput_of_peak"] = GoodPerSecond(overloaded, seconds) / peak;
    std::printf(
        "overload, %.0f times for %.0f s: %.2f a second within their objectives, %.0f %% of "
        "the peak; memory %.2f times that before\n",
        absl::GetFlag(FLAGS_overload), seconds, GoodPerSecond(overloaded, seconds),
        100 * out["goodput_of_peak"].get<double>(), out["memory_growth"].get<double>());
    ReportRefusals(overloaded, out);
    const double p50 = Ttft(before, 0.5, 0), late = Ttft(after, 0.5, kCalmAfterS);
    const double p90 = Ttft(before, 0.9, 0), late90 = Ttft(after, 0.9, kCalmAfterS);
    out["ttft_after"] = {{"p50", late / p50}, {"p90", late90 / p90}};
    std::printf("from %.0f s after: TTFT p50 %.0f ms (before %.0f), p90 %.0f ms (before %.0f)\n",
                kCalmAfterS, 1e3 * late, 1e3 * p50, 1e3 * late90, 1e3 * p90);
  }

  /// When so many come.
  double MeasureGoodput(double per_s) {
    const double seconds = absl::GetFlag(FLAGS_other_seconds);
    return GoodPerSecond(Send({{"steady", per_s}}, seconds), seconds);
  }

  /// At each of kShares.
  std::array<double, kShares.size()> MeasureGoodputs(double capacity) {
    std::array<double, kShares.size()> per_s;
    for (size_t i = 0; i < kShares.size(); ++i) {
      per_s[i] = MeasureGoodput(kShares[i] * capacity);
      std::printf("at %.1f of it: %.2f a second within their objectives\n", kShares[i], per_s[i]);
    }
    return per_s;
  }

  /// The median request, by its TTFT, of some that run alone.
  Outcome MeasureAlone(System& system) {
    std::vector<Outcome> outcomes;
    for (uint32_t i = 0; i < 7; ++i) {
      const Arrival arrival{
          .prompt = RandomPrompt(static_cast<uint32_t>(workload_.prompt_tokens), 5000 + i),
          .output_tokens = static_cast<uint32_t>(workload_.output_tokens),
          .tenant = "steady"};
      outcomes.push_back(system.client().Run({&arrival, 1}, 1)[0]);
      if (!outcomes.back().complete()) Die("a lone request failed: " + outcomes.back().error);
    }
    std::sort(outcomes.begin(), outcomes.end(),
              [](const auto& a, const auto& b) { return a.ttft_s() < b.ttft_s(); });
    return outcomes[outcomes.size() / 2];
  }

  /// Requests of each tenant at its rate, for so long. The first tenant's are the same for a seed.
  std::vector<Outcome> Send(const std::vector<std::pair<std::string, double>>& tenants,
                            double seconds, uint32_t seed = 0) {
    std::vector<Arrival> all;
    if (seed == 0) seed = ++seed_;
    for (const auto& [tenant, rate] : tenants) {
      std::vector<Arrival> trace = MakeTrace(
          workload_, {.requests = static_cast<uint32_t>(std::ceil(rate * seconds)), .seed = seed});
      seed = ++seed_;
      for (Arrival& arrival : trace) {
        arrival.at_s /= rate;
        arrival.tenant = tenant;
        all.push_back(std::move(arrival));
      }
    }
    std::sort(all.begin(), all.end(),
              [](const Arrival& a, const Arrival& b) { return a.at_s < b.at_s; });
    tenants_.clear();
    for (const Arrival& arrival : all) tenants_.push_back(arrival.tenant);
    return system_->client().Run(all, 1);
  }

  /// As many as can be in flight at once, again and again, count as full.
  double MeasureCapacity() {
    std::vector<Arrival> trace = MakeTrace(workload_, {.requests = 48, .seed = ++seed_});
    for (Arrival& arrival : trace) {
      arrival.at_s = 0;
      arrival.tenant = "steady";
    }
    const std::vector<Outcome> outcomes = system_->client().Run(trace, 1);
    double end_s = 0;
    size_t done = 0;
    for (const Outcome& outcome : outcomes) {
      if (!outcome.complete()) continue;
      ++done;
      end_s = std::max(end_s, outcome.end_s);
    }
    if (done == 0) Die("none of 48 requests at once succeeded: " + outcomes[0].error);
    return static_cast<double>(done) / end_s;
  }

  double GoodPerSecond(const std::vector<Outcome>& outcomes, double seconds) const {
    return Attainment(outcomes, slo_) * static_cast<double>(outcomes.size()) / seconds;
  }

  /// Of the completed requests due after `from_s`.
  static double Ttft(const std::vector<Outcome>& outcomes, double share, double from_s) {
    std::vector<double> ttft;
    for (const Outcome& outcome : outcomes) {
      if (outcome.complete() && outcome.due_s >= from_s) ttft.push_back(outcome.ttft_s());
    }
    return ttft.empty() ? HUGE_VAL : Quantile(ttft, share);
  }

  void ReportRefusals(const std::vector<Outcome>& outcomes, json& out) const {
    std::vector<double> took, delays;
    size_t complete = 0, other = 0;
    std::string error;
    for (const Outcome& outcome : outcomes) {
      if (outcome.refused) {
        took.push_back(outcome.end_s - outcome.sent_s);
        delays.push_back(outcome.retry_after_s);
      } else if (outcome.complete()) {
        ++complete;
      } else {
        ++other;
        error = outcome.error;
      }
    }
    std::printf("of %zu: %zu served, %zu refused, %zu failed otherwise%s%s\n", outcomes.size(),
                complete, took.size(), other, other > 0 ? ", the last: " : "", error.c_str());
    size_t late = 0, slow = 0;
    for (const Outcome& outcome : outcomes) {
      late += outcome.complete() && outcome.ttft_s() > slo_.ttft_s;
      slow += outcome.complete() && outcome.tpot_s() > slo_.tpot_s;
    }
    std::printf("of those served: %zu missed the TTFT objective, %zu that of TPOT\n", late, slow);
    ReportParts(outcomes);
    out["missed"] = {{"ttft", late}, {"tpot", slow}};
    out["requests"] = {{"served", complete}, {"refused", took.size()}, {"failed", other}};
    if (took.empty()) return;
    out["refusal_s"] = {{"p50", Quantile(took, 0.5)}, {"p99", Quantile(took, 0.99)}};
    out["retry_after_s"] = {{"least", Quantile(delays, 0)}, {"most", Quantile(delays, 1)}};
    const auto slowest =
        std::max_element(outcomes.begin(), outcomes.end(), [](const Outcome& a, const Outcome& b) {
          return (a.refused ? a.end_s - a.sent_s : 0) < (b.refused ? b.end_s - b.sent_s : 0);
        });
    std::printf("the slowest refusal: %s\n", slowest->error.c_str());
    std::printf("refusals: p50 %.2f ms, p99 %.2f ms; told to come back after %.2f to %.2f s\n",
                1e3 * Quantile(took, 0.5), 1e3 * Quantile(took, 0.99), Quantile(delays, 0),
                Quantile(delays, 1));
  }

  /// Where the time of those that were served went, on average.
  static void ReportParts(std::span<const Outcome> outcomes) {
    Outcome::Parts sum;
    double tokens = 0, n = 0;
    for (const Outcome& each : outcomes) {
      if (!each.complete()) continue;
      ++n;
      tokens += each.tokens - 1;
      sum.router_queue_s += each.parts.router_queue_s;
      sum.prefill_queue_s += each.parts.prefill_queue_s;
      sum.prefill_s += each.parts.prefill_s;
      sum.decode_queue_s += each.parts.decode_queue_s;
      sum.handoff_s += each.parts.handoff_s;
      sum.decode_s += each.parts.decode_s;
    }
    std::printf(
        "means, ms: in the router's queue %.0f, before prefill %.0f, prefill %.0f, before decode "
        "%.0f, handoff %.0f, decode %.0f (%.2f a token)\n",
        1e3 * sum.router_queue_s / n, 1e3 * sum.prefill_queue_s / n, 1e3 * sum.prefill_s / n,
        1e3 * sum.decode_queue_s / n, 1e3 * sum.handoff_s / n, 1e3 * sum.decode_s / n,
        1e3 * sum.decode_s / tokens);
  }

  /// Those whose first token took longest, and why.
  static void ReportSlowest(std::vector<Outcome> outcomes) {
    std::erase_if(outcomes, [](const Outcome& each) { return !each.complete(); });
    std::sort(outcomes.begin(), outcomes.end(),
              [](const auto& a, const auto& b) { return a.ttft_s() > b.ttft_s(); });
    for (size_t i = 0; i < std::min<size_t>(5, outcomes.size()); ++i) {
      const Outcome& each = outcomes[i];
      std::printf(
          "slow, due at %.2f s: %u prompt tokens, TTFT %.0f ms, of which in the router's queue "
          "%.0f, "
          "before prefill %.0f, prefill %.0f\n",
          each.due_s, each.prompt_tokens, 1e3 * each.ttft_s(), 1e3 * each.parts.router_queue_s,
          1e3 * each.parts.prefill_queue_s, 1e3 * each.parts.prefill_s);
    }
  }

  /// `most`: requests a second that can be computed.
  void ReportFlood(double most, json& out) {
    const double seconds = 2 * absl::GetFlag(FLAGS_other_seconds) / kFloodRounds;
    // A tenant below its share is below it of what can be served in time.
    const double capacity = MeasureGoodput(most);
    std::printf("when as many come: %.2f a second within their objectives\n", capacity);
    if (capacity == 0) Die("nothing is served in time at the capacity: no share to be below");
    const double steady = 0.3 * capacity;
    const double flood = absl::GetFlag(FLAGS_overload) * capacity;
    std::vector<Outcome> alone, own;
    // By turns: the machine's speed drifts.
    for (uint32_t round = 0; round < kFloodRounds; ++round) {
      const uint32_t seed = ++seed_;
      std::ranges::move(Send({{"steady", steady}}, seconds, seed), std::back_inserter(alone));
      auto both = Send({{"steady", steady}, {"flood", flood}}, seconds, seed);
      for (size_t i = 0; i < both.size(); ++i) {
        if (tenants_[i] == "steady") own.push_back(std::move(both[i]));
      }
    }
    ReportParts(alone);
    ReportSlowest(alone);
    ReportParts(own);
    ReportSlowest(own);
    auto refused = [](const std::vector<Outcome>& outcomes) {
      return std::count_if(outcomes.begin(), outcomes.end(),
                           [](const Outcome& each) { return !each.complete(); });
    };
    for (const double share : {0.5, 0.9, 0.99}) {
      const double before = Ttft(alone, share, 0), with = Ttft(own, share, 0);
      out["flood"][absl::StrCat("p", 100 * share)] = with / before;
      std::printf("another tenant floods: TTFT p%.0f %.0f ms, alone %.0f: %.2f times\n",
                  100 * share, 1e3 * with, 1e3 * before, with / before);
    }
    out["flood"]["not_served"] = refused(own);
    std::printf("of the steady tenant's %zu requests %zd were not served, alone %zd\n", own.size(),
                refused(own), refused(alone));
    for (const Outcome& each : own) {
      if (each.complete()) continue;
      std::printf("not served, due at %.2f s, %u prompt tokens: %s\n", each.due_s,
                  each.prompt_tokens, each.error.c_str());
    }
  }

  Workload workload_;
  SystemOptions options_;
  Slo slo_;
  std::unique_ptr<System> system_;
  std::vector<std::string> tenants_;  // of the last Send's requests
  uint32_t seed_ = 0;
};

}  // namespace
}  // namespace tandem::bench

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  absl::ParseCommandLine(argc, argv);
  const nlohmann::json out = tandem::bench::Overload().Run();
  if (const std::string path = absl::GetFlag(FLAGS_json); !path.empty()) {
    std::ofstream(path) << out.dump(1) << "\n";
  }
  return 0;
}
