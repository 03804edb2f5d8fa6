// `./dev bench kv-load`: how long a prompt whose KV another node has waits for its first token,
// over links of all kinds, loaded in all the usual ways and by Tandem's adapter; with --trace, how
// often a time limit is missed when the link changes meanwhile; with --sharing, how evenly several
// contexts share a link. Two processes, each in a
// network namespace of its own with a shaped link between them.
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <numeric>
#include <sstream>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/log.h"
#include "tests/bench/kv-load/bench_pair.h"
#include "tests/bench/kv-load/checks.h"
#include "tests/bench/kv-load/holder.h"
#include "tests/bench/kv-load/loader.h"
#include "tests/bench/kv-load/trace.h"
#include "tests/support/plot.h"

ABSL_FLAG(std::string, model, "both", "demo, synthetic or both");
ABSL_FLAG(std::vector<std::string>, links,
          std::vector<std::string>({"20", "50", "100", "200", "400", "1000", "4000"}), "Mbit/s");
ABSL_FLAG(uint32_t, repeat, 5,
          "Runs of each way, of which the medians are shown: at least; 1 of those over 5 s");
ABSL_FLAG(double, seconds, 4, "Short runs are repeated until each way has taken so long at a link");
ABSL_FLAG(uint32_t, most, 21, "Runs of each way at most");
ABSL_FLAG(bool, trace, false, "Links that change while a context is loaded, instead");
ABSL_FLAG(bool, sharing, false, "Several contexts at once over one link, instead");
ABSL_FLAG(uint32_t, contexts, 24, "Loads by each way for a trace");
ABSL_FLAG(double, slack, 1.5, "A trace's time limit, in units of the oracle's time");
ABSL_FLAG(std::string, text, "docs/operate.md", "What the model reads");
ABSL_FLAG(uint32_t, threads, 0, "Of an engine; 0: half of the cores, as there are two hosts");
ABSL_FLAG(std::string, output, TANDEM_BIN_DIR "/../bench", "Folder for kv-load.json and .svg");
ABSL_FLAG(std::string, log, "error", "Log level of the two processes");
// How the two processes are told who they are.
ABSL_FLAG(std::string, internal_role, "", "");
ABSL_FLAG(std::string, internal_context, "", "");
ABSL_FLAG(std::string, internal_host, "", "");
ABSL_FLAG(std::string, internal_ports, "", "");

namespace tandem::bench {
namespace {

using nlohmann::json;

/// A run that takes longer is not repeated.
constexpr double kLongRunS = 5;
const std::vector<std::pair<std::string, std::string>> kWays = {{"recompute", "recompute"},
                                                                {"raw", "raw f16"},
                                                                {"int8", "8-bit"},
                                                                {"zstd", "zstd -1"},
                                                                {"adapter", "Tandem"}};

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

/// `long_recompute_s`: 0, or what computing takes, which no link changes.
LinkRow MeasureLink(BenchPair& pair, double mbit_per_s, uint32_t repeat, double long_recompute_s,
                    json& runs) {
  pair.SetRate(mbit_per_s);
  pair.Run({{"way", "adapter"}});  // so that it knows the link
  std::map<std::string, std::vector<double>> seconds;
  if (long_recompute_s > 0) seconds["recompute"].push_back(long_recompute_s);
  const auto enough = [&](const std::string& way) {
    const std::vector<double>& runs_s = seconds[way];
    if (!runs_s.empty() && runs_s[0] > kLongRunS) return true;
    if (runs_s.size() < repeat) return false;
    return runs_s.size() >= absl::GetFlag(FLAGS_most) ||
           std::accumulate(runs_s.begin(), runs_s.end(), 0.0) >= absl::GetFlag(FLAGS_seconds);
  };
  for (bool more = true; more;) {
    more = false;
    for (const auto& [way, unused] : kWays) {
      if (enough(way)) continue;
      more = true;
      json result = pair.Run({{"way", way}});
      seconds[way].push_back(result["ttft_s"]);
      result.update({{"way", way}, {"mbit_per_s", mbit_per_s}});
      runs.push_back(result);
    }
  }
  LinkRow row{.mbit_per_s = mbit_per_s};
  for (const auto& [way, values] : seconds) row.ttft_s[way] = Median(values);
  return row;
}

void PrintHead(const Context& context, const ContextTable& table) {
  std::printf("\n%s: %u tokens, %u of them cached, MB:", context.name.c_str(), context.n_tokens,
              context.n_chunks() * kChunkTokens);
  for (const auto& [name, bytes] : table.bytes) std::printf(" %s %.2f", name.c_str(), bytes / 1e6);
  std::printf("\nseconds to the first token\n%10s", "Mbit/s");
  for (const auto& [unused, name] : kWays) std::printf(" %10s", name.c_str());
  std::printf(" %14s\n", "/ best other");
  std::fflush(stdout);
}

void PrintRow(const LinkRow& row) {
  std::printf("%10.0f", row.mbit_per_s);
  for (const auto& [way, unused] : kWays) std::printf(" %10.4f", row.ttft_s.at(way));
  const WorstLink here = FindWorst({.rows = {row}});
  std::printf(" %8.2f %s\n", here.ratio, here.best_way.c_str());
  std::fflush(stdout);
}

void PrintChecks(const ContextTable& table) {
  const Crossing crossing = FindCrossing(table);
  if (crossing.mbit_per_s > 0) {
    std::printf(
        "%s: computing and raw KV cost the same at %.0f Mbit/s; there Tandem is %.2f times "
        "faster (wanted: 2.5); than the better of the two at the links around it: %.2f, "
        "%.2f\n",
        table.context.c_str(), crossing.mbit_per_s, crossing.advantage, crossing.left_advantage,
        crossing.right_advantage);
  }
  const WorstLink worst = FindWorst(table);
  std::printf("%s: worst at %.0f Mbit/s: %.2f times the best other way's time (%s; wanted: 1.05)\n",
              table.context.c_str(), worst.mbit_per_s, worst.ratio, worst.best_way.c_str());
}

ContextTable MeasureContext(const std::string& name, json& out) {
  const Context context = *FindContext(name);
  BenchPair pair(context, absl::GetFlag(FLAGS_text), absl::GetFlag(FLAGS_threads),
                 absl::GetFlag(FLAGS_log));
  ContextTable table{.context = name, .bytes = pair.bytes()};
  PrintHead(context, table);
  double recompute_s = 0;
  for (const auto& [way, unused] : kWays) {
    const json warm = pair.Run({{"way", way}});
    if (way == "recompute" && warm["ttft_s"] > kLongRunS) recompute_s = warm["ttft_s"];
  }
  json runs = json::array();
  for (const std::string& link : absl::GetFlag(FLAGS_links)) {
    table.rows.push_back(MeasureLink(pair, std::stod(link),
                                     std::max(1u, absl::GetFlag(FLAGS_repeat)), recompute_s, runs));
    PrintRow(table.rows.back());
  }
  std::sort(table.rows.begin(), table.rows.end(),
            [](const LinkRow& a, const LinkRow& b) { return a.mbit_per_s < b.mbit_per_s; });
  out["contexts"].push_back({{"name", name},
                             {"tokens", context.n_tokens},
                             {"cached_tokens", context.n_chunks() * kChunkTokens},
                             {"bytes", table.bytes},
                             {"recompute_once_s", recompute_s},
                             {"runs", runs}});
  return table;
}

Plot PlotOf(const ContextTable& table) {
  Plot plot{.title = absl::StrCat("Cached context over a link: ", table.context, " model"),
            .x_label = "link, Mbit/s",
            .y_label = "time to first token, s"};
  for (const auto& [way, name] : kWays) {
    plot.curves.push_back({.name = name});
    for (const LinkRow& row : table.rows) {
      plot.curves.back().points.push_back({row.mbit_per_s, row.ttft_s.at(way)});
    }
  }
  return plot;
}

void WriteFile(const std::string& name, const std::string& content) {
  namespace fs = std::filesystem;
  const fs::path folder = fs::path(absl::GetFlag(FLAGS_output)).lexically_normal();
  fs::create_directories(folder);
  std::ofstream(folder / name) << content;
  std::printf("written: %s\n", (folder / name).c_str());
}

int MeasureLinks() {
  std::vector<ContextTable> tables;
  json out;
  for (const std::string name : {"demo", "synthetic"}) {
    const std::string wanted = absl::GetFlag(FLAGS_model);
    if (wanted == "both" || wanted == name) tables.push_back(MeasureContext(name, out));
  }
  std::printf("\n");
  std::vector<Plot> plots;
  for (const ContextTable& table : tables) {
    PrintChecks(table);
    plots.push_back(PlotOf(table));
  }
  WriteFile("kv-load.json", out.dump(1) + "\n");
  WriteFile("kv-load.svg", Svg(plots));
  return 0;
}

int MeasureTraces() {
  const Context context = *FindContext("demo");
  BenchPair pair(context, absl::GetFlag(FLAGS_text), absl::GetFlag(FLAGS_threads),
                 absl::GetFlag(FLAGS_log));
  const json out =
      RunTraces(pair, context,
                {.contexts = absl::GetFlag(FLAGS_contexts), .slack = absl::GetFlag(FLAGS_slack)});
  WriteFile("kv-load-trace.json", out.dump(1) + "\n");
  return 0;
}

/// Equal contexts that are loaded at once, losslessly: were one served before the other, their
/// times would be as 1 to 2.
int MeasureSharing() {
  constexpr int kRounds = 5;
  const Context context = *FindContext("demo");
  BenchPair pair(context, absl::GetFlag(FLAGS_text), absl::GetFlag(FLAGS_threads),
                 absl::GetFlag(FLAGS_log));
  json out;
  std::printf("%10s %8s %16s %16s %18s\n", "Mbit/s", "at once", "first ready, s", "last ready, s",
              "first / last");
  for (const double mbit_per_s : {20., 100., 1000.}) {
    pair.SetRate(mbit_per_s);
    for (const int n : {2, 4}) {
      std::vector<double> first, last, ratios;
      for (int round = 0; round < kRounds; ++round) {
        json result = pair.Run({{"way", "together"}, {"n", n}});
        const auto seconds = result["seconds"].get<std::vector<double>>();
        const auto [least, most] = std::minmax_element(seconds.begin(), seconds.end());
        first.push_back(*least);
        last.push_back(*most);
        ratios.push_back(*least / *most);
        result.update({{"mbit_per_s", mbit_per_s}, {"at_once", n}});
        out.push_back(result);
      }
      std::printf("%10.0f %8d %16.3f %16.3f %18.2f\n", mbit_per_s, n, Median(first), Median(last),
                  Median(ratios));
      std::fflush(stdout);
    }
  }
  WriteFile("kv-load-sharing.json", out.dump(1) + "\n");
  return 0;
}

/// In a namespace of the lab.
absl::Status BeChild(const std::string& role) {
  // Standard output is the parent's.
  if (auto status = InitLog(absl::GetFlag(FLAGS_log), "text"); !status.ok()) return status;
  auto context = FindContext(absl::GetFlag(FLAGS_internal_context));
  if (!context.ok()) return context.status();
  auto loaded = LoadContext(*context, absl::GetFlag(FLAGS_text));
  if (!loaded.ok()) return loaded.status();
  const uint32_t threads = absl::GetFlag(FLAGS_threads);
  if (role == "holder") return RunHolder(*loaded, threads);
  return RunLoader(*loaded, absl::GetFlag(FLAGS_internal_host),
                   json::parse(absl::GetFlag(FLAGS_internal_ports)), threads);
}

int Main() {
  if (const std::string role = absl::GetFlag(FLAGS_internal_role); !role.empty()) {
    const absl::Status status = BeChild(role);
    if (!status.ok()) std::cerr << "bench_kv-load " << role << ": " << status << std::endl;
    return status.ok() ? 0 : 1;
  }
  if (const std::string why = e2e::Netlab::WhyNot(); !why.empty()) {
    std::fprintf(stderr, "%s\n", why.c_str());
    return 1;
  }
  if (absl::GetFlag(FLAGS_trace)) return MeasureTraces();
  return absl::GetFlag(FLAGS_sharing) ? MeasureSharing() : MeasureLinks();
}

}  // namespace
}  // namespace tandem::bench

int main(int argc, char** argv) {
  absl::ParseCommandLine(argc, argv);
  return tandem::bench::Main();
}
