#include "scheduler/planner/link_flows.h"

#include <algorithm>
#include <utility>

namespace tandem::planner {
namespace {

constexpr double kLeastBytesPerSecond = 1;

}  // namespace

LinkTable::LinkTable(std::vector<uint32_t> group, std::vector<Link> links, const Link& local)
    : group_(std::move(group)),
      groups_(group_.empty() ? 1 : *std::max_element(group_.begin(), group_.end()) + 1),
      links_(std::move(links)),
      local_(local),
      port_(groups_, 0) {
  for (uint32_t a = 0; a < groups_; ++a) {
    for (uint32_t b = 0; b < groups_; ++b) {
      const double rate = links_[a * groups_ + b].bytes_per_s;
      port_[a] = std::max(port_[a], rate);
      port_[b] = std::max(port_[b], rate);
    }
  }
}

LinkFlows::FlowId LinkFlows::Begin(uint32_t from_node, uint32_t to_node, double bytes, uint32_t tag,
                                   double now_s, std::vector<Due>& due) {
  if (free_.empty()) {
    free_.push_back(static_cast<FlowId>(flows_.size()));
    flows_.emplace_back();
  }
  const FlowId id = free_.back();
  free_.pop_back();
  const uint32_t version = flows_[id].version;
  flows_[id] = {.from = from_node,
                .to = to_node,
                .tag = tag,
                .version = version,
                .bytes = bytes,
                .since_s = now_s};
  if (from_node == to_node) {
    Update(id, now_s, due);
    return id;
  }
  nodes_[from_node].out.push_back(id);
  nodes_[to_node].in.push_back(id);
  Share(from_node, to_node, now_s, due);
  return id;
}

std::optional<uint32_t> LinkFlows::End(FlowId flow, uint32_t version, double now_s,
                                       std::vector<Due>& due) {
  if (flows_[flow].version != version) return std::nullopt;
  const uint32_t tag = flows_[flow].tag;
  Remove(flow, now_s, due);
  return tag;
}

void LinkFlows::Cancel(FlowId flow, double now_s, std::vector<Due>& due) {
  Remove(flow, now_s, due);
}

void LinkFlows::Remove(FlowId id, double now_s, std::vector<Due>& due) {
  Flow& flow = flows_[id];
  ++flow.version;
  free_.push_back(id);
  if (flow.from == flow.to) return;
  std::erase(nodes_[flow.from].out, id);
  std::erase(nodes_[flow.to].in, id);
  Share(flow.from, flow.to, now_s, due);
}

void LinkFlows::Share(uint32_t from, uint32_t to, double now_s, std::vector<Due>& due) {
  for (const FlowId id : nodes_[from].out) Update(id, now_s, due);
  for (const FlowId id : nodes_[to].in) {
    if (flows_[id].from != from) Update(id, now_s, due);
  }
}

void LinkFlows::Update(FlowId id, double now_s, std::vector<Due>& due) {
  Flow& flow = flows_[id];
  const auto share = [](double port, const std::vector<FlowId>& flows) {
    return port / static_cast<double>(flows.size());
  };
  double rate = links_.Between(flow.from, flow.to).bytes_per_s;
  if (flow.from != flow.to) {
    rate = std::min({rate, share(links_.PortBytesPerSecond(flow.from), nodes_[flow.from].out),
                     share(links_.PortBytesPerSecond(flow.to), nodes_[flow.to].in)});
  }
  // A link that is cut still ends some day.
  rate = std::max(kLeastBytesPerSecond, rate);
  flow.bytes = std::max(0.0, flow.bytes - flow.bytes_per_s * (now_s - flow.since_s));
  flow.since_s = now_s;
  if (rate == flow.bytes_per_s) return;
  flow.bytes_per_s = rate;
  due.push_back({.flow = id, .version = ++flow.version, .end_s = now_s + flow.bytes / rate});
}

}  // namespace tandem::planner
