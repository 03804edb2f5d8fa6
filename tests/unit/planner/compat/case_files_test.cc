// Folders of cases: what is read, and what is said of bad ones.
#include "scheduler/planner/compat/case_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "scheduler/planner/compat/builtin_profile.h"

namespace tandem::planner::compat {
namespace {

using testing::HasSubstr;

using Files = std::map<std::string, std::string>;

constexpr char kCsv[] = "req_id,arrival_ms,prompt_len,output_len\n7,0.5,10,2\n";
constexpr char kGaps[] = "req_id,unit_gap_s,prompt_len,output_len\n0,0,10,2\n";
constexpr char kCosts[] =
    R"("coefficients": {"prefill_abc": [1, 2, 3], "decode_small_abc": [4, 5, 6],
        "decode_large_abc": [7, 8, 9], "decode_large_min_batch": 90},
       "limits": {"prefill_max_tokens_per_batch": 100, "decode_max_requests_per_batch": 50,
        "decode_max_context_tokens_per_batch": 3000})";

absl::StatusOr<CaseFolder> Load(const Files& files) {
  const auto profile = ParsePeerProfile(BuiltinPeerProfile());
  return LoadCases(
      [&](const std::string& path) -> absl::StatusOr<std::string> {
        const auto found = files.find(path);
        if (found == files.end()) return absl::NotFoundError("there is no file " + path);
        return found->second;
      },
      *profile);
}

/// A folder with one latency case of these fields.
absl::StatusOr<LatencyCase> LoadOne(const std::string& fields, const std::string& csv = kCsv) {
  const auto folder = Load(
      {{"cases/cases.json", "[{\"id\": \"x\", " + fields + "}]"}, {"cases/inputs/x.csv", csv}});
  if (!folder.ok()) return folder.status();
  return folder->latencies.at(0).content;
}

std::string Fault(const std::string& fields, const std::string& csv = kCsv) {
  return std::string(LoadOne(fields, csv).status().message());
}

TEST(LoadCases, ReadsWhatACaseSays) {
  const auto loaded = LoadOne(std::string(kCosts) + R"(, "backend": "distserve", "pp_prefill": 2,
      "n_decode": 3, "slo_sets": [{"name": "tight", "ttft_ms": 5, "tpot_ms": 6}])");
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->placement.mode, Mode::kDisaggregated);
  EXPECT_EQ(loaded->placement.prefill_stages, 2);
  EXPECT_EQ(loaded->placement.decode_stages, 1);
  EXPECT_EQ(loaded->placement.decode_instances, 3);
  EXPECT_EQ(loaded->placement.costs.decode_large.c, 9);
  EXPECT_EQ(loaded->placement.costs.decode_large_min_batch, 90);
  EXPECT_EQ(loaded->placement.limits.decode_context_tokens, 3000);
  EXPECT_EQ(loaded->request_ids, std::vector<int64_t>{7});
  EXPECT_EQ(loaded->requests[0].arrival_ms, 0.5);
  EXPECT_EQ(loaded->slo_sets[0].slo.tpot_ms, 6);
}

TEST(LoadCases, TakesFromTheProfileWhatACaseDoesNotSay) {
  const auto loaded = LoadOne(R"("model": "facebook/opt-13b", "tp_prefill": 2, "tp_decode": 1)");
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->placement.limits.prefill_tokens, 163008);
  EXPECT_EQ(loaded->placement.limits.decode_requests, 66144);
  EXPECT_NEAR(loaded->placement.costs.prefill.a, 14.743, 1e-3);
  EXPECT_NEAR(loaded->placement.costs.decode_small.a, 19.935, 1e-3);
  const auto colocated = LoadOne(R"("model": "facebook/opt-13b", "backend": "vllm")");
  ASSERT_TRUE(colocated.ok()) << colocated.status();
  EXPECT_EQ(colocated->placement.mode, Mode::kColocated);
  EXPECT_NEAR(colocated->placement.costs.prefill.a, 22.052, 1e-3);
}

TEST(LoadCases, NamesTheFaultOfACase) {
  EXPECT_EQ(Fault(R"("model": "gpt")"),
            "cases/cases.json: x: the profile does not know its model 'gpt'");
  EXPECT_THAT(Fault(R"("model": "facebook/opt-13b", "tp_prefill": 3)"),
              HasSubstr("the profile none for its model at tp 3"));
  EXPECT_THAT(Fault(std::string(kCosts) + R"(, "backend": "tgi")"),
              HasSubstr("'backend' is 'tgi'; allowed are distserve and vllm"));
  EXPECT_THAT(Fault(std::string(kCosts) + R"(, "pp_decode": 0)"),
              HasSubstr("'pp_decode' is 0; it must be a whole number from 1 to"));
  EXPECT_THAT(Fault(std::string(kCosts) + R"(, "pp_decode": "two")"),
              HasSubstr("'pp_decode' is \"two\""));
  EXPECT_THAT(Fault(R"("coefficients": 5)"), HasSubstr("coefficients: is not a JSON object"));
  EXPECT_THAT(Fault(R"("coefficients": {"prefill_abc": [1, 2]})"),
              HasSubstr("'prefill_abc' is not a list of three numbers"));
  EXPECT_THAT(Fault(std::string(kCosts) + R"(, "slo_sets": [{"name": "a"}])"),
              HasSubstr("slo_sets: 'ttft_ms' is missing"));
  EXPECT_EQ(Fault(std::string(kCosts) + R"(, "input_csv": "gone.csv")"),
            "cases/cases.json: x: there is no file gone.csv");
  EXPECT_EQ(Fault(kCosts, "req_id,arrival_ms,prompt_len\n"),
            "cases/inputs/x.csv:1: no column 'output_len'");
  EXPECT_THAT(Fault(kCosts, std::string(kCsv) + "7,1,1,1\n"), HasSubstr("a req_id is there twice"));
  EXPECT_THAT(Fault(kCosts, "req_id,arrival_ms,prompt_len,output_len\n"),
              HasSubstr("has no request"));
}

TEST(LoadCases, ABadCaseLeavesTheOthers) {
  const auto folder = Load({{"cases/cases.json", R"([{"id": "bad"}, {"id": "good",
                               "model": "facebook/opt-13b"}])"},
                            {"cases/inputs/good.csv", kCsv}});
  ASSERT_TRUE(folder.ok()) << folder.status();
  EXPECT_FALSE(folder->latencies[0].content.ok());
  EXPECT_TRUE(folder->latencies[1].content.ok());
}

TEST(LoadCases, ReadsSearches) {
  const std::string common =
      R"("model": "facebook/opt-13b", "num_node": 2, "gpus_per_node": 4, "slo_ttft_ms": 1,
         "slo_tpot_ms": 2, "max_per_gpu_rate": 5, "eps": 0.25)";
  const auto folder =
      Load({{"planner/search.json", R"([{"id": "p", "affinity": "low", )" + common + "}]"},
            {"planner/inputs/p.csv", kGaps},
            {"planner/alg1.json",
             R"([{"id": "a", "traffic_rps": 40, )" + common + R"(}, {"id": "b", )" + common + "}]"},
            {"planner/inputs/a.csv", kGaps}});
  ASSERT_TRUE(folder.ok()) << folder.status();
  ASSERT_TRUE(folder->searches[0].content.ok()) << folder->searches[0].content.status();
  EXPECT_FALSE(folder->searches[0].content->task.high_affinity);
  EXPECT_EQ(folder->searches[0].content->task.attainment_target, 0.9);
  ASSERT_TRUE(folder->algorithm1[0].content.ok()) << folder->algorithm1[0].content.status();
  EXPECT_EQ(folder->algorithm1[0].content->task.traffic_rps, 40);
  EXPECT_THAT(folder->algorithm1[1].content.status().message(),
              HasSubstr("'traffic_rps' is missing"));
}

TEST(LoadCases, RefusesListsThatAreNone) {
  const auto fault = [](const std::string& text) {
    return std::string(Load({{"goodput/goodput.json", text}}).status().message());
  };
  EXPECT_THAT(fault("[{"), HasSubstr("goodput/goodput.json: "));
  EXPECT_EQ(fault("{}"), "goodput/goodput.json: is not a list");
  EXPECT_EQ(fault("[5]"), "goodput/goodput.json: case 1: is not a JSON object");
  EXPECT_EQ(fault("[{}]"), "goodput/goodput.json: case 1: 'id' is missing");
  EXPECT_THAT(fault(R"([{"id": "../x"}])"), HasSubstr("its id may have"));
  EXPECT_THAT(fault(R"([{"id": "x"}, {"id": "x"}])"), HasSubstr("the id 'x' is there twice"));
  EXPECT_EQ(Load({}).status().code(), absl::StatusCode::kNotFound);
}

TEST(ParsePeerProfile, NamesTheFault) {
  const auto fault = [](std::string_view text) {
    return std::string(ParsePeerProfile(text).status().message());
  };
  EXPECT_THAT(fault("nonsense"), HasSubstr("coefficients: "));
  EXPECT_EQ(fault("{}"), "coefficients: 'max_num_tokens' is missing");
  const std::string head = R"({"max_num_tokens": {"m": {"1,1": 5}}, "model_layers_heads": )";
  EXPECT_EQ(fault(head + R"({"m": [4]}, "engine_distserve": {}})"),
            "model_layers_heads: m is not [layers, heads]");
  EXPECT_EQ(fault(head + R"({"m": [4, 4]}, "engine_distserve": {"m": {"one": {}}}})"),
            "engine_distserve: m: 'one' is no degree");
  EXPECT_EQ(fault(head + R"({"m": [4, 4]}, "engine_distserve": {"m": {"1": {}}}})"),
            "engine_distserve: m: tp 1: 'prefill_abc' is missing");
}

}  // namespace
}  // namespace tandem::planner::compat
