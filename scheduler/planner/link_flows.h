// Transfers that share links: who gets what bandwidth, and when each ends. For the simulator. Time
// is passed in; not thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "scheduler/core/dispatcher.h"

namespace tandem::planner {

using scheduler::Link;

/// What is known of the ways between nodes: nodes lie in groups (racks, sites), and a pair of
/// groups has one kind of link, in each direction.
class LinkTable {
 public:
  /// All nodes in one group, whose links are `link`.
  LinkTable(uint32_t nodes, const Link& link) : group_(nodes, 0), links_(1, link) {}
  /// `group` of each node, `links[from × groups + to]`; `local`: within a node, when it has any
  /// bytes_per_s. REQUIRES: groups² links, groups in range.
  LinkTable(std::vector<uint32_t> group, std::vector<Link> links, const Link& local = {});

  const Link& Between(uint32_t from_node, uint32_t to_node) const {
    if (from_node == to_node && local_.bytes_per_s > 0) return local_;
    return links_[group_[from_node] * groups_ + group_[to_node]];
  }
  /// The fastest link of the node, either way: what its port can do.
  double PortBytesPerSecond(uint32_t node) const { return port_[group_[node]]; }
  uint32_t nodes() const { return static_cast<uint32_t>(group_.size()); }
  uint32_t group(uint32_t node) const { return group_[node]; }
  uint32_t groups() const { return groups_; }

 private:
  std::vector<uint32_t> group_;
  uint32_t groups_ = 1;
  std::vector<Link> links_;
  Link local_;
  std::vector<double> port_ = {links_[0].bytes_per_s};  // by group
};

/// Flows in progress. A flow within a node has its link for itself; another one's rate is the least
/// of its link's, an equal share of what its sender's port can do, and an equal share of its
/// receiver's; it changes as others begin and end there.
class LinkFlows {
 public:
  explicit LinkFlows(const LinkTable& links) : links_(links), nodes_(links.nodes()) {}

  using FlowId = uint32_t;
  /// A flow that will end at `end_s` unless another change comes first; `version` tells whether one
  /// did.
  struct Due {
    FlowId flow = 0;
    uint32_t version = 0;
    double end_s = 0;
  };

  /// `tag`: the caller's. Flows whose end has changed, this one too, are appended to `due`.
  FlowId Begin(uint32_t from_node, uint32_t to_node, double bytes, uint32_t tag, double now_s,
               std::vector<Due>& due);
  /// Its tag, when the version is still the flow's and it has ended; none for one that is outdated.
  std::optional<uint32_t> End(FlowId flow, uint32_t version, double now_s, std::vector<Due>& due);
  /// Gives it up.
  void Cancel(FlowId flow, double now_s, std::vector<Due>& due);

 private:
  struct Flow {
    uint32_t from = 0, to = 0, tag = 0, version = 0;
    double bytes = 0, bytes_per_s = 0, since_s = 0;
  };
  struct Node {
    std::vector<FlowId> out, in;
  };
  void Remove(FlowId id, double now_s, std::vector<Due>& due);
  void Share(uint32_t from, uint32_t to, double now_s, std::vector<Due>& due);
  void Update(FlowId id, double now_s, std::vector<Due>& due);

  const LinkTable& links_;
  std::vector<Node> nodes_;
  std::vector<Flow> flows_;
  std::vector<FlowId> free_;
};

}  // namespace tandem::planner
