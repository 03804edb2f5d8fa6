#include "scheduler/planner/compat/profile.h"

#include <cmath>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/status_macros.h"
#include "scheduler/planner/compat/json_fields.h"
#include "scheduler/planner/compat/profile_fields.h"

namespace tandem::planner::compat {
namespace {

constexpr int64_t kMaxDegree = 100'000;

/// A degree of parallelism written as a key.
bool ReadDegree(absl::string_view text, int32_t& degree) {
  return absl::SimpleAtoi(text, &degree) && degree >= 1 && degree <= kMaxDegree;
}

absl::Status ReadEngine(const Json& models, const std::string& where,
                        std::map<int32_t, StageCosts> ModelProfile::*engine, PeerProfile& profile) {
  Fields fields(models, where);
  RETURN_IF_ERROR(fields.status());
  for (const auto& [model, degrees] : models.items()) {
    Fields by_degree(degrees, absl::StrCat(where, ": ", model));
    RETURN_IF_ERROR(by_degree.status());
    for (const auto& [degree, costs] : degrees.items()) {
      int32_t tp = 0;
      if (!ReadDegree(degree, tp)) by_degree.Fault(absl::StrCat("'", degree, "' is no degree"));
      Fields own(costs, absl::StrCat(by_degree.where(), ": tp ", degree));
      ReadStageCosts(own, (profile[model].*engine)[tp]);
      RETURN_IF_ERROR(by_degree.status());
      RETURN_IF_ERROR(own.status());
    }
  }
  return absl::OkStatus();
}

absl::Status ReadMaxTokens(const Json& models, PeerProfile& profile) {
  Fields fields(models, "max_num_tokens");
  RETURN_IF_ERROR(fields.status());
  for (const auto& [model, entries] : models.items()) {
    Fields own(entries, absl::StrCat("max_num_tokens: ", model));
    RETURN_IF_ERROR(own.status());
    for (const auto& [key, tokens] : entries.items()) {
      const std::vector<std::string> degrees = absl::StrSplit(key, ',');
      int32_t tp = 0, pp = 0;
      if (degrees.size() != 2 || !ReadDegree(degrees[0], tp) || !ReadDegree(degrees[1], pp)) {
        own.Fault(absl::StrCat("'", key, "' is not \"tp,pp\""));
      }
      own.Integer(key.c_str(), 1, kMaxBatchLimit, profile[model].max_tokens[{tp, pp}]);
    }
    RETURN_IF_ERROR(own.status());
  }
  return absl::OkStatus();
}

absl::Status ReadShapes(const Json& models, PeerProfile& profile) {
  Fields fields(models, "model_layers_heads");
  RETURN_IF_ERROR(fields.status());
  for (const auto& [model, shape] : models.items()) {
    ModelProfile& own = profile[model];
    const bool good = shape.is_array() && shape.size() == 2 && shape[0].is_number_integer() &&
                      shape[1].is_number_integer();
    const int64_t layers = good ? shape[0].get<int64_t>() : 0;
    const int64_t heads = good ? shape[1].get<int64_t>() : 0;
    if (layers < 1 || heads < 1 || layers > kMaxDegree || heads > kMaxDegree) {
      return absl::InvalidArgumentError(
          absl::StrCat("model_layers_heads: ", model, " is not [layers, heads]"));
    }
    own.layers = static_cast<int32_t>(layers);
    own.heads = static_cast<int32_t>(heads);
  }
  return absl::OkStatus();
}

}  // namespace

std::optional<int64_t> ModelProfile::MaxTokens(int32_t tp, int32_t pp) const {
  const auto found = max_tokens.find({tp, pp});
  if (found == max_tokens.end()) return std::nullopt;
  return found->second;
}

absl::StatusOr<PeerProfile> ParsePeerProfile(std::string_view json) {
  ASSIGN_OR_RETURN(const Json root, ParseJson(json, "coefficients"));
  Fields fields(root, "coefficients");
  const Json* const max_tokens = fields.Find("max_num_tokens");
  const Json* const shapes = fields.Find("model_layers_heads");
  const Json* const distserve = fields.Find("engine_distserve");
  RETURN_IF_ERROR(fields.status());
  PeerProfile profile;
  RETURN_IF_ERROR(ReadEngine(*distserve, "engine_distserve", &ModelProfile::distserve, profile));
  if (fields.Has("engine_vllm")) {
    RETURN_IF_ERROR(ReadEngine(root["engine_vllm"], "engine_vllm", &ModelProfile::vllm, profile));
  }
  RETURN_IF_ERROR(ReadMaxTokens(*max_tokens, profile));
  RETURN_IF_ERROR(ReadShapes(*shapes, profile));
  return profile;
}

StageCosts Combine(const StageCosts& prefill, const StageCosts& decode) {
  StageCosts costs = decode;
  costs.prefill = prefill.prefill;
  return costs;
}

}  // namespace tandem::planner::compat
