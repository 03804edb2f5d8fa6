// `tandem plan compat`: reads a folder of cases of DistServe's simulator and writes the answers.
#include <atomic>
#include <filesystem>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/files.h"
#include "base/status.h"
#include "cli/kv.h"
#include "cli/plan.h"
#include "cli/table.h"
#include "scheduler/planner/compat/answers.h"
#include "scheduler/planner/compat/builtin_profile.h"

namespace tandem::cli {
namespace {

namespace fs = std::filesystem;
using namespace planner::compat;  // NOLINT: this file is about nothing else

struct Settings {
  std::string cases, out, coefficients;
};

absl::StatusOr<PeerProfile> LoadProfile(const Settings& settings, const Terminal& terminal) {
  std::vector<std::string> paths = {settings.coefficients};
  if (settings.coefficients.empty()) {
    paths = {settings.cases + "/coefficients.json", settings.cases + "/../coefficients.json"};
  }
  for (const std::string& path : paths) {
    const absl::StatusOr<std::string> text = ReadWholeFile(path);
    if (absl::IsNotFound(text.status()) && settings.coefficients.empty()) continue;
    RETURN_IF_ERROR(text.status());
    absl::StatusOr<PeerProfile> profile = ParsePeerProfile(*text);
    if (!profile.ok()) return Annotate(profile.status(), path);
    return profile;
  }
  terminal.err << "tandem: there is no coefficients.json beside the cases; models are those that "
                  "are built in\n";
  return ParsePeerProfile(BuiltinPeerProfile());
}

/// Runs cases one after the other, and keeps what went wrong for the end.
class Runner {
 public:
  Runner(const std::atomic<bool>& stop, const Terminal& terminal)
      : stop_(stop), terminal_(terminal) {}

  /// `run(content)` returns a StatusOr; `keep(id, content, result)` gets its value.
  template <typename Case, typename Run, typename Keep>
  void Each(const std::vector<Loaded<Case>>& cases, Run run, Keep keep) {
    for (const Loaded<Case>& one : cases) {
      if (stop_) return;
      ++cases_;
      if (!one.content.ok()) {
        Fail(one.content.status());
        continue;
      }
      auto result = run(*one.content);
      if (result.ok()) {
        keep(one.id, *one.content, *std::move(result));
      } else {
        Fail(Annotate(result.status(), one.id));
      }
    }
  }

  absl::Status Finish() const {
    if (stop_ || failed_ == 0) return absl::OkStatus();
    return absl::FailedPreconditionError(
        absl::StrCat(failed_, " of ", cases_, " cases could not be run; their faults are above"));
  }

 private:
  void Fail(const absl::Status& status) {
    ++failed_;
    terminal_.err << "tandem: " << status.message() << "\n";
  }

  const std::atomic<bool>& stop_;
  const Terminal& terminal_;
  size_t cases_ = 0, failed_ = 0;
};

std::string Ms(double ms) { return absl::StrFormat("%.1f", ms); }
std::string Rate(double rps) { return absl::StrFormat("%.4g", rps); }

std::string FirstAttainment(const LatencyCase& task, const LatencyAnswer& answer) {
  if (answer.attainments.empty()) return "-";
  const SloMs& slo = task.slo_sets[0].slo;
  return absl::StrFormat("%.1f %% of %g/%g ms", 100 * answer.attainments[0].both, slo.ttft_ms,
                         slo.tpot_ms);
}

std::string Placed(const SearchResult& result) {
  if (!result.best) return "nothing fits";
  const JointConfig& best = result.configs[*result.best].config;
  return absl::StrFormat("%d x (tp %d, pp %d + tp %d, pp %d)", best.pp_cross, best.tp_prefill,
                         best.pp_prefill, best.tp_decode, best.pp_decode);
}

std::string Placed(const planner::HighAffinityPlan& plan) {
  const auto phase = [](const planner::PhaseChoice& choice) {
    return absl::StrFormat("%d x (tp %d, pp %d)", choice.instances, choice.parallelism.intra_op,
                           choice.parallelism.inter_op);
  };
  return absl::StrCat(phase(plan.prefill), " + ", phase(plan.decode));
}

absl::Status Run(const Settings& settings, const std::atomic<bool>& stop,
                 const Terminal& terminal) {
  if (settings.cases.empty()) return absl::InvalidArgumentError("--cases is missing");
  if (settings.out.empty()) return absl::InvalidArgumentError("--out is missing");
  ASSIGN_OR_RETURN(const PeerProfile profile, LoadProfile(settings, terminal));
  const auto read = [&](const std::string& path) {
    return ReadWholeFile(settings.cases + "/" + path);
  };
  const absl::StatusOr<CaseFolder> loaded = LoadCases(read, profile);
  if (!loaded.ok()) return Annotate(loaded.status(), settings.cases);
  const CaseFolder& folder = *loaded;

  std::error_code error;
  fs::create_directories(settings.out, error);
  if (error) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot make the folder ", settings.out, ": ", error.message()));
  }
  Runner runner(stop, terminal);
  absl::Status written;
  const auto write = [&](const std::string& name, const std::string& text) {
    if (!stop) written.Update(WriteWholeFile(settings.out + "/" + name, text));
  };

  std::vector<std::vector<std::string>> rows = {
      {"CASE", "REQUESTS", "TTFT P90 MS", "TPOT P90 MS", "ATTAINMENT"}};
  std::vector<Named<LatencySummary>> summaries;
  runner.Each(
      folder.latencies, [](const LatencyCase& task) { return Answer(task); },
      [&](const std::string& id, const LatencyCase& task, LatencyAnswer answer) {
        write(id + ".csv", LatencyCsv(task, answer));
        rows.push_back({id, absl::StrCat(task.requests.size()), Ms(answer.ttft.p90),
                        Ms(answer.tpot.p90), FirstAttainment(task, answer)});
        summaries.push_back({id, {&task, std::move(answer)}});
      });
  if (!summaries.empty()) write("results.json", ResultsJson(summaries));
  if (rows.size() > 1) terminal.out << Table(rows) << "\n";

  rows = {{"GOODPUT", "PER PHASE RPS/GPU", "JOINT RPS/GPU", "RATES TRIED"}};
  std::vector<Named<GoodputAnswer>> goodputs;
  runner.Each(
      folder.goodputs, [](const GoodputCase& task) { return Answer(task); },
      [&](const std::string& id, const GoodputCase&, GoodputAnswer answer) {
        rows.push_back({id, Rate(answer.per_phase.best_per_gpu_rate),
                        Rate(answer.joint.best_per_gpu_rate),
                        absl::StrCat(answer.per_phase.trace.size() + answer.joint.trace.size())});
        goodputs.push_back({id, std::move(answer)});
      });
  if (!goodputs.empty()) write("goodput.json", GoodputJson(goodputs));
  if (rows.size() > 1) terminal.out << Table(rows) << "\n";

  rows = {{"SEARCH", "MODEL", "BEST", "RPS/GPU", "GPUS"}};
  std::vector<Named<SearchResult>> searches;
  runner.Each(
      folder.searches,
      [&](const SearchCase& task) {
        return SearchPlacement(profile.at(task.model), task.task, task.requests);
      },
      [&](const std::string& id, const SearchCase& task, SearchResult result) {
        const SearchedConfig* const best = result.best ? &result.configs[*result.best] : nullptr;
        rows.push_back({id, task.model, Placed(result),
                        best == nullptr ? "-" : Rate(best->goodput->best_per_gpu_rate),
                        best == nullptr ? "-" : absl::StrCat(best->config.num_gpus())});
        searches.push_back({id, std::move(result)});
      });
  std::vector<Named<Algorithm1Result>> algorithm1;
  runner.Each(
      folder.algorithm1,
      [&](const SearchCase& task) {
        return RunAlgorithm1(profile.at(task.model), task.task, task.requests);
      },
      [&](const std::string& id, const SearchCase& task, Algorithm1Result result) {
        const planner::HighAffinityPlan& plan = result.plan;
        rows.push_back({id, task.model, Placed(plan),
                        absl::StrCat(Rate(plan.prefill.per_device_rps), " + ",
                                     Rate(plan.decode.per_device_rps)),
                        absl::StrCat(plan.devices())});
        algorithm1.push_back({id, std::move(result)});
      });
  if (!searches.empty() || !algorithm1.empty())
    write("search.json", SearchJson(searches, algorithm1));
  if (rows.size() > 1) terminal.out << Table(rows) << "\n";

  RETURN_IF_ERROR(written);
  return runner.Finish();
}

}  // namespace

int RunPlanCompat(std::span<char* const> args, const Terminal& terminal) {
  Settings settings;
  const auto text = [](std::string& into) {
    return ReadText([&into](std::string value) { into = std::move(value); });
  };
  const Command command{
      "plan compat",
      "",
      "Runs cases of DistServe's simulator by its own rules (no time for moving KV, no limit to "
      "KV\n"
      "memory) and writes FOLDER/ID.csv for every case, goodput.json, search.json and\n"
      "results.json. What such a folder of cases holds: docs/plan.md.",
      {{"cases", "FOLDER", "The cases: cases/, goodput/, planner/.", text(settings.cases)},
       {"out", "FOLDER", "Where the answers go; made if need be.", text(settings.out)},
       {"coefficients", "FILE",
        "Models and GPUs. Default: coefficients.json in or above --cases, else OPT on A100.",
        text(settings.coefficients)}}};
  return RunFlagsOnly(
      command, args, terminal,
      [&](const std::atomic<bool>& stop) { return Run(settings, stop, terminal); },
      "tandem: interrupted; what was done is written\n");
}

}  // namespace tandem::cli
