// `./dev bench interference`: what arriving prompts do to sequences that are being decoded. Eight
// sequences decode, alone and while long prompts come; times between their tokens as a client sees
// them, for Tandem's arrangements and llama.cpp's server, on two pinned cores.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
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
ABSL_FLAG(std::string, json, "", "Write the figures there");

namespace tandem::bench {
namespace {

/// Prompts come for so many times as long as the sequences take alone.
constexpr double kPromptsFor = 2;

struct Gaps {
  std::vector<double> seconds;
  double median() const { return Quantile(seconds, 0.5); }
  double p99() const { return Quantile(seconds, 0.99); }
  double p999() const { return Quantile(seconds, 0.999); }
  nlohmann::json Json() const {
    return {{"median_s", median()}, {"p99_s", p99()}, {"p999_s", p999()}, {"n", seconds.size()}};
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
    // Two tokens: their KV goes all the way into the decoding batch.
    arrivals.push_back({.at_s = interval_s * static_cast<double>(i + 1),
                        .prompt = RandomPrompt(absl::GetFlag(FLAGS_prompt_tokens),
                                               static_cast<uint32_t>(10'000 + 100 * round + i)),
                        .output_tokens = 2});
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
    for (size_t k = 1; k < outcome.token_at_s.size(); ++k) {
      if (outcome.token_at_s[k - 1] < begin_s || outcome.token_at_s[k] > end_s) continue;
      gaps.seconds.push_back(outcome.token_at_s[k] - outcome.token_at_s[k - 1]);
      // Tokens that came in one message.
      gaps.seconds.insert(gaps.seconds.end(), outcome.token_counts[k] - 1, 0.0);
    }
  }
  return end_s - begin_s;
}

nlohmann::json MeasureSystem(const std::string& name) {
  auto system = StartSystem(name, {.model = absl::GetFlag(FLAGS_model),
                                   .sequences = absl::GetFlag(FLAGS_sequences) + 4,
                                   .tpot_slo_s = absl::GetFlag(FLAGS_tpot_slo_ms) / 1e3,
                                   .worker_flags = absl::GetFlag(FLAGS_worker_flags)});
  Gaps warm_up, alone, with_prompts;
  double window_s = Measure(*system, Requests(0, 0, 0), warm_up);
  const Arrival prompt{.prompt = RandomPrompt(absl::GetFlag(FLAGS_prompt_tokens), 1),
                       .output_tokens = 2};
  std::vector<double> ttft;
  for (int i = 0; i < 3; ++i) ttft.push_back(system->client().Run({&prompt, 1}, 1)[0].ttft_s());
  const double interval_s = Quantile(ttft, 0.5) / absl::GetFlag(FLAGS_load);
  for (uint32_t round = 1; round <= absl::GetFlag(FLAGS_rounds); ++round) {
    window_s = Measure(*system, Requests(2 * round, 0, 0), alone);
    const auto n = static_cast<size_t>(std::max(1.0, kPromptsFor * window_s / interval_s));
    Measure(*system, Requests(2 * round + 1, n, interval_s), with_prompts);
  }
  std::printf("%-10s", name.c_str());
  for (const Gaps* gaps : {&alone, &with_prompts}) {
    std::printf(" |%8.2f %8.2f %8.2f", 1e3 * gaps->median(), 1e3 * gaps->p99(), 1e3 * gaps->p999());
  }
  std::printf(" |%8.2f %8.2f %8.2f | %6.0f\n", with_prompts.median() / alone.median(),
              with_prompts.p99() / alone.p99(), with_prompts.p999() / alone.p999(),
              1e3 * interval_s);
  std::fflush(stdout);
  return {{"system", name},
          {"alone", alone.Json()},
          {"with_prompts", with_prompts.Json()},
          {"interval_s", interval_s}};
}

int Main() {
  std::printf("%-10s |%8s %8s %8s |%8s %8s %8s |%8s %8s %8s | %s\n", "ms between", "alone", "", "",
              "with", "prompts", "", "with /", "alone", "", "a prompt");
  std::printf("%-10s |%8s %8s %8s |%8s %8s %8s |%8s %8s %8s | %s\n", "tokens", "median", "p99",
              "p99.9", "median", "p99", "p99.9", "median", "p99", "p99.9", "every ms");
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
