#include "scheduler/planner/compat/case_files.h"

#include <algorithm>
#include <set>
#include <span>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "scheduler/planner/compat/json_fields.h"
#include "scheduler/planner/compat/profile_fields.h"
#include "scheduler/planner/csv.h"

namespace tandem::planner::compat {
namespace {

constexpr int64_t kMaxTokens = 10'000'000, kMaxDegree = 100'000;
constexpr double kMaxMs = 1e12, kMaxRate = 1e9;

// ------------------------------------------------------------------ lists of requests

absl::StatusOr<std::vector<std::vector<double>>> ReadRequests(Fields& fields, const ReadFile& read,
                                                              const std::string& folder,
                                                              const std::string& id,
                                                              CsvColumn time) {
  std::string path = absl::StrCat(folder, "/inputs/", id, ".csv");
  if (fields.Has("input_csv")) fields.Text("input_csv", path);
  RETURN_IF_ERROR(fields.status());
  const absl::StatusOr<std::string> text = read(path);
  if (!text.ok()) {
    return absl::Status(text.status().code(),
                        absl::StrCat(fields.where(), ": ", text.status().message()));
  }
  const CsvColumn columns[] = {
      {.name = "req_id", .min = -1e15, .whole = true},
      time,
      {.name = "prompt_len", .min = 1, .max = static_cast<double>(kMaxTokens), .whole = true},
      {.name = "output_len", .min = 1, .max = static_cast<double>(kMaxTokens), .whole = true}};
  return ReadCsv(*text, path, columns);
}

absl::StatusOr<std::vector<ScalableRequest>> ReadScalable(Fields& fields, const ReadFile& read,
                                                          const std::string& folder,
                                                          const std::string& id) {
  ASSIGN_OR_RETURN(const auto rows,
                   ReadRequests(fields, read, folder, id, {.name = "unit_gap_s", .max = kMaxMs}));
  std::vector<ScalableRequest> requests;
  for (const std::vector<double>& row : rows) {
    requests.push_back({.unit_gap_s = row[1],
                        .prompt_tokens = static_cast<int64_t>(row[2]),
                        .output_tokens = static_cast<int64_t>(row[3])});
  }
  if (requests.empty()) fields.Fault("has no request");
  RETURN_IF_ERROR(fields.status());
  return requests;
}

// ------------------------------------------------------------------ placements

/// What the case says itself, else what the profile says of its model.
struct ModelLookup {
  const PeerProfile& profile;
  const ModelProfile* model = nullptr;
  bool colocated = false;

  const StageCosts* Costs(Fields& fields, int32_t tp) {
    if (!Known(fields)) return nullptr;
    const auto& engine = colocated ? model->vllm : model->distserve;
    const auto found = engine.find(tp);
    if (found != engine.end()) return &found->second;
    fields.Fault(
        absl::StrCat("has no 'coefficients', and the profile none for its model at tp ", tp));
    return nullptr;
  }
  int64_t MaxTokens(Fields& fields, int32_t tp, int32_t pp) {
    if (!Known(fields)) return 0;
    const auto tokens = model->MaxTokens(tp, pp);
    if (!tokens) {
      fields.Fault(absl::StrCat("has no 'limits', and the profile none for its model at tp,pp ", tp,
                                ",", pp));
    }
    return tokens.value_or(0);
  }

 private:
  bool Known(Fields& fields) {
    if (model != nullptr) return true;
    std::string name;
    fields.Text("model", name);
    const auto found = profile.find(name);
    if (fields.status().ok() && found == profile.end()) {
      fields.Fault(absl::StrCat("the profile does not know its model '", name, "'"));
    }
    if (!fields.status().ok()) return false;
    model = &found->second;
    return true;
  }
};

/// Nothing here fails: faults stay in `fields`.
Placement ReadPlacement(Fields& fields, const PeerProfile& profile) {
  Placement placement;
  std::string backend = "distserve";
  if (fields.Has("backend")) fields.Text("backend", backend);
  if (backend == "vllm") {
    placement.mode = Mode::kColocated;
  } else if (backend != "distserve") {
    fields.Fault(absl::StrCat("'backend' is '", backend, "'; allowed are distserve and vllm"));
  }
  const bool colocated = placement.mode == Mode::kColocated;
  const auto optional = [&](const char* name, int32_t& value) {
    if (fields.Has(name)) fields.Integer(name, 1, kMaxDegree, value);
  };
  int32_t tp_prefill = 1, tp_decode = 1;
  optional("tp_prefill", tp_prefill);
  optional("pp_prefill", placement.prefill_stages);
  optional("n_prefill", placement.prefill_instances);
  if (colocated) {
    tp_decode = tp_prefill;
    placement.decode_stages = placement.prefill_stages;
  } else {
    optional("tp_decode", tp_decode);
    optional("pp_decode", placement.decode_stages);
    optional("n_decode", placement.decode_instances);
  }
  ModelLookup lookup{.profile = profile, .colocated = colocated};
  if (fields.Has("coefficients")) {
    Fields own(*fields.Find("coefficients"), absl::StrCat(fields.where(), ": coefficients"));
    ReadStageCosts(own, placement.costs);
    fields.Adopt(own);
  } else {
    const StageCosts* const prefill = lookup.Costs(fields, tp_prefill);
    const StageCosts* const decode = lookup.Costs(fields, tp_decode);
    if (prefill != nullptr && decode != nullptr) placement.costs = Combine(*prefill, *decode);
  }
  BatchLimits& limits = placement.limits;
  if (fields.Has("limits")) {
    Fields own(*fields.Find("limits"), absl::StrCat(fields.where(), ": limits"));
    const auto read = [&](const char* name, int64_t& limit) {
      own.Integer(name, 1, kMaxBatchLimit, limit);
    };
    read("prefill_max_tokens_per_batch", limits.prefill_tokens);
    read("decode_max_requests_per_batch", limits.decode_requests);
    if (own.Has("decode_max_context_tokens_per_batch")) {
      read("decode_max_context_tokens_per_batch", limits.decode_context_tokens);
    }
    fields.Adopt(own);
  } else {
    limits.prefill_tokens = lookup.MaxTokens(fields, tp_prefill, placement.prefill_stages);
    limits.decode_requests = lookup.MaxTokens(fields, tp_decode, placement.decode_stages);
  }
  return placement;
}

// ------------------------------------------------------------------ one case of each kind

absl::StatusOr<LatencyCase> ReadLatencyCase(const Json& json, const std::string& id,
                                            const std::string& where, const ReadFile& read,
                                            const PeerProfile& profile) {
  Fields fields(json, where);
  LatencyCase loaded;
  loaded.placement = ReadPlacement(fields, profile);
  if (fields.Has("slo_sets")) {
    const Json& sets = *fields.Find("slo_sets");
    if (!sets.is_array()) fields.Fault("'slo_sets' is not a list");
    for (const Json& json_set : sets) {
      Fields own(json_set, absl::StrCat(where, ": slo_sets"));
      SloSet& set = loaded.slo_sets.emplace_back();
      own.Text("name", set.name);
      own.Number("ttft_ms", 0, kMaxMs, set.slo.ttft_ms);
      own.Number("tpot_ms", 0, kMaxMs, set.slo.tpot_ms);
      fields.Adopt(own);
    }
  }
  RETURN_IF_ERROR(fields.status());
  ASSIGN_OR_RETURN(const auto rows,
                   ReadRequests(fields, read, "cases", id, {.name = "arrival_ms", .max = kMaxMs}));
  for (const std::vector<double>& row : rows) {
    loaded.request_ids.push_back(static_cast<int64_t>(row[0]));
    loaded.requests.push_back({.arrival_ms = row[1],
                               .prompt_tokens = static_cast<int64_t>(row[2]),
                               .output_tokens = static_cast<int64_t>(row[3])});
  }
  const std::set<int64_t> distinct(loaded.request_ids.begin(), loaded.request_ids.end());
  if (distinct.size() != rows.size()) fields.Fault("a req_id is there twice");
  if (rows.empty()) fields.Fault("has no request");
  RETURN_IF_ERROR(fields.status());
  return loaded;
}

/// What goodput cases and searches have in common.
template <typename Task>
void ReadSearchRange(Fields& fields, Task& task) {
  fields.Number("slo_ttft_ms", 0, kMaxMs, task.slo.ttft_ms);
  fields.Number("slo_tpot_ms", 0, kMaxMs, task.slo.tpot_ms);
  fields.Number("max_per_gpu_rate", 1e-9, kMaxRate, task.max_per_gpu_rate);
  fields.Number("eps", task.max_per_gpu_rate * 1e-9, kMaxRate, task.eps);
  if (fields.Has("attainment_target")) {
    fields.Number("attainment_target", 1e-9, 1, task.attainment_target);
  }
}

absl::StatusOr<GoodputCase> ReadGoodputCase(const Json& json, const std::string& id,
                                            const std::string& where, const ReadFile& read,
                                            const PeerProfile& profile) {
  Fields fields(json, where);
  GoodputCase loaded;
  loaded.task.placement = ReadPlacement(fields, profile);
  fields.Integer("num_gpus", 1, kMaxDegree, loaded.task.num_gpus);
  ReadSearchRange(fields, loaded.task);
  RETURN_IF_ERROR(fields.status());
  ASSIGN_OR_RETURN(loaded.requests, ReadScalable(fields, read, "goodput", id));
  return loaded;
}

absl::StatusOr<SearchCase> ReadSearchCase(const Json& json, const std::string& id,
                                          const std::string& where, const ReadFile& read,
                                          const PeerProfile& profile, bool algorithm1) {
  Fields fields(json, where);
  SearchCase loaded;
  fields.Text("model", loaded.model);
  if (fields.status().ok() && !profile.contains(loaded.model)) {
    fields.Fault(absl::StrCat("the profile does not know its model '", loaded.model, "'"));
  }
  fields.Integer("num_node", 1, kMaxDegree, loaded.task.nodes);
  fields.Integer("gpus_per_node", 1, kMaxDegree, loaded.task.gpus_per_node);
  ReadSearchRange(fields, loaded.task);
  if (algorithm1) {
    fields.Number("traffic_rps", 1e-9, kMaxRate, loaded.task.traffic_rps);
  } else {
    std::string affinity;
    fields.Text("affinity", affinity);
    loaded.task.high_affinity = affinity == "high";
    if (affinity != "high" && affinity != "low") {
      fields.Fault(absl::StrCat("'affinity' is '", affinity, "'; allowed are high and low"));
    }
  }
  RETURN_IF_ERROR(fields.status());
  ASSIGN_OR_RETURN(loaded.requests, ReadScalable(fields, read, "planner", id));
  return loaded;
}

// ------------------------------------------------------------------ lists of cases

bool IsFileName(const std::string& id) {
  const auto plain = [](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '_' || c == '-';
  };
  return !id.empty() && id.size() <= 200 && id[0] != '.' &&
         std::all_of(id.begin(), id.end(), plain);
}

/// Calls `each(json, id, where)` for every case of the list; nothing when there is no such file.
/// Returns whether there is one.
template <typename Each>
absl::StatusOr<bool> ForEachCase(const ReadFile& read, const std::string& path, Each each) {
  const absl::StatusOr<std::string> text = read(path);
  if (absl::IsNotFound(text.status())) return false;
  RETURN_IF_ERROR(text.status());
  ASSIGN_OR_RETURN(const Json list, ParseJson(*text, path));
  if (!list.is_array()) return absl::InvalidArgumentError(absl::StrCat(path, ": is not a list"));
  std::set<std::string> ids;
  for (const Json& json : list) {
    Fields fields(json, absl::StrCat(path, ": case ", ids.size() + 1));
    std::string id;
    fields.Text("id", id);
    if (!IsFileName(id)) {
      fields.Fault("its id may have 1 to 200 letters, digits, '.', '_' and '-'");
    }
    if (!ids.insert(id).second) fields.Fault(absl::StrCat("the id '", id, "' is there twice"));
    RETURN_IF_ERROR(fields.status());
    each(json, id, absl::StrCat(path, ": ", id));
  }
  return true;
}

}  // namespace

absl::StatusOr<CaseFolder> LoadCases(const ReadFile& read, const PeerProfile& profile) {
  CaseFolder folder;
  using Text = const std::string&;
  ASSIGN_OR_RETURN(
      const bool latencies,
      ForEachCase(read, "cases/cases.json", [&](const Json& json, Text id, Text where) {
        folder.latencies.push_back({id, ReadLatencyCase(json, id, where, read, profile)});
      }));
  ASSIGN_OR_RETURN(
      const bool goodputs,
      ForEachCase(read, "goodput/goodput.json", [&](const Json& json, Text id, Text where) {
        folder.goodputs.push_back({id, ReadGoodputCase(json, id, where, read, profile)});
      }));
  const auto read_searches = [&](Text path, bool algorithm1, auto& into) {
    return ForEachCase(read, path, [&](const Json& json, Text id, Text where) {
      into.push_back({id, ReadSearchCase(json, id, where, read, profile, algorithm1)});
    });
  };
  ASSIGN_OR_RETURN(const bool searches,
                   read_searches("planner/search.json", false, folder.searches));
  ASSIGN_OR_RETURN(const bool algorithm1,
                   read_searches("planner/alg1.json", true, folder.algorithm1));
  if (latencies || goodputs || searches || algorithm1) return folder;
  return absl::NotFoundError(
      "there is none of cases/cases.json, goodput/goodput.json, planner/search.json and "
      "planner/alg1.json");
}

}  // namespace tandem::planner::compat
