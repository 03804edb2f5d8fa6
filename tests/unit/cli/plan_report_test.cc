// The report as a page: well-formed, with every part of it, in agreement with the plan's JSON, and
// with nothing in it that names from outside could do.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/client.h"
#include "cli/plan_gantt.h"
#include "cli/svg.h"
#include "tests/unit/cli/call.h"

namespace tandem::cli {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::Not;

size_t Count(const std::string& text, const std::string& part) {
  size_t n = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
  return n;
}

/// What is wrong with the nesting of tags; empty when nothing is.
std::string TagFault(const std::string& page) {
  std::vector<std::string> open;
  for (size_t at = page.find('<'); at != std::string::npos; at = page.find('<', at + 1)) {
    const size_t end = page.find('>', at);
    if (end == std::string::npos) return "a tag without end";
    const std::string tag = page.substr(at + 1, end - at - 1);
    if (tag.find('<') != std::string::npos) return "a tag in the tag " + tag;
    if (tag.starts_with("!") || tag.ends_with("/")) continue;
    if (Count(tag, "\"") % 2 != 0) return "a quote is open in " + tag;
    if (!tag.starts_with("/")) {
      open.push_back(tag.substr(0, tag.find(' ')));
      continue;
    }
    if (open.empty() || open.back() != tag.substr(1)) return "nothing is open for " + tag;
    open.pop_back();
  }
  return open.empty() ? "" : open.back() + " is not closed";
}

class PlanReportTest : public testing::Test {
 protected:
  PlanReportTest()
      : folder_(fs::path(testing::TempDir()) /
                testing::UnitTest::GetInstance()->current_test_info()->name()) {
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  ~PlanReportTest() override { fs::remove_all(folder_); }

  std::string Read(const std::string& name) {
    std::ostringstream text;
    text << std::ifstream(folder_ / name).rdbuf();
    return text.str();
  }

  /// The page for a cluster with these nodes. `slo`: seconds of either objective.
  std::string Report(const std::string& nodes, const std::string& slo = "0.5",
                     const std::string& kind = "big") {
    std::ofstream(folder_ / "cluster.yaml")
        << "kv_bytes_per_token: 100e3\nkinds:\n  " << kind << ":\n"
        << "    {prefill_base_s: 0.018, prefill_per_token_s: 1e-4, decode_base_s: 0.02,\n"
        << "     decode_per_sequence_s: 4e-5, kv_capacity_tokens: 65536}\nnodes:\n"
        << nodes
        << "links: {within: {bytes_per_s: 1e9}, between: {bytes_per_s: 1e8, rtt_s: 0.001}}\n";
    const Outcome outcome =
        Call(RunPlan,
             {"search", "--cluster", folder_ / "cluster.yaml", "--workload=chat", "--ttft-slo", slo,
              "--tpot-slo", slo == "0.5" ? "0.03" : slo, "--requests=60", "--json",
              folder_ / "plan.json", "--html", folder_ / "plan.html"},
             "");
    EXPECT_EQ(outcome.code, kOk) << outcome.err;
    const std::string page = Read("plan.html");
    EXPECT_EQ(TagFault(page), "");
    EXPECT_THAT(page, Not(HasSubstr("nan")));
    EXPECT_THAT(page, Not(HasSubstr("<script")));
    EXPECT_EQ(Count(page, "://"), Count(page, "xmlns=\"http://www.w3.org/"))
        << "all is in the page";
    if (std::system("command -v xmllint >/dev/null") == 0) {
      const std::string check =
          absl::StrCat("xmllint --noout '", (folder_ / "plan.html").string(), "'");
      EXPECT_EQ(std::system(check.c_str()), 0);
    }
    for (const char* id : {"topology", "attainment", "gantt", "table"}) {
      EXPECT_EQ(Count(page, absl::StrCat("<section id=\"", id, "\">")), 1u);
    }
    return page;
  }

  const fs::path folder_;
};

constexpr char kTwoRacks[] = "  - {kind: big, count: 2, group: a}\n  - {kind: big, group: b}\n";

TEST_F(PlanReportTest, ShowsWhatTheJsonSays) {
  const std::string page = Report(kTwoRacks);
  const auto plan = nlohmann::json::parse(Read("plan.json"));
  const auto rps = [](const nlohmann::json& value) {
    return absl::StrFormat("%.3g", value.get<double>());
  };
  EXPECT_THAT(page, HasSubstr(absl::StrCat("<b>", rps(plan["best"]["goodput_rps"]), "</b>")));
  EXPECT_THAT(page, HasSubstr(absl::StrCat(">goodput ", rps(plan["best"]["goodput_rps"]), "<")));
  EXPECT_THAT(page, HasSubstr(absl::StrFormat("%.1f %% of the requests meet both",
                                              100 * plan["attainment"]["both"].get<double>())));
  for (const char* placement : {"best", "runner_up", "all_mixed"}) {
    EXPECT_THAT(page, HasSubstr(absl::StrCat("<td class=\"n\">",
                                             rps(plan[placement]["goodput_rps"]), "</td>")));
  }
  EXPECT_THAT(page, HasSubstr(absl::StrCat("all links ten times as fast</td><td class=\"n\">",
                                           rps(plan["with_links_x10_rps"]))));
  for (const auto& one : plan["one_more"]) {
    EXPECT_THAT(page, HasSubstr(absl::StrCat("one more node ", one["class"].get<std::string>(),
                                             " as ", one["phase"].get<std::string>(),
                                             "</td><td class=\"n\">", rps(one["goodput_rps"]))));
  }
  EXPECT_THAT(page, HasSubstr("target 90 %"));
  EXPECT_THAT(page, HasSubstr(">within: 8 Gbit/s, 0 ms<"));
  EXPECT_THAT(page, HasSubstr(">between groups: 800 Mbit/s, 1 ms<"));
  EXPECT_EQ(Count(page, "<polyline"), 10u) << "two charts of five curves";
  EXPECT_GT(Count(page, "class=\"lane decode\""), 0u);
  EXPECT_GT(Count(page, "class=\"lane handoff\""), 0u);
}

TEST_F(PlanReportTest, NamesFromOutsideAreTextOnly) {
  const std::string page =
      Report("  - {kind: \"<script>alert(1)</script>&\\\"'\", count: 2, group: \"</svg><b>\"}\n",
             "0.5", "\"<script>alert(1)</script>&\\\"'\"");
  EXPECT_THAT(page, HasSubstr("&lt;script&gt;alert(1)&lt;/script&gt;&amp;&quot;&#39;"));
  EXPECT_THAT(page, HasSubstr("&lt;/svg&gt;&lt;b&gt;"));
}

TEST_F(PlanReportTest, ObjectivesThatNothingMeets) {
  const std::string page = Report(kTwoRacks, "1e-6");
  EXPECT_THAT(page, HasSubstr("No placement meets the objectives at any rate that was tried."));
  EXPECT_THAT(page, HasSubstr("id=\"gantt\""));
}

TEST_F(PlanReportTest, ManyRacksAreDrawnOnceAndWorkersLeftOutAreSaid) {
  std::string nodes;
  for (int rack = 0; rack < 8; ++rack) {
    absl::StrAppend(&nodes, "  - {kind: big, count: 30, group: rack", rack, "}\n");
  }
  const std::string page = Report(nodes);
  EXPECT_THAT(page, HasSubstr(" times as rack0"));
  EXPECT_THAT(page, HasSubstr("Shown are 24 of its "));
}

TEST(SvgTest, EscapesWhatXmlForbids) {
  EXPECT_EQ(EscapeXml("a<b>&\"'c"), "a&lt;b&gt;&amp;&quot;&#39;c");
  EXPECT_EQ(EscapeXml("\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80"),
            "\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80");
  const std::string bad = "\xEF\xBF\xBD";
  EXPECT_EQ(EscapeXml(std::string("\0\x1f\x80", 3)), bad + bad + bad);
  EXPECT_EQ(EscapeXml("\xC3"), bad);
  EXPECT_EQ(EscapeXml("\xC0\xAF"), bad + bad) << "overlong";
  EXPECT_EQ(EscapeXml("\xED\xA0\x80x"), bad + bad + bad + "x") << "half of a pair";
  EXPECT_EQ(EscapeXml("\xEF\xBF\xBF"), bad + bad + bad);
}

TEST(SvgTest, TicksAreRound) {
  EXPECT_EQ(NiceTicks(0.5, 4, 8), (std::vector<double>{0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4}));
  EXPECT_EQ(NiceTicks(0.4, 2, 8).size(), 9u) << "both ends, 0.2 apart";
  EXPECT_EQ(NiceTicks(0, 60, 12),
            (std::vector<double>{0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60}));
  for (const double high : {1e-9, 3.7, 1234.5, 9e12}) {
    EXPECT_LE(NiceTicks(0, high, 8).size(), 9u);
    EXPECT_GE(NiceTicks(0, high, 8).size(), 3u);
  }
}

TEST(SvgTest, AChartWithoutPointsSaysSo) {
  const ChartSeries series[] = {{.name = "nothing"}};
  EXPECT_THAT(ChartSvg({.title = "t", .series = series}), HasSubstr("Nothing was simulated."));
}

TEST(GanttTest, StepsAreWhereTheyWere) {
  planner::SimulationResult trace;
  trace.steps = {{.worker = 0, .prefill = true, .begin_s = 0, .end_s = 5, .size = 1},
                 {.worker = 7, .prefill = false, .begin_s = 0, .end_s = 10, .size = 1}};
  trace.handoffs = {{.from = 0, .to = 7, .begin_s = -1, .end_s = 20}};
  const GanttRow rows[] = {{.worker = 0, .name = "only", .phase = planner::Phase::kPrefill}};
  const std::string svg = GanttSvg("t", rows, trace, 0, 10);
  // 818 places: half of them, and all.
  EXPECT_THAT(svg, HasSubstr("M170 38.0h409\" class=\"lane prefill\""));
  EXPECT_THAT(svg, HasSubstr("h818\" class=\"lane handoff\""));
  EXPECT_THAT(svg, Not(HasSubstr("lane decode"))) << "no row for that worker";
}

}  // namespace
}  // namespace tandem::cli
