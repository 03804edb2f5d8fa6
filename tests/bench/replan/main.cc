// `./dev bench replan`: requests become others, in kind and in number, while a cluster of two
// workers serves them; how many meet their objectives, 5 s by 5 s, where the planner is on and
// where phases stay what they were. The present phases carry what comes first and not what comes
// then.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "tandem/v1/cluster.grpc.pb.h"
#include "tests/bench/goodput/attainment.h"
#include "tests/bench/goodput/systems.h"
#include "tests/bench/goodput/workload.h"
#include "tests/e2e/harness.h"

ABSL_FLAG(std::string, model, TANDEM_SOURCE_DIR "/models/demo-q8_0.gguf", "GGUF file");
ABSL_FLAG(std::string, before, "summary", "What comes first: chat, code or summary");
ABSL_FLAG(std::string, after, "chat", "What comes then");
ABSL_FLAG(double, before_load, 0.7, "Rate, in what one worker alone could serve without waiting");
ABSL_FLAG(double, after_load, 1.2, "The same, of what comes then");
ABSL_FLAG(double, before_seconds, 120, "Must hold some 70 requests, so that there is a plan");
ABSL_FLAG(double, after_seconds, 90, "");
ABSL_FLAG(double, ttft_slo, 14, "TTFT objective in unloaded TTFTs of the second kind");
ABSL_FLAG(double, tpot_slo, 3.05, "TPOT objective in unloaded TPOTs of the second kind");
ABSL_FLAG(std::vector<std::string>, arms, std::vector<std::string>({"on", "off"}), "on, off");
ABSL_FLAG(std::string, min_gain, "1000",
          "planner_min_gain: as it is, phases change only where they do not carry the requests");
ABSL_FLAG(std::vector<std::string>, router_flags, {}, "Further flags of the router");
ABSL_FLAG(std::vector<std::string>, worker_flags, {}, "Further flags of the workers");
ABSL_FLAG(uint32_t, seed, 1, "Of lengths, arrivals and prompts");
ABSL_FLAG(std::string, json, "", "Write the figures there");

namespace tandem::bench {
namespace {

constexpr double kWindowS = 5;

[[noreturn]] void Die(const std::string& why) {
  std::fprintf(stderr, "bench_replan: %s\n", why.c_str());
  std::exit(1);
}

const Workload& Named(const std::string& name) {
  if (const Workload* workload = FindWorkload(name)) return *workload;
  Die(absl::StrCat("there is no workload '", name, "'"));
}

/// Requests of a kind at a rate, from `begin_s` on for so long.
void Append(const Workload& workload, double rate_rps, double begin_s, double seconds,
            uint32_t seed, std::vector<Arrival>& trace) {
  const auto n = static_cast<uint32_t>(rate_rps * seconds * 1.5) + 20;
  for (Arrival& arrival : MakeTrace(workload, {.requests = n, .seed = seed})) {
    arrival.at_s = begin_s + arrival.at_s / rate_rps;
    if (arrival.at_s < begin_s + seconds) trace.push_back(std::move(arrival));
  }
}

void PrintDecisions(const std::string& address) {
  e2e::Client client(address);
  grpc::ClientContext context;
  v1::GetPlanResponse plan;
  if (!v1::ClusterService::NewStub(client.channel())->GetPlan(&context, {}, &plan).ok()) return;
  for (const v1::PlanDecision& decision : plan.decisions()) {
    std::printf("  %6.1f s ago  %-8s %s; %s → %s; rate %.2f, goodput %.2f → %.2f; %s\n",
                decision.age_s(), decision.outcome().c_str(), decision.trigger().c_str(),
                decision.present().c_str(), decision.wanted().c_str(), decision.rate_rps(),
                decision.present_rps(), decision.wanted_rps(), decision.reason().c_str());
  }
}

struct Arm {
  std::string name;
  std::vector<Outcome> outcomes;
};

Arm RunArm(const std::string& name, const SystemOptions& options,
           const std::vector<Arrival>& trace) {
  SystemOptions own = options;
  own.router_flags.insert(own.router_flags.end(), {"--planner", name});
  auto system = StartSystem(name == "on" ? "planned" : "split", own);
  MeasureUnloaded(system->client(),
                  Named(absl::GetFlag(FLAGS_before)));  // engines warm, models learned
  Arm arm = {.name = name, .outcomes = system->client().Run(trace, 1)};
  size_t failed = 0;
  for (const Outcome& outcome : arm.outcomes) failed += outcome.complete() ? 0 : 1;
  std::printf("\nplanner %s: %zu requests, %zu failed\n", name.c_str(), arm.outcomes.size(),
              failed);
  PrintDecisions(system->RouterAddress());
  return arm;
}

std::vector<Outcome> DueWithin(const Arm& arm, double from_s, double to_s) {
  std::vector<Outcome> due;
  std::copy_if(arm.outcomes.begin(), arm.outcomes.end(), std::back_inserter(due),
               [&](const Outcome& each) { return each.due_s >= from_s && each.due_s < to_s; });
  return due;
}

/// Seconds after the shift from which on, to the end, 90 % meet their objectives; negative: never.
double BackAfter(const Arm& arm, double shift_s, double end_s, const Slo& slo) {
  for (double from_s = shift_s; from_s < end_s; from_s += kWindowS) {
    const auto rest = DueWithin(arm, from_s, end_s);
    const auto first = DueWithin(arm, from_s, from_s + kWindowS);
    if (rest.empty() || Attainment(rest, slo) < kGoodAttainment) continue;
    if (first.empty() || Attainment(first, slo) >= kGoodAttainment) return from_s - shift_s;
  }
  return -1;
}

void Report(const std::vector<Arm>& arms, double shift_s, double end_s, const Slo& slo) {
  nlohmann::ordered_json json = {
      {"ttft_slo_s", slo.ttft_s}, {"tpot_slo_s", slo.tpot_s}, {"shift_s", shift_s}};
  std::printf("\n%-12s", "WINDOW");
  for (const Arm& arm : arms) std::printf("  planner %-4s       ", arm.name.c_str());
  std::printf("\n");
  for (double from_s = std::max(0.0, shift_s - 30); from_s < end_s; from_s += kWindowS) {
    std::printf("%+4.0f … %+4.0f s", from_s - shift_s, from_s + kWindowS - shift_s);
    for (const Arm& arm : arms) {
      const auto due = DueWithin(arm, from_s, from_s + kWindowS);
      if (due.empty()) {
        std::printf("  %20s", "-");
        continue;
      }
      const double attained = Attainment(due, slo);
      std::printf("  %5.1f %% of %3zu      ", 100 * attained, due.size());
      json[arm.name]["windows"].push_back(
          {{"from_s", from_s - shift_s}, {"requests", due.size()}, {"attainment", attained}});
    }
    std::printf("\n");
  }
  for (const Arm& arm : arms) {
    const auto before = DueWithin(arm, 0, shift_s), after = DueWithin(arm, shift_s, end_s);
    const double back_s = BackAfter(arm, shift_s, end_s, slo);
    std::printf("planner %-4s before %5.1f %%, after %5.1f %%, back at 90 %% %s\n",
                arm.name.c_str(), before.empty() ? 0 : 100 * Attainment(before, slo),
                after.empty() ? 0 : 100 * Attainment(after, slo),
                back_s < 0 ? "never" : absl::StrFormat("after %.0f s", back_s).c_str());
    json[arm.name]["back_s"] = back_s;
  }
  if (const std::string path = absl::GetFlag(FLAGS_json); !path.empty()) {
    std::ofstream(path) << json.dump(1) << "\n";
  }
}

void Main() {
  const Workload &before = Named(absl::GetFlag(FLAGS_before)),
                 &after = Named(absl::GetFlag(FLAGS_after));
  SystemOptions options = {.model = absl::GetFlag(FLAGS_model),
                           .worker_flags = absl::GetFlag(FLAGS_worker_flags),
                           .router_flags = absl::GetFlag(FLAGS_router_flags)};
  Unloaded first, then;
  {
    auto system = StartSystem("split", options);
    MeasureUnloaded(system->client(), after);  // warms up
    first = MeasureUnloaded(system->client(), before);
    then = MeasureUnloaded(system->client(), after);
  }
  const Slo slo = {.ttft_s = absl::GetFlag(FLAGS_ttft_slo) * then.ttft_s,
                   .tpot_s = absl::GetFlag(FLAGS_tpot_slo) * then.tpot_s};
  options.ttft_slo_s = slo.ttft_s;
  options.tpot_slo_s = slo.tpot_s;
  options.router_flags.insert(options.router_flags.end(),
                              {"--planner-min-gain", absl::GetFlag(FLAGS_min_gain)});
  const double rate = absl::GetFlag(FLAGS_before_load) * ServedAloneRps(first, before),
               later = absl::GetFlag(FLAGS_after_load) * ServedAloneRps(then, after),
               shift_s = absl::GetFlag(FLAGS_before_seconds),
               end_s = shift_s + absl::GetFlag(FLAGS_after_seconds);
  std::printf("%s at %.2f/s, then %s at %.2f/s; objectives TTFT %.0f ms, TPOT %.2f ms\n",
              before.name.c_str(), rate, after.name.c_str(), later, 1e3 * slo.ttft_s,
              1e3 * slo.tpot_s);
  std::vector<Arrival> trace;
  const uint32_t seed = absl::GetFlag(FLAGS_seed);
  Append(before, rate, 0, shift_s, seed, trace);
  Append(after, later, shift_s, end_s - shift_s, seed + 1, trace);
  std::vector<Arm> arms;
  for (const std::string& name : absl::GetFlag(FLAGS_arms)) {
    if (name != "on" && name != "off") Die(absl::StrCat("there is no arm '", name, "'"));
    arms.push_back(RunArm(name, options, trace));
  }
  Report(arms, shift_s, end_s, slo);
}

}  // namespace
}  // namespace tandem::bench

int main(int argc, char** argv) {
  absl::ParseCommandLine(argc, argv);
  tandem::bench::Main();
}
