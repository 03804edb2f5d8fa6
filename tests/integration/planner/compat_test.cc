// DistServe's own answers, compared with ours to a request (simpeer/README.md).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "scheduler/planner/compat/answers.h"
#include "scheduler/planner/compat/builtin_profile.h"
#include "scheduler/planner/csv.h"

namespace tandem::planner::compat {
namespace {

using nlohmann::json;

constexpr double kToleranceMs = 1e-3, kExact = 1e-9;

absl::StatusOr<std::string> Read(const std::string& path) {
  std::ifstream file(std::filesystem::path(TANDEM_PEER_ANSWERS) / path);
  if (!file.is_open()) return absl::NotFoundError(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

json ReadJson(const std::string& path) { return json::parse(Read(path).value()); }

/// The peer's answers of a list, by id.
std::map<std::string, json> Answers(const std::string& path) {
  std::map<std::string, json> answers;
  for (const json& answer : ReadJson(path)) answers[answer.at("id")] = answer;
  return answers;
}

class CompatTest : public testing::Test {
 protected:
  CompatTest()
      : profile_(ParsePeerProfile(BuiltinPeerProfile()).value()),
        folder_(LoadCases(Read, profile_).value()) {}

  const PeerProfile profile_;
  const CaseFolder folder_;
};

void ExpectPoint(const RatePoint& ours, const json& theirs) {
  EXPECT_EQ(ours.per_gpu_rate, theirs.at("per_gpu_rate"));
  EXPECT_EQ(ours.pass, theirs.at("success"));
  EXPECT_NEAR(ours.attainment.ttft, theirs.at("ttft_attainment"), kExact);
  EXPECT_NEAR(ours.attainment.tpot, theirs.at("tpot_attainment"), kExact);
  EXPECT_NEAR(ours.attainment.both, theirs.at("both_attainment"), kExact);
  EXPECT_NEAR(ours.ttft.p50, theirs.at("ttft_p50_ms"), kToleranceMs);
  EXPECT_NEAR(ours.ttft.p99, theirs.at("ttft_p99_ms"), kToleranceMs);
  EXPECT_NEAR(ours.tpot.p90, theirs.at("tpot_p90_ms"), kToleranceMs);
}

TEST_F(CompatTest, EveryRequestHasThePeersTimes) {
  const auto answers = Answers("cases/expected/results.json");
  ASSERT_EQ(folder_.latencies.size(), answers.size());
  for (const auto& [id, task] : folder_.latencies) {
    SCOPED_TRACE(id);
    ASSERT_TRUE(task.ok()) << task.status();
    const auto ours = Answer(*task);
    ASSERT_TRUE(ours.ok()) << ours.status();
    const Latencies& times = ours->simulated.latencies;
    const CsvColumn columns[] = {
        {.name = "req_id"}, {.name = "ttft_ms"}, {.name = "tpot_ms"}, {.name = "finish_ms"}};
    const json& theirs = answers.at(id);
    const auto rows = ReadCsv(Read(theirs.at("expected_csv")).value(), id, columns).value();
    ASSERT_EQ(rows.size(), task->request_ids.size());
    for (size_t i = 0; i < rows.size(); ++i) {
      ASSERT_EQ(rows[i][0], task->request_ids[i]);
      ASSERT_NEAR(times.ttft_ms[i], rows[i][1], kToleranceMs) << "request " << i;
      ASSERT_NEAR(times.tpot_ms[i], rows[i][2], kToleranceMs) << "request " << i;
      ASSERT_NEAR(times.finish_ms[i], rows[i][3], kToleranceMs) << "request " << i;
    }
    ASSERT_EQ(ours->attainments.size(), theirs.at("attainment").size());
    for (size_t i = 0; i < ours->attainments.size(); ++i) {
      const json& share = theirs.at("attainment")[i];
      EXPECT_NEAR(ours->attainments[i].ttft, share.at("ttft_attainment"), kExact);
      EXPECT_NEAR(ours->attainments[i].tpot, share.at("tpot_attainment"), kExact);
      EXPECT_NEAR(ours->attainments[i].both, share.at("both_attainment"), kExact);
    }
    const Counters& counters = ours->simulated.counters;
    EXPECT_EQ(counters.prefill_batches, theirs.at("counters").at("prefill_batches"));
    EXPECT_EQ(counters.decode_batches, theirs.at("counters").at("decode_iterations_stage0"));
    EXPECT_EQ(counters.max_decode_batch_requests,
              theirs.at("counters").at("max_decode_batch_requests"));
  }
}

TEST_F(CompatTest, GoodputIsThePeersAtEveryRateTried) {
  const auto answers = Answers("goodput/expected/results.json");
  ASSERT_EQ(folder_.goodputs.size(), answers.size());
  for (const auto& [id, task] : folder_.goodputs) {
    SCOPED_TRACE(id);
    ASSERT_TRUE(task.ok()) << task.status();
    const auto ours = Answer(*task);
    ASSERT_TRUE(ours.ok()) << ours.status();
    const auto expect = [&](const Goodput& goodput, const json& theirs) {
      EXPECT_EQ(goodput.best_per_gpu_rate, theirs.at("best_per_gpu_rate"));
      ASSERT_EQ(goodput.trace.size(), theirs.at("trace").size());
      for (size_t i = 0; i < goodput.trace.size(); ++i) {
        ExpectPoint(goodput.trace[i], theirs.at("trace")[i]);
      }
    };
    expect(ours->per_phase, answers.at(id).at("goodput_per_phase_percentile"));
    expect(ours->joint, answers.at(id).at("goodput_joint_attainment"));
  }
}

TEST_F(CompatTest, SearchesFindThePeersPlacement) {
  const auto answers = Answers("planner/expected/search_results.json");
  ASSERT_EQ(folder_.searches.size(), answers.size());
  for (const auto& [id, task] : folder_.searches) {
    SCOPED_TRACE(id);
    ASSERT_TRUE(task.ok()) << task.status();
    const auto ours = SearchPlacement(profile_.at(task->model), task->task, task->requests);
    ASSERT_TRUE(ours.ok()) << ours.status();
    const json& theirs = answers.at(id);
    ASSERT_EQ(ours->configs.size(), theirs.at("configs").size());
    for (size_t i = 0; i < ours->configs.size(); ++i) {
      const SearchedConfig& config = ours->configs[i];
      const json& other = theirs.at("configs")[i];
      EXPECT_EQ(config.config, (JointConfig{other.at("pp_cross"), other.at("tp_prefill"),
                                            other.at("pp_prefill_intra"), other.at("tp_decode"),
                                            other.at("pp_decode_intra")}));
      ASSERT_EQ(config.goodput.has_value(), other.at("status") == "ok");
      if (!config.goodput) continue;
      EXPECT_EQ(config.goodput->best_per_gpu_rate, other.at("best_per_gpu_rate"));
      ASSERT_EQ(config.goodput->trace.size(), other.at("trace").size());
      for (size_t j = 0; j < config.goodput->trace.size(); ++j) {
        EXPECT_NEAR(config.goodput->trace[j].ttft.p90, other.at("trace")[j][1], kToleranceMs);
        EXPECT_NEAR(config.goodput->trace[j].tpot.p90, other.at("trace")[j][2], kToleranceMs);
      }
    }
    ASSERT_TRUE(ours->best.has_value());
    const SearchedConfig& best = ours->configs[*ours->best];
    EXPECT_EQ(best.goodput->best_per_gpu_rate, theirs.at("best").at("best_per_gpu_rate"));
    EXPECT_EQ(best.config.tp_prefill, theirs.at("best").at("tp_prefill"));
    EXPECT_EQ(best.config.tp_decode, theirs.at("best").at("tp_decode"));
    EXPECT_EQ(best.config.num_gpus(), theirs.at("best").at("num_gpus"));
  }
}

TEST_F(CompatTest, Algorithm1FindsThePeersPlacement) {
  const auto answers = Answers("planner/expected/alg1_results.json");
  ASSERT_EQ(folder_.algorithm1.size(), answers.size());
  for (const auto& [id, task] : folder_.algorithm1) {
    SCOPED_TRACE(id);
    ASSERT_TRUE(task.ok()) << task.status();
    const auto ours = RunAlgorithm1(profile_.at(task->model), task->task, task->requests);
    ASSERT_TRUE(ours.ok()) << ours.status();
    const json& theirs = answers.at(id);
    const auto expect = [](const PhaseChoice& choice, const json& other) {
      EXPECT_EQ(choice.parallelism,
                (Parallelism{.intra_op = other.at("tp"), .inter_op = other.at("pp")}));
      EXPECT_EQ(choice.per_device_rps, other.at("per_gpu_rate"));
    };
    expect(ours->plan.prefill, theirs.at("best_prefill"));
    expect(ours->plan.decode, theirs.at("best_decode"));
    EXPECT_EQ(ours->plan.prefill.instances, theirs.at("n_prefill"));
    EXPECT_EQ(ours->plan.decode.instances, theirs.at("n_decode"));
    EXPECT_EQ(ours->plan.devices(), theirs.at("total_gpus"));
    ASSERT_EQ(ours->configs.size(), theirs.at("configs").size());
    for (size_t i = 0; i < ours->configs.size(); ++i) {
      const json& other = theirs.at("configs")[i];
      EXPECT_EQ(ours->configs[i].prefill.best_per_gpu_rate,
                other.at("prefill").at("best_per_gpu_rate"));
      EXPECT_EQ(ours->configs[i].decode.best_per_gpu_rate,
                other.at("decode").at("best_per_gpu_rate"));
    }
  }
}

}  // namespace
}  // namespace tandem::planner::compat
