// What the peer knows of models and GPUs: coefficients of its latency model by engine, model and
// tensor parallelism, and how many tokens of KV a configuration holds. Read from JSON text in the
// form of simpeer's coefficients.json. No I/O.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/statusor.h"
#include "scheduler/planner/compat/simulator.h"

namespace tandem::planner::compat {

/// Of one model.
struct ModelProfile {
  /// 0 when unknown.
  int32_t layers = 0, heads = 0;
  /// By tensor parallelism, of the disaggregated engine ("distserve") and the colocated ("vllm").
  std::map<int32_t, StageCosts> distserve, vllm;
  /// KV tokens an instance holds, by (tensor parallelism, pipeline stages).
  std::map<std::pair<int32_t, int32_t>, int64_t> max_tokens;

  /// Nothing where the model does not fit or was never measured.
  std::optional<int64_t> MaxTokens(int32_t tp, int32_t pp) const;
};

/// By model name, e.g. "facebook/opt-13b".
using PeerProfile = std::map<std::string, ModelProfile>;

/// INVALID_ARGUMENT, naming the field, when the text is not such a profile.
absl::StatusOr<PeerProfile> ParsePeerProfile(std::string_view json);

/// The costs of a placement whose phases differ in tensor parallelism: prefill's from one, decode's
/// from the other.
StageCosts Combine(const StageCosts& prefill, const StageCosts& decode);

}  // namespace tandem::planner::compat
