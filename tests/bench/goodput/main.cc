// `./dev bench goodput`: how many requests a second are served within their objectives, by Tandem
// and by llama.cpp's own server, on two pinned cores with the same model and the same arrivals; and
// how tight the objectives may be at a given rate. The method is that of DistServe (OSDI'24,
// figures 8 and 9).
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "tests/bench/goodput/attainment.h"
#include "tests/bench/goodput/systems.h"
#include "tests/bench/goodput/workload.h"
#include "tests/support/plot.h"

ABSL_FLAG(std::vector<std::string>, workload, std::vector<std::string>({"chat", "code", "summary"}),
          "Of chat, code and summary");
ABSL_FLAG(std::vector<std::string>, arrivals, std::vector<std::string>({"poisson", "bursty"}),
          "Of poisson and bursty (gamma, coefficient of variation 3)");
ABSL_FLAG(std::vector<std::string>, systems, tandem::bench::SystemNames(),
          "Of llama-2x1, llama-1x2, split and mixed");
ABSL_FLAG(std::string, model, TANDEM_SOURCE_DIR "/models/demo-q8_0.gguf", "GGUF file");
ABSL_FLAG(uint32_t, requests, 100, "Requests at each rate");
ABSL_FLAG(double, step, 1.3, "Factor between neighbouring rates");
ABSL_FLAG(uint32_t, max_points, 8, "Rates measured at most for a system");
ABSL_FLAG(bool, quick, false, "Poisson arrivals, 40 requests a rate, a factor of 1.6");
ABSL_FLAG(uint32_t, seed, 1, "Of lengths, arrivals and prompts");
ABSL_FLAG(double, ttft_slo, 0, "TTFT objective in unloaded TTFTs; 0: the workload's own");
ABSL_FLAG(double, tpot_slo, 0, "TPOT objective in unloaded TPOTs; 0: the workload's own");
ABSL_FLAG(double, unloaded_ttft_ms, 0,
          "With --unloaded_tpot_ms: what to take for the peer's unloaded latency in place of "
          "measuring it, so that runs of two builds have the same objectives and rates");
ABSL_FLAG(double, unloaded_tpot_ms, 0, "See --unloaded_ttft_ms");
ABSL_FLAG(uint32_t, sequences, 8, "Slots of a llama.cpp server");
ABSL_FLAG(std::vector<std::string>, llama_flags, {}, "Further flags of llama.cpp's server");
ABSL_FLAG(std::vector<std::string>, worker_flags, {}, "Further flags of Tandem's workers");
ABSL_FLAG(std::vector<std::string>, router_flags, {}, "Further flags of Tandem's router");
ABSL_FLAG(std::string, output, TANDEM_BIN_DIR "/../bench", "Folder for goodput.json and .svg");

namespace tandem::bench {
namespace {

using nlohmann::json;

constexpr double kBurstyCv = 3;
/// A system that serves less than this share of what arrives is overloaded, whatever the latency.
constexpr double kKeepsUp = 0.7;

/// One system's runs with one workload and kind of arrivals, by the exponent of the rate.
struct SystemRuns {
  std::map<int, std::vector<Outcome>> runs;
};

/// Everything about one workload.
struct Measured {
  Workload workload;
  Slo slo;
  double base_rate = 0;
  std::map<std::string, Unloaded> unloaded;
  // By arrivals, then by system.
  std::map<std::string, std::map<std::string, SystemRuns>> curves;
  std::map<std::string, std::vector<Arrival>> traces;

  double Rate(int exponent) const {
    return base_rate * std::pow(absl::GetFlag(FLAGS_step), exponent);
  }
  /// By the rate at which requests came.
  std::map<double, double> AttainmentByRate(const SystemRuns& curve) const {
    std::map<double, double> result;
    for (const auto& [exponent, outcomes] : curve.runs) {
      result[Rate(exponent)] = Attainment(outcomes, slo);
    }
    return result;
  }
  /// Where requests pile up it is no more than what was served: a loose objective and a short run
  /// would else make any rate look good.
  double GoodputRps(const SystemRuns& curve) const {
    double served_rps = 0;
    for (const auto& [exponent, outcomes] : curve.runs) {
      served_rps = std::max(served_rps, ServedRate(outcomes));
    }
    return std::min(Goodput(AttainmentByRate(curve)), served_rps);
  }
};

SystemOptions OptionsFor(const Slo& slo) {
  return {.model = absl::GetFlag(FLAGS_model),
          .sequences = absl::GetFlag(FLAGS_sequences),
          .ttft_slo_s = slo.ttft_s,
          .tpot_slo_s = slo.tpot_s,
          .llama_flags = absl::GetFlag(FLAGS_llama_flags),
          .worker_flags = absl::GetFlag(FLAGS_worker_flags),
          .router_flags = absl::GetFlag(FLAGS_router_flags)};
}

void MeasurePoint(System& system, const std::string& name, const std::string& arrivals,
                  int exponent, Measured& measured) {
  std::vector<Outcome>& outcomes = measured.curves[arrivals][name].runs[exponent];
  outcomes = system.client().Run(measured.traces[arrivals], measured.Rate(exponent));
  std::vector<double> ttft, tpot;
  size_t failed = 0;
  for (const Outcome& outcome : outcomes) {
    ttft.push_back(outcome.ttft_s());
    tpot.push_back(outcome.tpot_s());
    if (!outcome.complete() && failed++ == 0) {
      std::printf("  first failure: %s\n", outcome.error.c_str());
    }
  }
  std::printf(
      "%-8s %-8s %-10s %7.3f/s  served %6.3f/s  attained %5.1f %%  TTFT p50 %6.0f p90 %6.0f ms  "
      "TPOT p50 %6.2f "
      "p90 %6.2f ms  tightest scale %5.2f  failed %zu\n",
      measured.workload.name.c_str(), arrivals.c_str(), name.c_str(), measured.Rate(exponent),
      ServedRate(outcomes), 100 * Attainment(outcomes, measured.slo), 1e3 * Quantile(ttft, 0.5),
      1e3 * Quantile(ttft, 0.9), 1e3 * Quantile(tpot, 0.5), 1e3 * Quantile(tpot, 0.9),
      TightestScale(outcomes, measured.slo), failed);
  std::fflush(stdout);
}

/// Goes up, or down, until neighbouring rates lie on either side of the wanted attainment.
void Explore(System& system, const std::string& name, const std::string& arrivals,
             Measured& measured) {
  SystemRuns& curve = measured.curves[arrivals][name];
  int exponent = 0, direction = 0;
  for (uint32_t i = 0; i < absl::GetFlag(FLAGS_max_points); ++i) {
    if (!curve.runs.contains(exponent)) {
      MeasurePoint(system, name, arrivals, exponent, measured);
    }
    const bool good = Attainment(curve.runs[exponent], measured.slo) >= kGoodAttainment &&
                      ServedRate(curve.runs[exponent]) >= kKeepsUp * measured.Rate(exponent);
    if (direction != 0 && good != (direction > 0)) return;
    direction = good ? 1 : -1;
    exponent += direction;
  }
}

/// The unloaded latency of one llama.cpp server on one core sets the objectives for all.
Measured MeasureWorkload(const Workload& workload) {
  Measured measured{.workload = workload};
  const auto systems = absl::GetFlag(FLAGS_systems);
  const double ttft_ms = absl::GetFlag(FLAGS_unloaded_ttft_ms),
               tpot_ms = absl::GetFlag(FLAGS_unloaded_tpot_ms);
  const Unloaded reference =
      ttft_ms > 0 && tpot_ms > 0
          ? Unloaded{.ttft_s = 1e-3 * ttft_ms, .tpot_s = 1e-3 * tpot_ms}
          : MeasureUnloaded(StartSystem("llama-2x1", OptionsFor({}))->client(), workload);
  const double ttft_slo = absl::GetFlag(FLAGS_ttft_slo), tpot_slo = absl::GetFlag(FLAGS_tpot_slo);
  measured.slo = {.ttft_s = (ttft_slo > 0 ? ttft_slo : workload.slo.ttft) * reference.ttft_s,
                  .tpot_s = (tpot_slo > 0 ? tpot_slo : workload.slo.tpot) * reference.tpot_s};
  // Half of what two cores could do that never had to wait.
  measured.base_rate = 1 / (reference.ttft_s + workload.output_tokens * reference.tpot_s);
  std::printf(
      "\n%s: unloaded TTFT %.1f ms, TPOT %.3f ms; objectives TTFT %.1f ms (x %.2f), TPOT %.3f ms "
      "(x %.2f)\n",
      workload.name.c_str(), 1e3 * reference.ttft_s, 1e3 * reference.tpot_s,
      1e3 * measured.slo.ttft_s, measured.slo.ttft_s / reference.ttft_s, 1e3 * measured.slo.tpot_s,
      measured.slo.tpot_s / reference.tpot_s);
  for (const std::string& arrivals : absl::GetFlag(FLAGS_arrivals)) {
    measured.traces[arrivals] = MakeTrace(workload, {.requests = absl::GetFlag(FLAGS_requests),
                                                     .cv = arrivals == "bursty" ? kBurstyCv : 1,
                                                     .seed = absl::GetFlag(FLAGS_seed)});
  }
  for (const std::string& name : systems) {
    auto system = StartSystem(name, OptionsFor(measured.slo));
    measured.unloaded[name] = MeasureUnloaded(system->client(), workload);
    std::printf("%-8s unloaded %-10s TTFT %.1f ms, TPOT %.3f ms\n", workload.name.c_str(),
                name.c_str(), 1e3 * measured.unloaded[name].ttft_s,
                1e3 * measured.unloaded[name].tpot_s);
    for (const std::string& arrivals : absl::GetFlag(FLAGS_arrivals)) {
      Explore(*system, name, arrivals, measured);
    }
  }
  return measured;
}

/// The best of some systems: its name and its goodput.
std::pair<std::string, double> Best(const Measured& measured, const std::string& arrivals,
                                    const std::function<bool(const std::string&)>& wanted) {
  std::pair<std::string, double> best{"", -1};
  for (const auto& [name, curve] : measured.curves.at(arrivals)) {
    if (!wanted(name)) continue;
    const double goodput = measured.GoodputRps(curve);
    if (goodput > best.second) best = {name, goodput};
  }
  return best;
}

bool IsTandem(const std::string& name) { return !IsPeer(name); }

/// The highest rate measured at which the system still did well; nothing did: the lowest.
int LastGood(const Measured& measured, const std::string& arrivals, const std::string& name) {
  const auto& runs = measured.curves.at(arrivals).at(name).runs;
  int last = runs.begin()->first;
  for (const auto& [exponent, outcomes] : runs) {
    if (Attainment(outcomes, measured.slo) >= kGoodAttainment) last = exponent;
  }
  return last;
}

/// The rates at which the tightest objectives are compared: the last good one of the peer, and of
/// Tandem.
std::vector<int> FixedRates(const Measured& measured, const std::string& arrivals) {
  std::vector<int> exponents;
  for (const auto& wanted : {IsPeer, IsTandem}) {
    const std::string name = Best(measured, arrivals, wanted).first;
    if (!name.empty()) exponents.push_back(LastGood(measured, arrivals, name));
  }
  std::sort(exponents.begin(), exponents.end());
  exponents.erase(std::unique(exponents.begin(), exponents.end()), exponents.end());
  return exponents;
}

/// What is measured may change which rates these are: until it does not.
void MeasureFixedRates(Measured& measured) {
  bool again = false;
  for (const std::string& name : absl::GetFlag(FLAGS_systems)) {
    std::unique_ptr<System> system;
    for (const std::string& arrivals : absl::GetFlag(FLAGS_arrivals)) {
      for (const int exponent : FixedRates(measured, arrivals)) {
        if (measured.curves[arrivals][name].runs.contains(exponent)) continue;
        if (system == nullptr) {
          system = StartSystem(name, OptionsFor(measured.slo));
          MeasureUnloaded(system->client(), measured.workload);  // warm-up
        }
        MeasurePoint(*system, name, arrivals, exponent, measured);
        again = true;
      }
    }
  }
  if (again) MeasureFixedRates(measured);
}

/// The best of the systems' tightest scales at one rate.
double BestScale(const Measured& measured, const std::string& arrivals, int exponent,
                 const std::function<bool(const std::string&)>& wanted) {
  double best = HUGE_VAL;
  for (const auto& [name, curve] : measured.curves.at(arrivals)) {
    if (wanted(name)) best = std::min(best, TightestScale(curve.runs.at(exponent), measured.slo));
  }
  return best;
}

json Report(const Measured& measured, const std::string& arrivals) {
  const auto [peer, peer_rate] = Best(measured, arrivals, IsPeer);
  const auto [tandem, tandem_rate] = Best(measured, arrivals, IsTandem);
  json row = {{"workload", measured.workload.name}, {"arrivals", arrivals}};
  std::printf("%-8s %-8s goodput at %.0f %%:", measured.workload.name.c_str(), arrivals.c_str(),
              100 * kGoodAttainment);
  for (const auto& [name, curve] : measured.curves.at(arrivals)) {
    row["goodput"][name] = measured.GoodputRps(curve);
    std::printf("  %s %.3f/s", name.c_str(), row["goodput"][name].get<double>());
  }
  if (peer.empty() || tandem.empty()) {
    std::printf("\n");
    return row;
  }
  row["goodput_ratio"] = tandem_rate / peer_rate;
  std::printf("\n%26s Tandem (%s) / peer (%s): %.2f in rate\n", "", tandem.c_str(), peer.c_str(),
              tandem_rate / peer_rate);
  for (const int exponent : FixedRates(measured, arrivals)) {
    const double ours = BestScale(measured, arrivals, exponent, IsTandem);
    const double theirs = BestScale(measured, arrivals, exponent, IsPeer);
    row["slo"].push_back(
        {{"rate", measured.Rate(exponent)}, {"tandem_scale", ours}, {"peer_scale", theirs}});
    std::printf("%26s at %.3f/s: tightest objectives x %.2f, peer x %.2f: %.2f times tighter\n", "",
                measured.Rate(exponent), ours, theirs, theirs / ours);
  }
  return row;
}

std::vector<Plot> Plots(const Measured& measured, const std::string& arrivals) {
  const std::string title = absl::StrCat(measured.workload.name, ", ", arrivals, " arrivals");
  std::vector<Plot> plots = {{.title = title,
                              .x_label = "requests a second",
                              .y_label = "within objectives, %",
                              .x_scale = Scale::kLinear,
                              .y_scale = Scale::kLinear,
                              .marks = {100 * kGoodAttainment}}};
  for (const auto& [name, curve] : measured.curves.at(arrivals)) {
    plots[0].curves.push_back({.name = name});
    for (const auto& [rate, attainment] : measured.AttainmentByRate(curve)) {
      plots[0].curves.back().points.emplace_back(rate, 100 * attainment);
    }
  }
  for (const int exponent : FixedRates(measured, arrivals)) {
    plots.push_back({.title = absl::StrFormat("%s, %.2f a second", title, measured.Rate(exponent)),
                     .x_label = "objectives, multiplied by",
                     .y_label = "within objectives, %",
                     .y_scale = Scale::kLinear,
                     .marks = {100 * kGoodAttainment}});
    for (const auto& [name, curve] : measured.curves.at(arrivals)) {
      plots.back().curves.push_back({.name = name});
      for (double scale = 0.0625; scale <= 16; scale *= std::sqrt(2)) {
        plots.back().curves.back().points.emplace_back(
            scale, 100 * Attainment(curve.runs.at(exponent), measured.slo, scale));
      }
    }
  }
  return plots;
}

json Raw(const Measured& measured) {
  json out = {{"workload", measured.workload.name},
              {"ttft_slo_s", measured.slo.ttft_s},
              {"tpot_slo_s", measured.slo.tpot_s}};
  for (const auto& [name, unloaded] : measured.unloaded) {
    out["unloaded"][name] = {{"ttft_s", unloaded.ttft_s}, {"tpot_s", unloaded.tpot_s}};
  }
  for (const auto& [arrivals, curves] : measured.curves) {
    for (const auto& [name, curve] : curves) {
      for (const auto& [exponent, outcomes] : curve.runs) {
        json run = {{"arrivals", arrivals}, {"system", name}, {"rate", measured.Rate(exponent)}};
        run["served_rate"] = ServedRate(outcomes);
        for (const Outcome& each : outcomes) {
          run["requests"].push_back({each.prompt_tokens, each.wanted_tokens, each.complete(),
                                     each.token_at_s.empty() ? -1 : each.ttft_s(),
                                     each.complete() ? each.tpot_s() : -1});
        }
        out["runs"].push_back(std::move(run));
      }
    }
  }
  return out;
}

void WriteFile(const std::string& name, const std::string& content) {
  namespace fs = std::filesystem;
  const fs::path folder = fs::path(absl::GetFlag(FLAGS_output)).lexically_normal();
  fs::create_directories(folder);
  std::ofstream(folder / name) << content;
  std::printf("written: %s\n", (folder / name).c_str());
}

void CheckNames(const std::string& what, const std::vector<std::string>& given,
                const std::vector<std::string>& known) {
  for (const std::string& name : given) {
    if (std::find(known.begin(), known.end(), name) != known.end()) continue;
    std::fprintf(stderr, "--%s: there is no '%s'; there are %s\n", what.c_str(), name.c_str(),
                 absl::StrJoin(known, ", ").c_str());
    std::exit(2);
  }
}

int Main() {
  if (absl::GetFlag(FLAGS_quick)) {
    absl::SetFlag(&FLAGS_arrivals, std::vector<std::string>{"poisson"});
    absl::SetFlag(&FLAGS_requests, 40u);
    absl::SetFlag(&FLAGS_step, 1.6);
  }
  std::vector<std::string> names;
  for (const Workload& workload : Workloads()) names.push_back(workload.name);
  CheckNames("workload", absl::GetFlag(FLAGS_workload), names);
  CheckNames("arrivals", absl::GetFlag(FLAGS_arrivals), {"poisson", "bursty"});
  CheckNames("systems", absl::GetFlag(FLAGS_systems), SystemNames());

  std::vector<Measured> all;
  for (const Workload& workload : Workloads()) {
    const auto wanted = absl::GetFlag(FLAGS_workload);
    if (std::find(wanted.begin(), wanted.end(), workload.name) == wanted.end()) continue;
    all.push_back(MeasureWorkload(workload));
    MeasureFixedRates(all.back());
  }
  std::printf("\n");
  json out;
  std::vector<Plot> plots;
  for (const Measured& measured : all) {
    out["runs"].push_back(Raw(measured));
    for (const std::string& arrivals : absl::GetFlag(FLAGS_arrivals)) {
      out["summary"].push_back(Report(measured, arrivals));
      for (Plot& plot : Plots(measured, arrivals)) plots.push_back(std::move(plot));
    }
  }
  WriteFile("goodput.json", out.dump() + "\n");
  WriteFile("goodput.svg", Svg(plots));
  return 0;
}

}  // namespace
}  // namespace tandem::bench

int main(int argc, char** argv) {
  absl::ParseCommandLine(argc, argv);
  return tandem::bench::Main();
}
