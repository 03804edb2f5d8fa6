// `./dev bench interference`: what arriving prompts do to sequences that are being decoded. Eight
// sequences decode, alone and while long prompts come; times between their tokens as a client sees
// them, and each sequence's mean (TPOT), for Tandem's arrangements and llama.cpp's server, on two
// pinned cores. With --control also beside a thread that keeps the other core as busy as the
// prompts do, with arithmetic: what a machine of two cores alone makes of it.
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "base/clock.h"
#include "tests/bench/goodput/attainment.h"
#include "tests/bench/goodput/systems.h"
#include "tests/bench/goodput/workload.h"

ABSL_FLAG(std::vector<std::string>, systems,
          std::vector<std::string>({"split", "mixed", "llama-1x2", "llama-2x1"}),
          "Of split, mixed, llama-1x2 and llama-2x1");
ABSL_FLAG(std::string, model, TANDEM_SOURCE_DIR "/models/demo-q8_0.gguf", "GGUF file");
ABSL_FLAG(uint32_t, rounds, 5, "Runs alone and runs with prompts, alternating");
ABSL_FLAG(uint32_t, sequences, 8, "That decode");
ABSL_FLAG(uint32_t, tokens, 800, "That each of them generates");
ABSL_FLAG(uint32_t, prompt_tokens, 512, "Of each prompt that comes");
ABSL_FLAG(double, load, 0.6, "Share of the time that one core needs for the prompts");
ABSL_FLAG(double, tpot_slo_ms, 0, "Tandem's tpot_objective; 0: its default");
ABSL_FLAG(std::vector<std::string>, worker_flags, {}, "Further flags of Tandem's workers");
ABSL_FLAG(uint32_t, prompt_output, 2,
          "Tokens generated after each prompt. 1: its KV goes nowhere; else it joins the sequences "
          "for a step");
ABSL_FLAG(bool, control, false, "Also beside a busy core that serves nobody");
ABSL_FLAG(std::string, json, "", "Write the figures there");

namespace tandem::bench {
namespace {

/// Prompts come for so many times as long as the sequences take alone.
constexpr double kPromptsFor = 2;

struct Gaps {
  std::vector<double> seconds;
  /// Of each sequence, the mean.
  std::vector<double> tpot_s;
  double median() const { return Quantile(seconds, 0.5); }
  double p99() const { return Quantile(seconds, 0.99); }
  double p999() const { return Quantile(seconds, 0.999); }
  nlohmann::json Json() const {
    return {{"median_s", median()},
            {"p99_s", p99()},
            {"p999_s", p999()},
            {"n", seconds.size()},
            {"tpot_median_s", Quantile(tpot_s, 0.5)},
            {"tpot_p99_s", Quantile(tpot_s, 0.99)}};
  }
};

/// The decoding sequences, and then `prompts` long ones, `interval_s` apart.
std::vector<Arrival> Requests(uint32_t round, size_t prompts, double interval_s) {
  std::vector<Arrival> arrivals;
  const uint32_t n = absl::GetFlag(FLAGS_sequences);
  for (uint32_t i = 0; i < n; ++i) {
    arrivals.push_back({.prompt = RandomPrompt(64, 100 * round + i),
                        .output_tokens = absl::GetFlag(FLAGS_tokens)});
  }
  for (size_t i = 0; i < prompts; ++i) {
    arrivals.push_back({.at_s = interval_s * static_cast<double>(i + 1),
                        .prompt = RandomPrompt(absl::GetFlag(FLAGS_prompt_tokens),
                                               static_cast<uint32_t>(10'000 + 100 * round + i)),
                        .output_tokens = absl::GetFlag(FLAGS_prompt_output)});
  }
  return arrivals;
}

/// Adds the times between the sequences' tokens while all of them decode; returns how long that
/// was.
double Measure(System& system, const std::vector<Arrival>& arrivals, Gaps& gaps) {
  const std::vector<Outcome> outcomes = system.client().Run(arrivals, 1);
  const size_t n = absl::GetFlag(FLAGS_sequences);
  double begin_s = 0, end_s = HUGE_VAL;
  for (size_t i = 0; i < outcomes.size(); ++i) {
    if (!outcomes[i].complete()) {
      std::fprintf(stderr, "bench_interference: a request failed: %s\n", outcomes[i].error.c_str());
      std::exit(1);
    }
    if (i >= n) continue;
    begin_s = std::max(begin_s, outcomes[i].token_at_s.front());
    end_s = std::min(end_s, outcomes[i].token_at_s.back());
  }
  for (size_t i = 0; i < n; ++i) {
    const Outcome& outcome = outcomes[i];
    double sum_s = 0;
    size_t n_tokens = 0;
    for (size_t k = 1; k < outcome.token_at_s.size(); ++k) {
      if (outcome.token_at_s[k - 1] < begin_s || outcome.token_at_s[k] > end_s) continue;
      gaps.seconds.push_back(outcome.token_at_s[k] - outcome.token_at_s[k - 1]);
      // Tokens that came in one message.
      gaps.seconds.insert(gaps.seconds.end(), outcome.token_counts[k] - 1, 0.0);
      sum_s += outcome.token_at_s[k] - outcome.token_at_s[k - 1];
      n_tokens += outcome.token_counts[k];
    }
    gaps.tpot_s.push_back(sum_s / static_cast<double>(n_tokens));
  }
  return end_s - begin_s;
}

/// Keeps a core busy for a share of the time, as prompts of `interval_s` would. The core of the
/// first worker, which prefills where the phases are split.
class BusyCore {
 public:
  explicit BusyCore(double interval_s)
      : thread_([this, interval_s] { Burn(interval_s * absl::GetFlag(FLAGS_load), interval_s); }) {}
  ~BusyCore() {
    stop_ = true;
    thread_.join();
  }

 private:
  void Burn(double busy_s, double interval_s) {
    cpu_set_t first;
    CPU_ZERO(&first);
    CPU_SET(0, &first);
    sched_setaffinity(0, sizeof first, &first);
    double sum = 1;
    for (Stopwatch since; !stop_; since = Stopwatch()) {
      while (since.seconds() < busy_s) sum = std::sqrt(sum + 1);
      std::this_thread::sleep_for(std::chrono::duration<double>(interval_s - since.seconds()));
    }
    result_ = sum;
  }
  std::atomic<bool> stop_{false};
  std::atomic<double> result_{0};  // so that the arithmetic is done
  std::thread thread_;
};

void PrintTimes(const Gaps& gaps) {
  std::printf(" |%7.2f %7.2f %7.2f %7.2f %7.2f", 1e3 * gaps.median(), 1e3 * gaps.p99(),
              1e3 * gaps.p999(), 1e3 * Quantile(gaps.tpot_s, 0.5),
              1e3 * Quantile(gaps.tpot_s, 0.99));
}

void PrintRow(const std::string& name, const std::string& beside, const Gaps& gaps,
              const Gaps& alone) {
  std::printf("%-10s %-8s", name.c_str(), beside.c_str());
  PrintTimes(gaps);
  if (&gaps != &alone) {
    const auto times = [&](double share) {
      return Quantile(gaps.seconds, share) / Quantile(alone.seconds, share);
    };
    const auto tpot_times = [&](double share) {
      return Quantile(gaps.tpot_s, share) / Quantile(alone.tpot_s, share);
    };
    std::printf(" |%7.2f %7.2f %7.2f %7.2f %7.2f", times(0.5), times(0.99), times(0.999),
                tpot_times(0.5), tpot_times(0.99));
  }
  std::printf("\n");
}

nlohmann::json MeasureSystem(const std::string& name) {
  auto system = StartSystem(name, {.model = absl::GetFlag(FLAGS_model),
                                   .sequences = absl::GetFlag(FLAGS_sequences) + 4,
                                   .tpot_slo_s = absl::GetFlag(FLAGS_tpot_slo_ms) / 1e3,
                                   .worker_flags = absl::GetFlag(FLAGS_worker_flags)});
  Gaps warm_up, alone, with_prompts, busy;
  double window_s = Measure(*system, Requests(0, 0, 0), warm_up);
  const Arrival prompt{.prompt = RandomPrompt(absl::GetFlag(FLAGS_prompt_tokens), 1),
                       .output_tokens = absl::GetFlag(FLAGS_prompt_output)};
  std::vector<double> ttft;
  for (int i = 0; i < 3; ++i) ttft.push_back(system->client().Run({&prompt, 1}, 1)[0].ttft_s());
  const double interval_s = Quantile(ttft, 0.5) / absl::GetFlag(FLAGS_load);
  for (uint32_t round = 1; round <= absl::GetFlag(FLAGS_rounds); ++round) {
    window_s = Measure(*system, Requests(2 * round, 0, 0), alone);
    const auto n = static_cast<size_t>(std::max(1.0, kPromptsFor * window_s / interval_s));
    Measure(*system, Requests(2 * round + 1, n, interval_s), with_prompts);
    if (!absl::GetFlag(FLAGS_control)) continue;
    const BusyCore beside(interval_s);
    Measure(*system, Requests(2 * round, 0, 0), busy);
  }
  PrintRow(name, "nothing", alone, alone);
  PrintRow(name, "prompts", with_prompts, alone);
  nlohmann::json out = {{"system", name},
                        {"alone", alone.Json()},
                        {"with_prompts", with_prompts.Json()},
                        {"interval_s", interval_s}};
  if (absl::GetFlag(FLAGS_control)) {
    PrintRow(name, "a loop", busy, alone);
    out["beside_a_loop"] = busy.Json();
  }
  std::fflush(stdout);
  return out;
}

int Main() {
  std::printf("%-10s %-8s |%39s |%39s\n", "system", "beside", "ms between tokens; TPOT  ",
              "times what it is beside nothing");
  std::printf("%-10s %-8s", "", "");
  for (int i = 0; i < 2; ++i) {
    std::printf(" |%7s %7s %7s %7s %7s", "median", "p99", "p99.9", "median", "p99");
  }
  std::printf("\n");
  nlohmann::json out;
  for (const std::string& name : absl::GetFlag(FLAGS_systems)) out.push_back(MeasureSystem(name));
  if (const std::string path = absl::GetFlag(FLAGS_json); !path.empty()) {
    std::ofstream(path) << out.dump(1) << "\n";
  }
  return 0;
}

}  // namespace
}  // namespace tandem::bench

int main(int argc, char** argv) {
  absl::ParseCommandLine(argc, argv);
  return tandem::bench::Main();
}
