// Who is let in, and whose turn it is: tenants' limits, a bounded queue that is shared fairly
// between them, early refusal, and the budget of retries. Used by the router and by the simulator.
// No I/O, no threads: one caller at a time, who passes time in (seconds of any one clock).
#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"

namespace tandem::scheduler {

/// What a tenant may have. 0: no limit.
struct TenantLimits {
  /// Its share against other tenants' where they compete; > 0.
  double weight = 1;
  double requests_per_s = 0;
  /// Requests that may come at once after a pause; at least 1.
  double burst = 1;
  /// Requests that run, dispatched and not ended.
  uint32_t max_running = 0;
};

/// Names a request from Enqueue until it is refused, cancelled or ended.
using Ticket = uint64_t;

/// When a request that is dispatched now has its first token.
struct PredictedTtft {
  double seconds = 0;
  /// What of it is waiting for prompts that are on its prefill worker already.
  double queue_s = 0;
  /// The longest time for which a prompt that goes first waits nevertheless: a full step.
  double step_s = 0;
};

/// A request that asks to be let in.
struct Arrival {
  std::string tenant;
  /// Among a tenant's own: the higher one first.
  int32_t priority = 0;
  /// Predicted work in tokens (prompt tokens to compute, and generated ones at their weight).
  double work_tokens = 1;
  /// When it is of no more use; infinity: never.
  double deadline_s = std::numeric_limits<double>::infinity();
  /// Of a request that is dispatched now.
  PredictedTtft ttft;
};

/// Why a request is refused, in the words of the metric tandem_router_rejected_total.
enum class Refusal { kNone, kRate, kConcurrency, kQueueFull, kTooLate, kDisplaced };
/// "rate", "concurrency", "queue_full", "too_late", "displaced".
std::string_view RefusalWord(Refusal refusal);

/// What Enqueue answers.
struct Admitted {
  /// 0 when it is refused.
  Ticket ticket = 0;
  Refusal refusal = Refusal::kNone;
  /// RESOURCE_EXHAUSTED, with the limit that was met, or OK.
  absl::Status status;
  /// When refused: seconds after which it may be tried again with some hope.
  double retry_after_s = 0;
  /// Another request that had to make room, to be refused as `displaced`; 0: none.
  Ticket displaced = 0;
};

/// A request:
///
///   Enqueue ── a limit, or too late ──> refused
///   Enqueue ──> queued ── Next ──> running ── Finish ──> ended
///   queued ── Cancel, Expire, displaced by another tenant's ──> ended
///
/// Between tenants the queue is start-time fair queueing (Goyal, Vin, Cheng, SIGCOMM '96): a tenant
/// of weight w that always has work waiting gets at least its share of the work, whatever others
/// send. What a tenant that is here has left of its share, or of a half of the cluster while nobody
/// had to wait, stays its own for a while: until it has caught up it is *below its share*, goes
/// first, and does not wait for others' work to end. Within a tenant: by priority, then by arrival.
/// When the queue is full the tenant with the most waiting for its weight loses its last request to
/// one that has less.
class Admission {
 public:
  struct Options {
    /// Requests that wait, of all tenants; and that wait or run. 0: no limit of the latter.
    uint32_t max_queued = 1024;
    uint32_t max_in_flight = 0;
    /// Predicted TTFT beyond which a request is refused; 0: only its own deadline counts.
    double max_ttft_s = 0;
    /// Bounds of the retry delay.
    double min_retry_s = 0.1, max_retry_s = 30;
    /// Work per second, in tokens, before any was measured.
    double work_per_s = 5000;
    /// What a tenant can have left of its share, in seconds of all of the cluster's work; and how
    /// long after its last request it is forgotten.
    double credit_s = 2, credit_kept_s = 10;
  };
  explicit Admission(const Options& options) : options_(options) {}

  /// Limits of a tenant, from now on. One that was never named has the default limits.
  void SetTenant(const std::string& tenant, const TenantLimits& limits);
  /// Tokens of work per second that the cluster can do, as the dispatcher sees it.
  void SetCapacity(double work_per_s);

  Admitted Enqueue(const Arrival& arrival, double now_s);
  /// The request whose turn it is, taken out of the queue; from now on it runs. None when nobody
  /// waits who may run. Its deadline may have passed: call Expire before.
  std::optional<Ticket> Next(double now_s);
  /// The request whose turn it is, left where it is.
  std::optional<Ticket> Peek() const;
  /// Of a tenant below its share, which may run one more though the workers are busy with others'
  /// requests; of several, that whose turn comes first. None when there is no such tenant, when
  /// more than four fifths of the requests that run are its own, or when as many of its own prompts
  /// are being computed as others' (or a few, if that is more).
  std::optional<Ticket> PeekBelowShare() const;
  /// The waiting request runs from now on.
  void Start(Ticket ticket);
  /// A waiting request goes: its client has left. False: it does not wait.
  bool Cancel(Ticket ticket);
  /// A running request has had its first token. Once is enough, more does no harm.
  void Prefilled(Ticket ticket, double now_s);
  /// How many times longer than predicted the tenant's requests wait for their turn and for prompts
  /// before theirs, at most, of 19 in 20 (at least 1): so much earlier requests are refused, since
  /// in an overload all that are let in come near the limit, and half of them would be late.
  double wait_error(const std::string& tenant) const;
  /// A running request has ended.
  void Finish(Ticket ticket);
  /// Waiting requests whose deadline has passed, taken out.
  std::vector<Ticket> Expire(double now_s);

  uint32_t queued() const { return n_queued_; }
  uint32_t running() const { return n_running_; }
  uint32_t queued(const std::string& tenant) const;
  uint32_t running(const std::string& tenant) const;
  double weight(const std::string& tenant) const;
  /// Seconds until the tenant's request has its first token, were it dispatched now: its prompt
  /// goes before others' when the tenant is below its share.
  double PredictFirstToken(const std::string& tenant, const PredictedTtft& ttft,
                           double now_s) const;
  /// Seconds that a request of so much work would wait, were it to come now.
  double PredictWait(const std::string& tenant, int32_t priority, double now_s) const;
  /// Seconds until all that waits now is served.
  double PredictDrain() const;

 private:
  struct Waiting {
    Ticket ticket = 0;
    double work_tokens = 0, deadline_s = 0;
  };
  /// By falling priority, then in order of arrival.
  using Key = std::pair<int64_t, Ticket>;
  struct Tenant {
    TenantLimits limits;
    double bucket = 0;  // requests that may come at once now
    double bucket_s = 0;
    std::map<Key, Waiting> queue;
    double queued_work = 0;
    double start_tag = 0;  // of the first in the queue, in tokens for a weight of 1
    double last_s = -std::numeric_limits<double>::infinity();  // when its last request came
    uint32_t running = 0, prefilling = 0;
    double wait_error = 1;
  };
  struct Known {
    Tenant* tenant = nullptr;
    int64_t order = 0;
    bool running = false, prefilling = false;
    double arrived_s = 0, compute_s = 0, waiting_s = 0, limit_s = 0;
  };

  void PassTime(double now_s);
  Tenant& TenantOf(const std::string& name);
  std::optional<Ticket> Peek(bool below_share_only) const;
  bool MayRun(const Tenant& tenant) const;
  /// That of its next request, were it to come now.
  double StartTag(const Tenant& tenant, double now_s) const;
  /// Whether it has had less than its share because of others: one in five of the requests that
  /// run is another's, and few of its own prompts are being computed.
  bool BelowShare(const Tenant& tenant, double start_tag) const;
  /// Of `ttft.queue_s`, what the tenant's request would wait.
  double WorkerQueueSeconds(const Tenant& tenant, const PredictedTtft& ttft, double now_s) const;
  bool Full() const;
  double CapacityPerSecond() const;
  void Remove(Tenant& tenant, std::map<Key, Waiting>::iterator at);
  Ticket MakeRoom(const Tenant& newcomer);
  static void LearnError(const Known& known, double ttft_s);
  Admitted Refuse(Refusal refusal, std::string message, double retry_s) const;

  const Options options_;
  std::map<std::string, Tenant> tenants_;
  absl::flat_hash_map<Ticket, Known> known_;
  Ticket last_ticket_ = 0;
  uint32_t n_queued_ = 0, n_running_ = 0, n_prefilling_ = 0;
  double virtual_time_ = 0;
  double passed_s_ = std::numeric_limits<double>::infinity();  // until when PassTime knows
  double capacity_per_s_ = 0;
};

/// How many retries there may be: a share of the requests, and a small floor, so that a storm of
/// failures does not multiply the load (as Envoy's retry budgets).
class RetryBudget {
 public:
  struct Options {
    /// Retries for each request.
    double share = 0.2;
    /// Retries per second whatever the requests are.
    double floor_per_s = 1;
    /// Retries that can be saved up.
    double most = 100;
  };
  explicit RetryBudget(const Options& options) : options_(options), saved_(options.most) {}

  /// A request was admitted.
  void Earn();
  /// A retry is wanted; false: not now.
  bool Spend(double now_s);

 private:
  const Options options_;
  double saved_;
  double floor_s_ = 0;
  bool begun_ = false;
};

}  // namespace tandem::scheduler
