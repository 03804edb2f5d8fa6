#include "scheduler/planner/compat/answers.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_format.h"
#include "base/status_macros.h"

namespace tandem::planner::compat {
namespace {

/// Keys in the order written.
using Ordered = nlohmann::ordered_json;

std::string Dump(const Ordered& json) {
  return json.dump(1, ' ', false, Ordered::error_handler_t::replace) + "\n";
}

Ordered Percentiles(const PercentilesMs& ttft, const PercentilesMs& tpot) {
  return {{"ttft_p50_ms", ttft.p50}, {"ttft_p90_ms", ttft.p90}, {"ttft_p99_ms", ttft.p99},
          {"tpot_p50_ms", tpot.p50}, {"tpot_p90_ms", tpot.p90}, {"tpot_p99_ms", tpot.p99}};
}

Ordered Shares(const Attainment& attainment) {
  return {{"ttft_attainment", attainment.ttft},
          {"tpot_attainment", attainment.tpot},
          {"both_attainment", attainment.both}};
}

Ordered Trace(const Goodput& goodput) {
  Ordered rows = Ordered::array();
  for (const RatePoint& point : goodput.trace) {
    Ordered row = {{"per_gpu_rate", point.per_gpu_rate}, {"total_rate_rps", point.total_rps}};
    row.update(Shares(point.attainment));
    row.update(Percentiles(point.ttft, point.tpot));
    row["success"] = point.pass;
    rows.push_back(std::move(row));
  }
  return rows;
}

Ordered ConfigOf(const SearchedConfig& searched) {
  const JointConfig& config = searched.config;
  Ordered json = {{"pp_cross", config.pp_cross},           {"tp_prefill", config.tp_prefill},
                  {"pp_prefill_intra", config.pp_prefill}, {"tp_decode", config.tp_decode},
                  {"pp_decode_intra", config.pp_decode},   {"num_gpus", config.num_gpus()}};
  if (!searched.goodput) {
    json["status"] = "skipped: " + searched.skipped;
    return json;
  }
  json["status"] = "ok";
  json["best_per_gpu_rate"] = searched.goodput->best_per_gpu_rate;
  Ordered& rows = json["trace"] = Ordered::array();
  for (const RatePoint& point : searched.goodput->trace) {
    rows.push_back({point.per_gpu_rate, point.ttft.p90, point.tpot.p90, point.pass});
  }
  return json;
}

Ordered SearchOf(const SearchResult& result) {
  Ordered best = Ordered::array(), configs = Ordered::array();
  double rate = 0;
  int64_t simulated = 0, num_gpus = 0;
  for (const SearchedConfig& searched : result.configs) {
    simulated += searched.goodput.has_value();
    configs.push_back(ConfigOf(searched));
  }
  if (result.best) {
    const auto& [config, goodput, skipped] = result.configs[*result.best];
    best = {config.pp_cross, config.tp_prefill, config.pp_prefill, config.tp_decode,
            config.pp_decode};
    rate = goodput->best_per_gpu_rate;
    num_gpus = config.num_gpus();
  }
  return {{"best", std::move(best)},        {"per_gpu_rate", rate},
          {"num_gpus", num_gpus},           {"configs_enumerated", result.configs.size()},
          {"configs_simulated", simulated}, {"configs", std::move(configs)}};
}

Ordered PhaseOf(const PhaseChoice& choice) {
  return {{"per_gpu_rate", choice.per_device_rps},
          {"tp", choice.parallelism.intra_op},
          {"pp", choice.parallelism.inter_op},
          {"goodput_rps", choice.instance_rps()}};
}

Ordered PhaseTrace(const Goodput& goodput, const Parallelism& parallelism,
                   double Attainment::*share, PercentilesMs RatePoint::*times) {
  Ordered rows = Ordered::array();
  for (const RatePoint& point : goodput.trace) {
    rows.push_back({point.per_gpu_rate, point.attainment.*share, (point.*times).p90, point.pass});
  }
  return {{"best_per_gpu_rate", goodput.best_per_gpu_rate},
          {"goodput_rps", goodput.best_per_gpu_rate * parallelism.devices()},
          {"trace", std::move(rows)}};
}

Ordered Algorithm1Of(const Algorithm1Result& result) {
  const HighAffinityPlan& plan = result.plan;
  Ordered configs = Ordered::array();
  for (const auto& [parallelism, prefill, decode] : result.configs) {
    configs.push_back(
        {{"tp", parallelism.intra_op},
         {"pp", parallelism.inter_op},
         {"num_gpus", parallelism.devices()},
         {"prefill", PhaseTrace(prefill, parallelism, &Attainment::ttft, &RatePoint::ttft)},
         {"decode", PhaseTrace(decode, parallelism, &Attainment::tpot, &RatePoint::tpot)}});
  }
  return {{"best_prefill", PhaseOf(plan.prefill)}, {"best_decode", PhaseOf(plan.decode)},
          {"n_prefill", plan.prefill.instances},   {"n_decode", plan.decode.instances},
          {"total_gpus", plan.devices()},          {"configs", std::move(configs)}};
}

}  // namespace

absl::StatusOr<LatencyAnswer> Answer(const LatencyCase& task) {
  LatencyAnswer answer;
  ASSIGN_OR_RETURN(answer.simulated, Simulate(task.placement, task.requests));
  const Latencies& latencies = answer.simulated.latencies;
  for (const SloSet& set : task.slo_sets) {
    answer.attainments.push_back(
        Attained(latencies.ttft_ms, latencies.tpot_ms, set.slo.ttft_ms, set.slo.tpot_ms));
  }
  answer.ttft = compat::Percentiles(latencies.ttft_ms);
  answer.tpot = compat::Percentiles(latencies.tpot_ms);
  return answer;
}

absl::StatusOr<GoodputAnswer> Answer(const GoodputCase& task) {
  GoodputAnswer answer;
  ASSIGN_OR_RETURN(answer.per_phase,
                   FindGoodput(task.task, task.requests, Criterion::kPerPhasePercentile));
  ASSIGN_OR_RETURN(answer.joint,
                   FindGoodput(task.task, task.requests, Criterion::kJointAttainment));
  return answer;
}

std::string LatencyCsv(const LatencyCase& task, const LatencyAnswer& answer) {
  const Latencies& latencies = answer.simulated.latencies;
  std::string csv = "req_id,ttft_ms,tpot_ms,finish_ms\n";
  for (size_t i = 0; i < task.request_ids.size(); ++i) {
    absl::StrAppendFormat(&csv, "%d,%.9f,%.9f,%.9f\n", task.request_ids[i], latencies.ttft_ms[i],
                          latencies.tpot_ms[i], latencies.finish_ms[i]);
  }
  return csv;
}

std::string GoodputJson(std::span<const Named<GoodputAnswer>> answers) {
  Ordered json = Ordered::object();
  for (const auto& [id, answer] : answers) {
    json[id] = {{"per_phase", answer.per_phase.best_per_gpu_rate},
                {"joint", answer.joint.best_per_gpu_rate},
                {"per_phase_trace", Trace(answer.per_phase)},
                {"joint_trace", Trace(answer.joint)}};
  }
  return Dump(json);
}

std::string SearchJson(std::span<const Named<SearchResult>> searches,
                       std::span<const Named<Algorithm1Result>> algorithm1) {
  Ordered json = Ordered::object();
  for (const auto& [id, result] : searches) json[id] = SearchOf(result);
  for (const auto& [id, result] : algorithm1) json[id] = Algorithm1Of(result);
  return Dump(json);
}

std::string ResultsJson(std::span<const Named<LatencySummary>> summaries) {
  Ordered json = Ordered::array();
  for (const auto& [id, summary] : summaries) {
    const LatencyAnswer& answer = summary.answer;
    Ordered attainment = Ordered::array();
    for (size_t i = 0; i < answer.attainments.size(); ++i) {
      const SloSet& set = summary.task->slo_sets[i];
      attainment.push_back(
          {{"name", set.name}, {"ttft_ms", set.slo.ttft_ms}, {"tpot_ms", set.slo.tpot_ms}});
      attainment.back().update(Shares(answer.attainments[i]));
    }
    const Counters& counters = answer.simulated.counters;
    json.push_back({{"id", id},
                    {"attainment", std::move(attainment)},
                    {"latency", Percentiles(answer.ttft, answer.tpot)},
                    {"counters",
                     {{"prefill_batches", counters.prefill_batches},
                      {"max_prefill_batch_requests", counters.max_prefill_batch_requests},
                      {"max_prefill_batch_tokens", counters.max_prefill_batch_tokens},
                      {"decode_iterations_stage0", counters.decode_batches},
                      {"max_decode_batch_requests", counters.max_decode_batch_requests}}}});
  }
  return Dump(json);
}

}  // namespace tandem::planner::compat
