#include "scheduler/planner/compat/placement_search.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace tandem::planner::compat {
namespace {

constexpr int64_t kMaxGpus = 10'000;

std::vector<int32_t> DivisorsUpTo(int32_t number, int64_t max) {
  std::vector<int32_t> divisors;
  for (int32_t i = 1; i <= std::min<int64_t>(number, max); ++i) {
    if (number % i == 0) divisors.push_back(i);
  }
  return divisors;
}

GoodputTask TaskOf(const SearchTask& task, const Placement& placement, int64_t num_gpus) {
  return {.placement = placement,
          .num_gpus = num_gpus,
          .slo = task.slo,
          .attainment_target = task.attainment_target,
          .max_per_gpu_rate = task.max_per_gpu_rate,
          .eps = task.eps};
}

/// Nothing when the configuration has no memory entry or no latency profile.
std::optional<Placement> PlacementOf(const ModelProfile& model, const JointConfig& config) {
  const int32_t prefill_stages = config.pp_cross * config.pp_prefill;
  const int32_t decode_stages = config.pp_cross * config.pp_decode;
  const auto prefill_tokens = model.MaxTokens(config.tp_prefill, prefill_stages);
  const auto decode_tokens = model.MaxTokens(config.tp_decode, decode_stages);
  const auto prefill = model.distserve.find(config.tp_prefill);
  const auto decode = model.distserve.find(config.tp_decode);
  if (!prefill_tokens || !decode_tokens || prefill == model.distserve.end() ||
      decode == model.distserve.end()) {
    return std::nullopt;
  }
  return Placement{
      .prefill_stages = prefill_stages,
      .decode_stages = decode_stages,
      .costs = Combine(prefill->second, decode->second),
      .limits = {.prefill_tokens = *prefill_tokens, .decode_requests = *decode_tokens}};
}

bool Better(const SearchedConfig& a, const SearchedConfig& b) {
  const double a_rate = a.goodput->best_per_gpu_rate, b_rate = b.goodput->best_per_gpu_rate;
  return a_rate != b_rate ? a_rate > b_rate : a.config.num_gpus() < b.config.num_gpus();
}

}  // namespace

absl::StatusOr<std::vector<JointConfig>> EnumerateConfigs(const ModelProfile& model,
                                                          const SearchTask& task) {
  const int64_t all = int64_t{task.nodes} * task.gpus_per_node;
  if (model.layers < 1 || model.heads < 1) {
    return absl::InvalidArgumentError("the model's layers and heads are not known");
  }
  if (task.nodes < 1 || task.gpus_per_node < 1 || all > kMaxGpus) {
    return absl::InvalidArgumentError(absl::StrCat("there are ", task.nodes, " nodes of ",
                                                   task.gpus_per_node, " GPUs; allowed are 1 to ",
                                                   kMaxGpus, " GPUs in all"));
  }
  const int64_t span = task.high_affinity ? all : task.gpus_per_node;
  const std::vector<int32_t> tps = DivisorsUpTo(model.heads, span);
  const std::vector<int32_t> pps = DivisorsUpTo(model.layers, span);
  const auto divides_layers = [&](int32_t stages) { return model.layers % stages == 0; };
  std::vector<JointConfig> configs;
  for (const int32_t cross : DivisorsUpTo(model.layers, task.high_affinity ? 1 : task.nodes)) {
    for (const int32_t tp_prefill : tps) {
      for (const int32_t pp_prefill : pps) {
        for (const int32_t tp_decode : tps) {
          for (const int32_t pp_decode : pps) {
            const JointConfig config{cross, tp_prefill, pp_prefill, tp_decode, pp_decode};
            const bool fits = config.num_gpus() <= all &&
                              (task.high_affinity || config.num_gpus() / cross <= span);
            if (fits && divides_layers(cross * pp_prefill) && divides_layers(cross * pp_decode)) {
              configs.push_back(config);
            }
          }
        }
      }
    }
  }
  return configs;
}

absl::StatusOr<SearchResult> SearchPlacement(const ModelProfile& model, const SearchTask& task,
                                             std::span<const ScalableRequest> requests) {
  ASSIGN_OR_RETURN(const std::vector<JointConfig> configs, EnumerateConfigs(model, task));
  SearchResult result;
  for (const JointConfig& config : configs) {
    SearchedConfig searched{.config = config};
    if (const auto placement = PlacementOf(model, config)) {
      absl::StatusOr<Goodput> goodput = FindGoodput(TaskOf(task, *placement, config.num_gpus()),
                                                    requests, Criterion::kPerPhasePercentile);
      if (goodput.ok()) {
        searched.goodput = *std::move(goodput);
      } else {
        searched.skipped = std::string(goodput.status().message());
      }
    } else {
      searched.skipped = "no memory entry or no latency profile for this (tp,pp)";
    }
    result.configs.push_back(std::move(searched));
    const SearchedConfig& last = result.configs.back();
    if (last.goodput && (!result.best || Better(last, result.configs[*result.best]))) {
      result.best = result.configs.size() - 1;
    }
  }
  return result;
}

absl::StatusOr<Algorithm1Result> RunAlgorithm1(const ModelProfile& model, const SearchTask& task,
                                               std::span<const ScalableRequest> requests) {
  std::map<std::pair<int32_t, int32_t>, PhaseConfig> configs;
  const auto phase = [&](Mode mode, Criterion criterion, Goodput PhaseConfig::*into) {
    return [&, mode, criterion,
            into](Parallelism parallelism) -> absl::StatusOr<std::optional<double>> {
      const auto [tp, pp] = parallelism;
      auto placement = PlacementOf(
          model, {.tp_prefill = tp, .pp_prefill = pp, .tp_decode = tp, .pp_decode = pp});
      if (!placement) return std::nullopt;
      placement->mode = mode;
      const absl::StatusOr<Goodput> goodput =
          FindGoodput(TaskOf(task, *placement, parallelism.devices()), requests, criterion);
      if (!goodput.ok()) return std::nullopt;
      PhaseConfig& config = configs[{tp, pp}];
      config.parallelism = parallelism;
      config.*into = *goodput;
      return goodput->best_per_gpu_rate;
    };
  };
  Algorithm1Result result;
  ASSIGN_OR_RETURN(result.plan,
                   HighAffinityPlacement(
                       task.nodes, task.gpus_per_node, task.traffic_rps,
                       phase(Mode::kPrefillOnly, Criterion::kTtftAttainment, &PhaseConfig::prefill),
                       phase(Mode::kDecodeOnly, Criterion::kTpotAttainment, &PhaseConfig::decode)));
  for (auto& [key, config] : configs) result.configs.push_back(std::move(config));
  return result;
}

}  // namespace tandem::planner::compat
