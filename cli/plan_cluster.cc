#include "cli/plan_cluster.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status.h"

namespace tandem::cli {
namespace {

using planner::PlanTask;
using scheduler::DecodeCost;

/// A whole cluster's, and what a node may run: simulations grow with the square of these.
constexpr uint32_t kMaxNodes = 10'000, kMaxGroups = 1000, kMaxWorkersOfNode = 32;
constexpr size_t kMaxFileBytes = 4 << 20, kMaxNameBytes = 100;
/// Written of a number: more than are measured.
constexpr size_t kDigits = 6;
/// Of a token's KV.
constexpr double kLeastKvBytes = 1, kMostKvBytes = 1e9;

bool IsName(const std::string& text) {
  return !text.empty() && text.size() <= kMaxNameBytes &&
         std::none_of(text.begin(), text.end(), [](char c) { return absl::ascii_iscntrl(c); });
}

/// Reads the keys of a mapping, and names the first fault.
class Keys {
 public:
  Keys(const YAML::Node& node, std::string where) : node_(node), where_(std::move(where)) {
    if (!node.IsMap()) Fault("is not a mapping");
  }

  /// Required unless `value` is to be kept.
  void Number(const char* key, double min, double max, double& value, bool required = true) {
    Read(key, min, max, false, value, required);
  }
  template <typename Integer>
  void Whole(const char* key, double min, double max, Integer& value, bool required = true) {
    auto number = static_cast<double>(value);
    Read(key, min, max, true, number, required);
    value = static_cast<Integer>(number);
  }
  std::string Text(const char* key, const std::string& fallback = "") {
    const YAML::Node field = Find(key, fallback.empty());
    if (!field) return fallback;
    if (field.IsScalar() && IsName(field.Scalar())) return field.Scalar();
    Fault(absl::StrCat(key, " must be a text of at most ", kMaxNameBytes,
                       " characters without control characters"));
    return fallback;
  }
  YAML::Node Find(const char* key, bool required = true) {
    known_.insert(key);
    if (!status_.ok()) return YAML::Node(YAML::NodeType::Undefined);
    const YAML::Node field = node_[key];
    if (!field && required) Fault(absl::StrCat(key, " is missing"));
    return field;
  }
  /// Also a fault when there is a key that nobody asked for.
  absl::Status Finish() {
    if (!status_.ok()) return status_;
    for (const auto& entry : node_) {
      if (!known_.contains(entry.first.Scalar())) {
        Fault(absl::StrCat("unknown key ", entry.first.Scalar().substr(0, kMaxNameBytes)));
      }
    }
    return status_;
  }
  void Fault(const std::string& what) {
    if (status_.ok()) status_ = absl::InvalidArgumentError(absl::StrCat(where_, ": ", what));
  }

 private:
  void Read(const char* key, double min, double max, bool whole, double& value, bool required) {
    const YAML::Node field = Find(key, required);
    if (!field) return;
    double number = 0;
    if (!field.IsScalar() || !YAML::convert<double>::decode(field, number) || !(number >= min) ||
        !(number <= max) || (whole && number != std::floor(number))) {
      return Fault(absl::StrCat(key, " must be a ", whole ? "whole number" : "number", " from ",
                                min, " to ", max));
    }
    value = number;
  }

  const YAML::Node node_;
  const std::string where_;
  std::set<std::string> known_;
  absl::Status status_;
};

/// The keys of a worker's speed with their ranges: visit(key, min, max, value, required).
template <typename Visit>
void ForEachKey(planner::WorkerSpeed& speed, const Visit& visit) {
  auto& [prefill, decode, saturation, p, d] = speed.latency;
  visit("prefill_base_s", 0, 100, prefill.base_s, true);
  visit("prefill_per_token_s", 1e-9, 1, prefill.per_token_s, true);
  visit("prefill_per_position_s", 0, 1e-3, prefill.per_position_s, false);
  visit("decode_base_s", 1e-9, 100, decode.base_s, true);
  visit("decode_per_sequence_s", 0, 10, decode.per_sequence_s, true);
  visit("decode_per_context_token_s", 0, 1e-2, decode.per_context_token_s, false);
  visit("saturation_tokens", 1, 1e6, saturation, false);
  visit("kv_capacity_tokens", 1, 1e12, speed.kv_capacity_tokens, true);
  visit("max_sequences", 1, 4096, speed.max_sequences, false);
  visit("prefill_sequences", 1, 4096, speed.prefill_sequences, false);
  visit("step_tokens", 1, 1e6, speed.step_tokens, false);
}

/// The same of a link.
template <typename Visit>
void ForEachKey(planner::Link& link, const Visit& visit) {
  visit("bytes_per_s", 1e3, 1e13, link.bytes_per_s, true);
  visit("rtt_s", 0, 10, link.rtt_s, false);
}

template <typename Fields>
void ReadKeys(Keys& keys, Fields& fields) {
  ForEachKey(fields, [&]<typename Value>(const char* key, double min, double max, Value& value,
                                         bool required) {
    if constexpr (std::is_integral_v<Value>) {
      keys.Whole(key, min, max, value, required);
    } else {
      keys.Number(key, min, max, value, required);
    }
  });
}

absl::Status ReadSpeed(Keys& keys, planner::WorkerSpeed& speed) {
  ReadKeys(keys, speed);
  DecodeCost& decode = speed.latency.decode;
  if (const YAML::Node list = keys.Find("decode_factors", false)) {
    bool right = list.IsSequence() && list.size() < decode.factor.size();
    for (size_t i = 0; right && i < list.size(); ++i) {
      float& factor = decode.factor[i + 1];
      right = list[i].IsScalar() && YAML::convert<float>::decode(list[i], factor) &&
              factor >= DecodeCost::kLeastFactor && factor <= DecodeCost::kMostFactor;
    }
    if (!right) {
      keys.Fault(absl::StrCat("decode_factors must be a list of at most ", decode.factor.size() - 1,
                              " numbers from ", DecodeCost::kLeastFactor, " to ",
                              DecodeCost::kMostFactor));
    }
  }
  return keys.Finish();
}

/// Speed of a worker that has the whole node, or of each width.
absl::Status ReadKind(const YAML::Node& node, const std::string& where, planner::NodeClass& kind) {
  Keys keys(node, where);
  keys.Whole("devices", 1, 1024, kind.devices, false);
  const YAML::Node widths = keys.Find("widths", false);
  if (!widths) return ReadSpeed(keys, kind.speed);
  if (!widths.IsMap() || widths.size() == 0 || widths.size() > 8) {
    keys.Fault("widths must be a mapping from devices to speeds, of 1 to 8 widths");
  }
  RETURN_IF_ERROR(keys.Finish());
  for (const auto& entry : widths) {
    planner::WorkerWidth width;
    if (!entry.first.IsScalar() || !YAML::convert<uint32_t>::decode(entry.first, width.devices) ||
        width.devices == 0 || kind.devices % width.devices != 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          where, ": widths: a width must be a number that divides devices, ", kind.devices));
    }
    const std::string name = absl::StrCat(where, ": widths: ", width.devices);
    for (const planner::WorkerWidth& other : kind.widths) {
      if (other.devices == width.devices) {
        return absl::InvalidArgumentError(absl::StrCat(name, " is there twice"));
      }
    }
    if (const uint32_t n = kind.devices / width.devices; n > kMaxWorkersOfNode) {
      return absl::InvalidArgumentError(absl::StrCat(name, ": a node would run ", n, " workers; ",
                                                     kMaxWorkersOfNode, " are the most"));
    }
    Keys own(entry.second, name);
    RETURN_IF_ERROR(ReadSpeed(own, width.speed));
    kind.widths.push_back(std::move(width));
  }
  return absl::OkStatus();
}

absl::Status ReadLink(Keys& keys, const char* key, const std::string& where, bool required,
                      planner::Link& link) {
  const YAML::Node node = keys.Find(key, required);
  if (!node) return absl::OkStatus();
  Keys own(node, absl::StrCat(where, ": ", key));
  ReadKeys(own, link);
  return own.Finish();
}

/// Links between two groups that differ from all the others.
absl::Status ReadPairs(const YAML::Node& pairs, const std::string& where, PlanTask& task) {
  if (!pairs.IsSequence())
    return absl::InvalidArgumentError(absl::StrCat(where, " must be a list"));
  std::map<std::string, uint32_t> groups;
  for (const std::string& name : task.group_names) {
    groups.emplace(name, static_cast<uint32_t>(groups.size()));
  }
  std::set<std::pair<uint32_t, uint32_t>> known;
  for (const YAML::Node& node : pairs) {
    Keys own(node, where);
    const auto group = [&](const char* key) {
      const std::string name = own.Text(key);
      const auto found = groups.find(name);
      if (found != groups.end()) return found->second;
      own.Fault(absl::StrCat("there is no group '", name, "'"));
      return 0U;
    };
    const uint32_t from = group("from"), to = group("to");
    planner::Link& link = task.links[size_t{from} * task.groups + to];
    ReadKeys(own, link);
    RETURN_IF_ERROR(own.Finish());
    if (!known.emplace(from, to).second) {
      return absl::InvalidArgumentError(absl::StrCat(where, ": from ", task.group_names[from],
                                                     " to ", task.group_names[to],
                                                     " is there twice"));
    }
  }
  return absl::OkStatus();
}

absl::Status ReadLinks(const YAML::Node& node, const std::string& where, PlanTask& task) {
  planner::Link within, between;
  Keys own(node, where);
  RETURN_IF_ERROR(ReadLink(own, "within", where, true, within));
  between = within;
  RETURN_IF_ERROR(ReadLink(own, "between", where, false, between));
  RETURN_IF_ERROR(ReadLink(own, "local", where, false, task.local_link));
  const YAML::Node pairs = own.Find("pairs", false);
  RETURN_IF_ERROR(own.Finish());
  for (uint32_t from = 0; from < task.groups; ++from) {
    for (uint32_t to = 0; to < task.groups; ++to)
      task.links.push_back(from == to ? within : between);
  }
  return pairs ? ReadPairs(pairs, absl::StrCat(where, ": pairs"), task) : absl::OkStatus();
}

absl::StatusOr<PlanTask> Read(const YAML::Node& root, const std::string& where) {
  PlanTask task;
  Keys keys(root, where);
  keys.Number("kv_bytes_per_token", kLeastKvBytes, kMostKvBytes, task.simulator.kv_bytes_per_token);
  keys.Number("wire_share", 1e-3, 2, task.simulator.wire_share, false);
  keys.Number("codec_bytes_per_s", 1e3, 1e13, task.simulator.codec_bytes_per_s, false);

  std::map<std::string, planner::NodeClass> kinds;
  if (const YAML::Node node = keys.Find("kinds"); node && node.IsMap()) {
    for (const auto& entry : node) {
      const std::string name = entry.first.IsScalar() ? entry.first.Scalar() : "";
      if (!IsName(name) || kinds.contains(name)) {
        keys.Fault(absl::StrCat("kinds must have different names of at most ", kMaxNameBytes,
                                " characters without control characters"));
        return keys.Finish();
      }
      RETURN_IF_ERROR(ReadKind(entry.second, absl::StrCat(where, ": kinds: ", name), kinds[name]));
    }
  } else {
    keys.Fault("kinds must be a mapping");
  }
  std::vector<std::string> groups;
  uint64_t n_nodes = 0;
  const YAML::Node nodes = keys.Find("nodes");
  if (!nodes || !nodes.IsSequence() || nodes.size() == 0) keys.Fault("nodes must be a list");
  if (nodes && nodes.IsSequence()) {
    for (const YAML::Node& node : nodes) {
      Keys own(node, absl::StrCat(where, ": nodes"));
      planner::NodeClass nodes_of_class;
      const std::string kind = own.Text("kind"), group = own.Text("group", "all");
      own.Whole("count", 1, kMaxNodes, nodes_of_class.count, false);
      RETURN_IF_ERROR(own.Finish());
      if (!kinds.contains(kind)) {
        return absl::InvalidArgumentError(
            absl::StrCat(where, ": nodes: there is no kind '", kind, "'"));
      }
      auto at = std::find(groups.begin(), groups.end(), group);
      if (at == groups.end()) at = groups.insert(groups.end(), group);
      n_nodes += nodes_of_class.count;
      if (n_nodes > kMaxNodes) own.Fault(absl::StrCat("there are more than ", kMaxNodes, " nodes"));
      if (groups.size() > kMaxGroups) {
        own.Fault(absl::StrCat("there are more than ", kMaxGroups, " groups"));
      }
      RETURN_IF_ERROR(own.Finish());
      nodes_of_class.name = kind == group ? kind : absl::StrCat(kind, "@", group);
      nodes_of_class.group = static_cast<uint32_t>(at - groups.begin());
      nodes_of_class.speed = kinds[kind].speed;
      nodes_of_class.devices = kinds[kind].devices;
      nodes_of_class.widths = kinds[kind].widths;
      task.classes.push_back(std::move(nodes_of_class));
    }
  }
  task.groups = static_cast<uint32_t>(groups.size());
  task.group_names = groups;
  if (const YAML::Node links = keys.Find("links")) {
    RETURN_IF_ERROR(ReadLinks(links, absl::StrCat(where, ": links"), task));
  }
  RETURN_IF_ERROR(keys.Finish());
  return task;
}

// ------------------------------------------------------------------ writing

/// Values that are out of the reader's range are put at its end.
template <typename Fields>
void WriteKeys(Fields fields, YAML::Emitter& out) {
  ForEachKey(fields,
             [&]<typename Value>(const char* key, double min, double max, Value& value, bool) {
               out << YAML::Key << key << YAML::Value
                   << static_cast<Value>(std::clamp(static_cast<double>(value), min, max));
             });
}

void WriteSpeed(const planner::WorkerSpeed& speed, YAML::Emitter& out) {
  out << YAML::BeginMap;
  WriteKeys(speed, out);
  const auto& factor = speed.latency.decode.factor;
  size_t n = factor.size();
  while (n > 1 && factor[n - 1] == 1) --n;
  if (n > 1) {
    out << YAML::Key << "decode_factors" << YAML::Value << YAML::Flow << YAML::BeginSeq;
    for (size_t i = 1; i < n; ++i) {
      out << std::clamp(factor[i], DecodeCost::kLeastFactor, DecodeCost::kMostFactor);
    }
    out << YAML::EndSeq;
  }
  out << YAML::EndMap;
}

void WriteLink(const planner::Link& link, YAML::Emitter& out) {
  out << YAML::Flow << YAML::BeginMap;
  WriteKeys(link, out);
  out << YAML::EndMap;
}

/// Each class is a group of its own.
void WriteLinks(const std::vector<std::string>& names, const std::vector<planner::Link>& links,
                YAML::Emitter& out) {
  const size_t n = names.size();
  const planner::Link within = links[0], between = n > 1 ? links[1] : within;
  out << YAML::BeginMap << YAML::Key << "within" << YAML::Value;
  WriteLink(within, out);
  if (n > 1) {
    out << YAML::Key << "between" << YAML::Value;
    WriteLink(between, out);
  }
  bool any = false;
  for (size_t from = 0; from < n; ++from) {
    for (size_t to = 0; to < n; ++to) {
      const planner::Link& link = links[from * n + to];
      if (link == (from == to ? within : between)) continue;
      if (!any) out << YAML::Key << "pairs" << YAML::Value << YAML::BeginSeq;
      any = true;
      out << YAML::Flow << YAML::BeginMap << YAML::Key << "from" << YAML::Value << names[from]
          << YAML::Key << "to" << YAML::Value << names[to];
      WriteKeys(link, out);
      out << YAML::EndMap;
    }
  }
  if (any) out << YAML::EndSeq;
  out << YAML::EndMap;
}

/// "w0+2": w0 and two more. Workers' names need not differ.
std::vector<std::string> NamesOf(const planner::Classes& classes) {
  std::vector<std::string> names;
  for (const planner::NodeClass& nodes : classes.classes) {
    std::string name = IsName(nodes.name) ? nodes.name : "worker";
    if (nodes.count > 1) absl::StrAppend(&name, "+", nodes.count - 1);
    if (std::find(names.begin(), names.end(), name) != names.end()) {
      absl::StrAppend(&name, "#", names.size());
    }
    names.push_back(std::move(name));
  }
  return names;
}

}  // namespace

absl::StatusOr<std::string> ClusterYaml(const planner::ClusterNow& cluster) {
  if (cluster.nodes.empty()) return absl::FailedPreconditionError("there is no worker");
  const auto classes = planner::Classify(cluster);
  if (!classes) {
    return absl::FailedPreconditionError(
        "no worker has measured yet what its steps of both phases take: send requests, or start "
        "workers with --profile-at-start");
  }
  const std::vector<std::string> names = NamesOf(*classes);
  YAML::Emitter out;
  out.SetDoublePrecision(kDigits);
  out.SetFloatPrecision(kDigits);
  const size_t n = cluster.nodes.size();
  out << YAML::Comment(absl::StrCat(n, " workers; ", cluster.links.size(), " of the ", n * (n - 1),
                                    " links between them were measured"))
      << YAML::BeginMap << YAML::Key << "kv_bytes_per_token" << YAML::Value
      << std::clamp(cluster.kv_bytes_per_token, kLeastKvBytes, kMostKvBytes);
  out << YAML::Key << "kinds" << YAML::Value << YAML::BeginMap;
  for (size_t c = 0; c < names.size(); ++c) {
    std::vector<std::string> members;
    for (size_t i = 0; i < cluster.nodes.size(); ++i) {
      if (classes->class_of[i] == c) members.push_back(cluster.nodes[i].name);
    }
    out << YAML::Comment(absl::StrJoin(members, ", ")) << YAML::Key << names[c] << YAML::Value;
    WriteSpeed(classes->classes[c].speed, out);
  }
  out << YAML::EndMap << YAML::Key << "nodes" << YAML::Value << YAML::BeginSeq;
  for (size_t c = 0; c < names.size(); ++c) {
    out << YAML::Flow << YAML::BeginMap << YAML::Key << "kind" << YAML::Value << names[c]
        << YAML::Key << "count" << YAML::Value << classes->classes[c].count << YAML::Key << "group"
        << YAML::Value << names[c] << YAML::EndMap;
  }
  out << YAML::EndSeq << YAML::Key << "links" << YAML::Value;
  WriteLinks(names, classes->links, out);
  out << YAML::EndMap;
  return absl::StrCat(out.c_str(), "\n");
}

absl::StatusOr<PlanTask> ParseCluster(const std::string& yaml, const std::string& where) {
  if (yaml.size() > kMaxFileBytes) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": is larger than 4 MiB"));
  }
  try {
    return Read(YAML::Load(yaml), where);
  } catch (const YAML::Exception& error) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, ": ", std::string(error.what()).substr(0, 1000)));
  }
}

}  // namespace tandem::cli
