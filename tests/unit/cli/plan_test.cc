// `tandem plan` on folders of this test.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "cli/client.h"
#include "tests/unit/cli/call.h"

namespace tandem::cli {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class PlanTest : public testing::Test {
 protected:
  PlanTest()
      : folder_(fs::path(testing::TempDir()) /
                testing::UnitTest::GetInstance()->current_test_info()->name()) {
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  ~PlanTest() override { fs::remove_all(folder_); }

  std::string Path(const std::string& name) const { return folder_ / name; }
  void Write(const std::string& name, const std::string& text) {
    fs::create_directories(fs::path(Path(name)).parent_path());
    std::ofstream(Path(name)) << text;
  }
  std::string Read(const std::string& name) {
    std::ostringstream text;
    text << std::ifstream(Path(name)).rdbuf();
    return text.str();
  }
  Outcome Compat() {
    return Call(RunPlan, {"compat", "--cases", Path("in"), "--out", Path("out/deep")}, "");
  }

  const fs::path folder_;
};

TEST_F(PlanTest, CompatWritesWhatTheComparatorReads) {
  Write("in/cases/cases.json", R"([{"id": "one", "model": "facebook/opt-13b",
      "slo_sets": [{"name": "s", "ttft_ms": 100, "tpot_ms": 1}]}])");
  Write("in/cases/inputs/one.csv", "req_id,arrival_ms,prompt_len,output_len\n5,0,512,1\n");
  Write("in/goodput/goodput.json", R"([{"id": "g", "model": "facebook/opt-13b", "num_gpus": 2,
      "slo_ttft_ms": 100, "slo_tpot_ms": 100, "max_per_gpu_rate": 2, "eps": 0.5}])");
  const std::string gaps = "req_id,unit_gap_s,prompt_len,output_len\n0,0,512,64\n1,1,512,64\n";
  Write("in/goodput/inputs/g.csv", gaps);
  const std::string search = R"("model": "facebook/opt-13b", "num_node": 1, "gpus_per_node": 2,
      "slo_ttft_ms": 100, "slo_tpot_ms": 100, "max_per_gpu_rate": 2, "eps": 0.5)";
  Write("in/planner/search.json", R"([{"id": "p", "affinity": "high", )" + search + "}]");
  Write("in/planner/alg1.json", R"([{"id": "a", "traffic_rps": 6, )" + search + "}]");
  Write("in/planner/inputs/p.csv", gaps);
  Write("in/planner/inputs/a.csv", gaps);
  const Outcome outcome = Compat();
  EXPECT_EQ(outcome.code, kOk) << outcome.err;
  EXPECT_THAT(outcome.out, HasSubstr("one   1         75.2"));
  EXPECT_EQ(Read("out/deep/one.csv"),
            "req_id,ttft_ms,tpot_ms,finish_ms\n5,75.199881053,22.346027592,97.545908645\n");
  const auto goodput = nlohmann::json::parse(Read("out/deep/goodput.json"));
  EXPECT_EQ(goodput.at("g").at("per_phase"), 1.5);
  EXPECT_EQ(goodput.at("g").at("joint"), 1.5);
  const auto searches = nlohmann::json::parse(Read("out/deep/search.json"));
  EXPECT_EQ(searches.at("p").at("best"), (nlohmann::json{1, 1, 1, 1, 1}));
  EXPECT_EQ(searches.at("p").at("per_gpu_rate"), 1.5);
  EXPECT_EQ(searches.at("a").at("n_prefill"), 4);
  const auto results = nlohmann::json::parse(Read("out/deep/results.json"));
  EXPECT_EQ(results.at(0).at("attainment").at(0).at("ttft_attainment"), 1);
  EXPECT_EQ(results.at(0).at("attainment").at(0).at("both_attainment"), 0);
}

TEST_F(PlanTest, CompatRunsTheGoodCasesAndNamesTheBad) {
  Write("in/cases/cases.json", R"([{"id": "bad", "model": "facebook/opt-13b"},
                                   {"id": "huge", "model": "facebook/opt-13b"},
                                   {"id": "good", "model": "facebook/opt-13b"}])");
  Write("in/cases/inputs/good.csv", "req_id,arrival_ms,prompt_len,output_len\n5,0,512,1\n");
  Write("in/cases/inputs/huge.csv", "req_id,arrival_ms,prompt_len,output_len\n5,0,90000,1\n");
  const Outcome outcome = Compat();
  EXPECT_EQ(outcome.code, kFailed);
  EXPECT_THAT(outcome.err, HasSubstr("cases/cases.json: bad: there is no file "));
  EXPECT_THAT(outcome.err, HasSubstr("huge: request 0: the prompt of 90000 tokens can never run"));
  EXPECT_THAT(outcome.err, HasSubstr("2 of 3 cases could not be run"));
  EXPECT_THAT(Read("out/deep/good.csv"), HasSubstr("5,75.199881053"));
}

TEST_F(PlanTest, CompatTakesTheFoldersOwnCoefficients) {
  Write("in/cases/cases.json", R"([{"id": "one", "model": "mine"}])");
  Write("in/cases/inputs/one.csv", "req_id,arrival_ms,prompt_len,output_len\n5,0,10,1\n");
  Write("coefficients.json", R"({"max_num_tokens": {"mine": {"1,1": 100}},
      "model_layers_heads": {"mine": [4, 4]},
      "engine_distserve": {"mine": {"1": {"prefill_abc": [10, 0, 0],
          "decode_small_abc": [5, 0, 0], "decode_large_abc": [5, 0, 0]}}}})");
  const Outcome outcome = Compat();
  EXPECT_EQ(outcome.code, kOk) << outcome.err;
  EXPECT_THAT(Read("out/deep/one.csv"), HasSubstr("5,13.001000000,7.001000000,"));
  Write("coefficients.json", "{}");
  const Outcome bad = Compat();
  EXPECT_EQ(bad.code, kUsage);
  EXPECT_THAT(bad.err, HasSubstr("coefficients.json: coefficients: 'max_num_tokens' is missing"));
}

constexpr char kCluster[] = R"(
kv_bytes_per_token: 100e3
kinds:
  big:
    prefill_base_s: 0.018
    prefill_per_token_s: 1e-4
    decode_base_s: 0.02
    decode_per_sequence_s: 4e-5
    kv_capacity_tokens: 65536
nodes:
  - {kind: big, group: a}
  - {kind: big, group: b}
links: {within: {bytes_per_s: 1e9}, between: {bytes_per_s: 1e8, rtt_s: 0.001}}
)";

TEST_F(PlanTest, SearchTellsThePlan) {
  Write("cluster.yaml", kCluster);
  Write("w.csv", "arrival_s,prompt_tokens,output_tokens\n0,500,20\n1,400,30\n2,300,25\n");
  const auto search = [&](const std::string& workload) {
    return Call(RunPlan,
                {"search", "--cluster", Path("cluster.yaml"), "--workload", workload, "--ttft-slo",
                 "0.5", "--tpot-slo", "0.03", "--requests=50", "--json", Path("plan.json")},
                "");
  };
  for (const std::string& workload : {std::string("chat"), Path("w.csv")}) {
    const Outcome outcome = search(workload);
    EXPECT_EQ(outcome.code, kOk) << outcome.err;
    EXPECT_THAT(outcome.out, HasSubstr("runner-up"));
    EXPECT_THAT(outcome.out, HasSubstr("bottleneck"));
    const auto plan = nlohmann::json::parse(Read("plan.json"));
    EXPECT_EQ(plan.at("placements"), 7) << "of nine, two do only one thing";
    EXPECT_GT(plan.at("best").at("goodput_rps"), 0);
    EXPECT_GE(plan.at("best").at("goodput_rps"), plan.at("runner_up").at("goodput_rps"));
    EXPECT_EQ(plan.at("one_more").size(), 2u);
    EXPECT_EQ(plan.at("complete"), true);
    EXPECT_GT(plan.at("best").at("goodput_rps_per_device"), 0);
    EXPECT_GT(plan.at("utilisation").at("decode"), 0);
    EXPECT_LE(plan.at("utilisation").at("links"), 1);
    ASSERT_EQ(plan.at("handover").size(), 1u);
    EXPECT_FALSE(plan.at("handover").at(0).at("pairs").empty());
  }
  EXPECT_THAT(search(Path("gone.csv")).err, HasSubstr("there is no file"));
}

TEST_F(PlanTest, SearchChoosesWidthsAndPlansLargeClusters) {
  std::string text = kCluster;
  const std::string speed = R"({prefill_base_s: 0.02, prefill_per_token_s: 1.5e-4,
      decode_base_s: 0.02, decode_per_sequence_s: 6e-5, kv_capacity_tokens: 30000})";
  text.replace(text.find("nodes:"), 6,
               "  wide: {devices: 2, widths: {1: " + speed + ", 2: " + speed +
                   "}}\nnodes:\n  - {kind: wide, count: 2, group: a}");
  const auto search = [&] {
    Write("cluster.yaml", text);
    return Call(RunPlan,
                {"search", "--cluster", Path("cluster.yaml"), "--workload=chat", "--ttft-slo=2",
                 "--tpot-slo=0.1", "--requests=30", "--json", Path("plan.json")},
                "");
  };
  EXPECT_THAT(search().out, HasSubstr("(wide@a x1)"))
      << "two of one device do more than one of two";
  text.replace(text.find("count: 2"), 8, "count: 90");
  const Outcome large = search();
  EXPECT_THAT(large.out, HasSubstr("domain      ")) << large.err;
  EXPECT_GT(nlohmann::json::parse(Read("plan.json")).at("handover").at(0).at("members").size(), 1u);
}

TEST_F(PlanTest, SearchNamesTheFaultOfAClusterFile) {
  const auto fault = [&](std::string from, const std::string& to) {
    std::string text = kCluster;
    text.replace(text.find(from), from.size(), to);
    Write("cluster.yaml", text);
    const Outcome outcome = Call(RunPlan,
                                 {"search", "--cluster", Path("cluster.yaml"), "--workload=chat",
                                  "--ttft-slo=1", "--tpot-slo=1"},
                                 "");
    EXPECT_EQ(outcome.code, kUsage);
    return outcome.err;
  };
  EXPECT_THAT(fault("kinds:", "kinds: ["), HasSubstr("cluster.yaml: yaml-cpp: error"));
  EXPECT_THAT(fault("kv_bytes", "kw_bytes"), HasSubstr("kv_bytes_per_token is missing"));
  EXPECT_THAT(fault("kind: big", "kind: small"), HasSubstr("nodes: there is no kind 'small'"));
  EXPECT_THAT(fault("0.018", "fast"),
              HasSubstr("kinds: big: prefill_base_s must be a number from 0 to 100"));
  EXPECT_THAT(fault("decode_base_s", "decode_bass_s"), HasSubstr("decode_base_s is missing"));
  EXPECT_THAT(fault("group: a", "rack: a"), HasSubstr("nodes: unknown key rack"));
  EXPECT_THAT(fault("rtt_s", "rtt"), HasSubstr("links: between: unknown key rtt"));
  EXPECT_THAT(fault("  big:", "  big: {devices: 4, widths: {3: {}}}\n  small:"),
              HasSubstr("kinds: big: widths: a width must be a number that divides devices, 4"));
}

TEST_F(PlanTest, TellsTheFaultOfACommandLine) {
  EXPECT_THAT(Call(RunPlan, {}, "").err, HasSubstr("tandem: plan: which command?"));
  EXPECT_THAT(Call(RunPlan, {"guess"}, "").err, HasSubstr("unknown command 'plan guess'"));
  EXPECT_THAT(Call(RunPlan, {"search", "--requests=1"}, "").err,
              HasSubstr("--requests and --context must be at least 2"));
  EXPECT_THAT(Call(RunPlan, {"compat"}, "").err, HasSubstr("--cases is missing"));
  EXPECT_THAT(Call(RunPlan, {"compat", "--cases=x"}, "").err, HasSubstr("--out is missing"));
  const Outcome empty = Compat();
  EXPECT_EQ(empty.code, kFailed);
  EXPECT_THAT(empty.err, HasSubstr("there is none of cases/cases.json"));
  const Outcome help = Call(RunPlan, {"compat", "--help"}, "");
  EXPECT_EQ(help.code, kOk);
  EXPECT_THAT(help.out, HasSubstr("--coefficients=FILE"));
}

}  // namespace
}  // namespace tandem::cli
