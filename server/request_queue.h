// The router's own queue: requests wait here, not on the workers, so that fairness between tenants,
// priorities and cancellation act until the last moment and workers' queues stay short. The rules
// are scheduler/core/admission's; this adds the calls, the lock and the view of the cluster.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/time/time.h"
#include "kvstore/chunk.h"
#include "scheduler/cluster_view.h"
#include "scheduler/core/admission.h"

namespace tandem::server {

/// What admission wants to know of the forecast.
scheduler::PredictedTtft TtftOf(const scheduler::Candidate& forecast);

/// A request that waits for its turn. Called without any lock of the queue's.
class QueuedRequest {
 public:
  virtual ~QueuedRequest() = default;
  /// It may be sent to workers now.
  virtual void OnTurn() = 0;
  /// It was in the queue and has to go: another tenant needs the place, or its deadline passed.
  virtual void OnRemoved(scheduler::Refusal why, double retry_after_s) = 0;
};

/// Thread-safe. See scheduler/core/admission.h for a request's states.
class RequestQueue {
 public:
  struct Options {
    /// Requests in the queue and running.
    uint32_t max_requests = 256;
    /// A request waits while the prefill worker that it would get has more work than so many full
    /// steps.
    double dispatch_ahead_steps = 2;
    /// Predicted TTFT beyond which a request is refused; 0: only its own deadline counts.
    double max_ttft_s = 0;
    /// A request waits while its sequence would wait for a place so long that it misses this.
    double tpot_objective_s = std::numeric_limits<double>::infinity();
    /// How long requests wait when the last worker has gone.
    absl::Duration patience = absl::Seconds(30);
    /// Bounds of the delay that a refused client is told.
    double min_retry_s = 1, max_retry_s = 60;
    std::vector<std::pair<std::string, scheduler::TenantLimits>> tenants;
  };
  /// `wake` makes somebody call Pump soon; it must not block. `view` must outlive the queue.
  RequestQueue(const Options& options, scheduler::ClusterView* view, std::function<void()> wake);

  /// Whether a request need not be refused for want of workers: they are there, or were until so
  /// lately that others may come (`patience`). A router that has never had any refuses at once.
  bool MayBeServed(bool workers_there, absl::Time now);
  /// Asks to be let in. On success the request is in the queue, and its turn may come at any time;
  /// otherwise the answer says why, and when to come back. Pump must follow: it tells whoever had
  /// to make room.
  scheduler::Admitted Enqueue(std::shared_ptr<QueuedRequest> request,
                              const scheduler::Arrival& arrival);
  /// What the request wants is known exactly; until then an estimate counts. `chunk_ids` as in
  /// Placement.
  void Describe(scheduler::Ticket ticket, scheduler::Placement what,
                std::vector<kvstore::ChunkId> chunk_ids);
  /// The request has had its first token: its tenant may send another.
  void Prefilled(scheduler::Ticket ticket);
  /// The request has ended, whether its turn had come or not.
  void Leave(scheduler::Ticket ticket);
  /// Lets those run whose turn it is and for whom the workers have room; removes those that had to
  /// make room and those whose deadline has passed. Not from within a QueuedRequest's lock.
  void Pump();

  uint32_t queued() const;
  /// Seconds until the tenant's request has its first token, were it dispatched now.
  double PredictFirstToken(const std::string& tenant, const scheduler::Candidate& forecast) const;
  double Weight(const std::string& tenant) const;
  /// Seconds after which a refused request may come back: the time in which what waits is served.
  double RetryAfter() const;

 private:
  struct Waiting {
    std::shared_ptr<QueuedRequest> request;
    scheduler::Placement what;
    std::vector<kvstore::ChunkId> chunk_ids;
    double work_tokens = 0;
  };
  // These expect mutex_ to be held.
  Waiting Take(scheduler::Ticket ticket);
  double RetryAfterLocked() const;
  // Who may run now, the one whose turn it is or one whose tenant has less than its share; or 0.
  scheduler::Ticket Next(absl::Time now);
  bool RoomFor(scheduler::Ticket ticket, absl::Time now);
  bool MayBeServedLocked(bool workers_there, absl::Time now);
  void CountServed(double work_tokens, absl::Time now);

  const Options options_;
  scheduler::ClusterView* const view_;
  const std::function<void()> wake_;
  mutable std::mutex mutex_;
  // Guarded by mutex_, as all below.
  scheduler::Admission admission_;
  absl::flat_hash_map<scheduler::Ticket, Waiting> waiting_;
  bool pumping_ = false, again_ = false;
  std::vector<std::shared_ptr<QueuedRequest>> displaced_;  // and not yet told
  // The future while there are workers of both phases; the past until there have been.
  absl::Time missing_since_ = absl::InfinitePast();
  // How fast the queue is served while there is one.
  absl::Time last_served_ = absl::InfinitePast();
  double served_tokens_ = 0, served_s_ = 0;
};

}  // namespace tandem::server
