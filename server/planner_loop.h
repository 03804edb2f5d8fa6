// The planner at work in a router: looks at the workers and the requests again and again, and tells
// workers their phases. What it decides is scheduler/planner/replanner's; here are the clock, the
// thread, and the question whether this router is the one that decides.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "absl/time/time.h"
#include "scheduler/planner/replanner.h"
#include "tandem/v1/cluster.pb.h"

namespace tandem::server {

class ClusterServiceImpl;
class RouterCore;

/// Life: Start ──> looking ── Stop ──> stopped. One thread, of low priority; a search takes 2 s of
/// it at most, or a little more. Nobody waits for it. Tell is thread-safe; the others are for one
/// controlling thread.
class PlannerLoop {
 public:
  /// Options are the core's. Both must outlive this object.
  PlannerLoop(RouterCore* core, ClusterServiceImpl* cluster);
  ~PlannerLoop();

  /// Does nothing when the planner is off.
  void Start();
  /// Waits for the end of a simulation that is under way.
  void Stop();
  /// Fills in everything.
  void Tell(v1::GetPlanResponse& response, absl::Time now) const;

 private:
  void Run();
  void Look();
  // Decisions that are new go to the log and the metrics, all to Tell.
  void Publish();
  bool leads() const;

  RouterCore* const core_;
  ClusterServiceImpl* const cluster_;
  // The thread's own.
  planner::Replanner replanner_;
  uint64_t published_ = 0;
  std::thread thread_;

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<bool> stopping_{false};
  // Guarded by mutex_.
  std::string leader_;
  double goodput_rps_ = 0;
  std::optional<double> changed_s_;
  std::deque<planner::PlanDecision> decisions_;
};

}  // namespace tandem::server
