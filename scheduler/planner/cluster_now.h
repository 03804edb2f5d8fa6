// The nodes that serve now, as the planner sees them, and what follows from that alone: phases that
// must be given at once, without statistics. No I/O; pure functions, thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "scheduler/planner/plan_search.h"

namespace tandem::planner {

/// "prefill", "decode", "mixed".
const char* PhaseWord(Phase phase);

/// A worker that can be used.
struct Node {
  std::string worker_id, name;
  /// What it does; of one that changes, what it will do.
  Phase phase = Phase::kMixed;
  bool changing = false;
  /// The planner may give it another phase.
  bool movable = false;
  /// False: it is new, and does what it does only until it is told.
  bool assigned = true;
  /// Requests that it has, running and waiting.
  uint32_t requests = 0;
  /// Zero samples of a kind: nothing has been measured.
  WorkerSpeed speed;
};

/// What was measured on the way from one node to another, by their indexes.
struct MeasuredLink {
  uint32_t from = 0, to = 0;
  Link link;
};

struct ClusterNow {
  std::vector<Node> nodes;
  std::vector<MeasuredLink> links;
  double kv_bytes_per_token = 0;
  /// Of all requests, those that the planner hears of: with several routers each sees its own.
  double share_seen = 1;
};

/// Who decides, of several routers that do not know each other: the smallest id among those that
/// more than half of the workers are registered with; nobody when there is none. `routers`: those
/// that each worker says it is registered with.
std::optional<std::string> Leader(const std::vector<std::vector<std::string>>& routers);
/// How many routers more than half of the workers are registered with.
size_t CountRouters(const std::vector<std::vector<std::string>>& routers);

/// A worker is to have this phase.
struct PhaseChange {
  std::string worker_id, name;
  Phase from = Phase::kMixed, to = Phase::kMixed;
};

/// What must not wait, if anything:
///   nobody decodes      the least busy of several that prefill turns to decode, a lone one mixed
///   nobody prefills     the same the other way round; decode workers that prefill too are decode
///                       workers all the same
///   a new worker        gets the phase that fewer have, decode when it is equal; alone it stays
///                       mixed, and new
/// One at a time: the next when the first one's report says that it has heard. Workers that may not
/// be moved count, and stay.
struct UrgentChange {
  PhaseChange change;
  /// Somebody was lost, rather than has come.
  bool rescue = false;
};
std::optional<UrgentChange> FindUrgent(const ClusterNow& cluster);

/// Seconds of a typical step of each kind, by which speeds are compared.
double TypicalPrefillSeconds(const WorkerSpeed& speed);
double TypicalDecodeSeconds(const WorkerSpeed& speed);

/// "2 prefill, 1 decode".
std::string Describe(const std::vector<PhaseCounts>& counts);

/// Nodes sorted into classes of about equal speed and place, for a search.
struct Classes {
  std::vector<NodeClass> classes;
  /// Of each node.
  std::vector<uint32_t> class_of;
  /// By class: what there is now, and what of it stays because it may not be moved.
  std::vector<PhaseCounts> now, fixed;
  /// From class to class, as PlanTask wants them: each class is a group of its own.
  std::vector<Link> links;
};

/// Nothing when no node has measured one of the two kinds of step. A node that has measured one
/// kind only is taken to be as fast, against the mean, in the other. Nodes are of one class when
/// what they need for a typical step differs by less than 30 %, and no link between them is slower
/// than a quarter of the fastest; classes have the median of their links, of those not measured the
/// median of all, or 1 Gbit/s when there are none.
std::optional<Classes> Classify(const ClusterNow& cluster);

}  // namespace tandem::planner
