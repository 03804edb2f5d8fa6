#include "cli/plan_cluster.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <map>
#include <set>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace tandem::cli {
namespace {

using planner::PlanTask;

constexpr uint32_t kMaxNodes = 10'000;

/// Reads the keys of a mapping, and names the first fault.
class Keys {
 public:
  Keys(const YAML::Node& node, std::string where) : node_(node), where_(std::move(where)) {
    if (!node.IsMap()) Fault("is not a mapping");
  }

  /// Required unless `value` is to be kept.
  void Number(const char* key, double min, double max, double& value, bool required = true) {
    const YAML::Node field = Find(key, required);
    if (!field) return;
    double number = 0;
    if (!field.IsScalar() || !YAML::convert<double>::decode(field, number) || !(number >= min) ||
        !(number <= max)) {
      return Fault(absl::StrCat(key, " must be a number from ", min, " to ", max));
    }
    value = number;
  }
  template <typename Integer>
  void Whole(const char* key, double min, double max, Integer& value, bool required = true) {
    auto number = static_cast<double>(value);
    Number(key, min, max, number, required);
    value = static_cast<Integer>(number);
  }
  std::string Text(const char* key, const std::string& fallback = "") {
    const YAML::Node field = Find(key, fallback.empty());
    if (!field) return fallback;
    if (field.IsScalar() && !field.Scalar().empty()) return field.Scalar();
    Fault(absl::StrCat(key, " must be a text"));
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
        Fault(absl::StrCat("unknown key ", entry.first.Scalar()));
      }
    }
    return status_;
  }
  void Fault(const std::string& what) {
    if (status_.ok()) status_ = absl::InvalidArgumentError(absl::StrCat(where_, ": ", what));
  }

 private:
  const YAML::Node node_;
  const std::string where_;
  std::set<std::string> known_;
  absl::Status status_;
};

absl::Status ReadSpeed(Keys& keys, planner::WorkerSpeed& speed) {
  auto& [prefill, decode, saturation, p, d] = speed.latency;
  keys.Number("prefill_base_s", 0, 1e3, prefill.base_s);
  keys.Number("prefill_per_token_s", 1e-9, 1e3, prefill.per_token_s);
  keys.Number("prefill_per_position_s", 0, 1, prefill.per_position_s, false);
  keys.Number("decode_base_s", 1e-9, 1e3, decode.base_s);
  keys.Number("decode_per_sequence_s", 0, 1e3, decode.per_sequence_s);
  keys.Number("decode_per_context_token_s", 0, 1, decode.per_context_token_s, false);
  keys.Whole("saturation_tokens", 1, 1e6, saturation, false);
  keys.Whole("kv_capacity_tokens", 1, 1e12, speed.kv_capacity_tokens);
  keys.Whole("max_sequences", 1, 4096, speed.max_sequences, false);
  keys.Whole("prefill_sequences", 1, 4096, speed.prefill_sequences, false);
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
    planner::WorkerWidth& width = kind.widths.emplace_back();
    if (!entry.first.IsScalar() || !YAML::convert<uint32_t>::decode(entry.first, width.devices) ||
        width.devices == 0 || kind.devices % width.devices != 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          where, ": widths: a width must be a number that divides devices, ", kind.devices));
    }
    Keys own(entry.second, absl::StrCat(where, ": widths: ", width.devices));
    RETURN_IF_ERROR(ReadSpeed(own, width.speed));
  }
  return absl::OkStatus();
}

absl::Status ReadLink(Keys& keys, const char* key, const std::string& where, bool required,
                      planner::Link& link) {
  const YAML::Node node = keys.Find(key, required);
  if (!node) return absl::OkStatus();
  Keys own(node, absl::StrCat(where, ": ", key));
  own.Number("bytes_per_s", 1e3, 1e13, link.bytes_per_s);
  own.Number("rtt_s", 0, 10, link.rtt_s, false);
  return own.Finish();
}

absl::StatusOr<PlanTask> Read(const YAML::Node& root, const std::string& where) {
  PlanTask task;
  Keys keys(root, where);
  keys.Number("kv_bytes_per_token", 1, 1e9, task.simulator.kv_bytes_per_token);
  keys.Number("wire_share", 1e-3, 2, task.simulator.wire_share, false);
  keys.Number("codec_bytes_per_s", 1e3, 1e13, task.simulator.codec_bytes_per_s, false);

  std::map<std::string, planner::NodeClass> kinds;
  if (const YAML::Node node = keys.Find("kinds"); node && node.IsMap()) {
    for (const auto& entry : node) {
      const std::string& name = entry.first.Scalar();
      RETURN_IF_ERROR(ReadKind(entry.second, absl::StrCat(where, ": kinds: ", name), kinds[name]));
    }
  } else {
    keys.Fault("kinds must be a mapping");
  }
  std::vector<std::string> groups;
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
      nodes_of_class.name = absl::StrCat(kind, "@", group);
      nodes_of_class.group = static_cast<uint32_t>(at - groups.begin());
      nodes_of_class.speed = kinds[kind].speed;
      nodes_of_class.devices = kinds[kind].devices;
      nodes_of_class.widths = kinds[kind].widths;
      task.classes.push_back(std::move(nodes_of_class));
    }
  }
  planner::Link within, between;
  if (const YAML::Node links = keys.Find("links")) {
    Keys own(links, absl::StrCat(where, ": links"));
    RETURN_IF_ERROR(ReadLink(own, "within", absl::StrCat(where, ": links"), true, within));
    between = within;
    RETURN_IF_ERROR(ReadLink(own, "between", absl::StrCat(where, ": links"), false, between));
    RETURN_IF_ERROR(ReadLink(own, "local", absl::StrCat(where, ": links"), false, task.local_link));
    RETURN_IF_ERROR(own.Finish());
  }
  RETURN_IF_ERROR(keys.Finish());
  task.groups = static_cast<uint32_t>(groups.size());
  for (uint32_t from = 0; from < task.groups; ++from) {
    for (uint32_t to = 0; to < task.groups; ++to)
      task.links.push_back(from == to ? within : between);
  }
  return task;
}

}  // namespace

absl::StatusOr<PlanTask> ParseCluster(const std::string& yaml, const std::string& where) {
  try {
    return Read(YAML::Load(yaml), where);
  } catch (const YAML::Exception& error) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": ", error.what()));
  }
}

}  // namespace tandem::cli
