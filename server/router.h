// A router: the public inference service and the cluster service, over one view of the workers.
// Built by the daemon for the roles `router` and `all`.
#pragma once

#include <atomic>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/grpc_server.h"
#include "scheduler/chunk_directory.h"
#include "scheduler/cluster_view.h"
#include "scheduler/core/admission.h"
#include "server/decision_log.h"
#include "server/open_streams.h"
#include "server/request_check.h"
#include "server/request_queue.h"
#include "server/router_metrics.h"
#include "server/step_streams.h"
#include "server/workload_log.h"
#include "tandem/v1/worker.grpc.pb.h"
#include "workers/engine/model.h"

namespace tandem::server {

class InferenceServiceImpl;
class ClusterServiceImpl;
class PlannerLoop;

struct RouterOptions {
  std::string listen;
  std::vector<std::string> tenants;
  uint32_t max_requests = 256;
  absl::Duration retry_after = absl::Seconds(1);
  uint64_t max_prompt_bytes = 4 << 20;
  uint64_t max_message_bytes = 128 << 20;
  absl::Duration worker_timeout = absl::Seconds(5);
  absl::Duration stall_timeout = absl::Seconds(60);
  absl::Duration ttft_objective = absl::Milliseconds(250);
  absl::Duration tpot_objective = absl::Milliseconds(100);
  /// 0: none.
  absl::Duration max_ttft;
  uint32_t dispatch_ahead = 2;
  absl::Duration resume_timeout = absl::Seconds(30);
  /// Resumptions for each hundred requests.
  uint32_t resume_budget = 20;
  /// "off", "dry-run" or "on".
  std::string planner = "on";
  absl::Duration planner_interval = absl::Seconds(1);
  absl::Duration planner_min_dwell = absl::Seconds(30);
  /// A share: 0.2 is 20 %.
  double planner_min_gain = 0.2;
  std::vector<std::pair<std::string, scheduler::TenantLimits>> tenant_limits;
};

/// Whether a request may come in: OK, or the error, for the metric the reason, and when to come
/// back.
struct Entry {
  absl::Status status;
  std::string_view reason;
  std::optional<absl::Duration> retry_after;
};

/// A request that the router looks after now and then.
class PatientRequest {
 public:
  virtual ~PatientRequest() = default;
  /// Time has passed, or a worker has come. Once for each RouterCore::Wait.
  virtual void OnTick(absl::Time now) = 0;
  /// The last chance to send a terminal message.
  virtual void OnRouterStops() = 0;
};

/// What the services and calls of one router share. Thread-safe.
class RouterCore {
 public:
  RouterCore(RouterOptions options, std::shared_ptr<const workers::Model> model,
             std::shared_ptr<prometheus::Registry> registry);

  const RouterOptions& options() const { return options_; }
  const workers::Model& model() const { return *model_; }
  const std::shared_ptr<const workers::Model>& shared_model() const { return model_; }
  scheduler::ClusterView& view() { return view_; }
  const scheduler::ClusterView& view() const { return view_; }
  /// Which chunks the workers and stores hold, as far as they have told.
  const scheduler::ChunkDirectory& directory() const { return directory_; }
  RouterMetrics& metrics() { return metrics_; }
  RequestQueue& queue() { return queue_; }
  OpenStreams& streams() { return streams_; }
  StepStreams& steps() { return steps_; }
  DecisionLog& decisions() { return decisions_; }
  WorkloadLog& workload() { return workload_; }

  /// What can be said of a request before it is read: UNAVAILABLE while draining,
  /// RESOURCE_EXHAUSTED when there are several times more calls than may be in flight.
  Entry Admit();
  /// The error that names max_requests.
  absl::Status QueueFull() const;
  /// Counts a request in, which is in the queue now, and out again, also of the queue.
  void Enter();
  void Leave(scheduler::Ticket ticket);
  uint32_t in_flight() const { return in_flight_; }
  void Drain() { draining_ = true; }
  /// A call object exists from CallBegins to CallGone, longer than its request is in flight.
  void CallBegins(const void* call, std::weak_ptr<PatientRequest> request);
  void CallGone(const void* call);
  /// Ends every request that is still in flight.
  void EndCalls();
  /// Blocks until no call object is left, nor a call to a worker.
  void WaitCallsGone();

  /// Lets the request hear of the next tick.
  void Wait(std::weak_ptr<PatientRequest> request);
  /// A request wants to be resumed after a failure; false: too many are.
  bool SpendRetry();
  /// A prompt was computed: its worker has room for another.
  void PrefillDone() { Wake(); }
  /// Looks for lost workers, looks after those that wait, lets the queue move. For one thread.
  void Tick();
  /// Blocks until it is time for the next Tick: something happened, or `longest` has passed.
  void WaitForTick(absl::Duration longest);
  /// Makes a Tick come soon. Thread-safe and cheap.
  void Wake();

  /// The limits that hold now; context_tokens is the smallest among the workers.
  RequestLimits Limits() const;

  /// A worker's service, from AddWorker until RemoveWorker; null when it is gone, and for a store.
  std::shared_ptr<v1::WorkerService::Stub> WorkerStub(const std::string& worker_id);
  /// A worker or store registered; returns the registration's number. Connects to a worker.
  uint64_t AddWorker(const v1::WorkerInfo& info);
  /// Forgets it and its chunks, unless it has registered again since.
  void RemoveWorker(const std::string& worker_id, uint64_t registration);
  /// What a worker or store tells of its chunks. False: it must send a snapshot. Ignored (true)
  /// when it has registered again since.
  bool ApplyChunks(const std::string& worker_id, uint64_t registration,
                   const v1::ChunkEvents& events);

 private:
  struct Connection {
    uint64_t registration = 0;
    // 0 for a store.
    uint32_t context_tokens = 0;
    std::shared_ptr<v1::WorkerService::Stub> stub;
  };
  void LoseWorker(const std::string& worker_id, const std::string& reason);

  const RouterOptions options_;
  const std::shared_ptr<const workers::Model> model_;
  scheduler::ChunkDirectory directory_;
  scheduler::ClusterView view_;
  RouterMetrics metrics_;
  OpenStreams streams_;
  StepStreams steps_;
  DecisionLog decisions_;
  WorkloadLog workload_;
  RequestQueue queue_;
  std::atomic<uint32_t> in_flight_{0};
  std::atomic<bool> draining_{false};
  std::atomic<bool> ending_{false};
  // Held while a worker comes or goes, before mutex_: forgetting its chunks takes milliseconds, for
  // which requests must not wait, but its next registration must.
  std::mutex membership_mutex_;
  mutable std::mutex mutex_;
  std::condition_variable no_calls_;
  // Guarded by mutex_.
  absl::flat_hash_map<const void*, std::weak_ptr<PatientRequest>> calls_;
  std::map<std::string, Connection> connections_;
  std::vector<std::weak_ptr<PatientRequest>> patient_;
  scheduler::RetryBudget retries_;
  std::mutex tick_mutex_;
  std::condition_variable tick_;
  bool tick_wanted_ = false;  // guarded by tick_mutex_
};

/// Life: Start ──> serving ── Drain ──> draining ── Stop ──> stopped. For one controlling thread.
class Router {
 public:
  static absl::StatusOr<std::unique_ptr<Router>> Start(
      RouterOptions options, std::shared_ptr<const workers::Model> model,
      std::shared_ptr<prometheus::Registry> registry);
  ~Router();

  int port() const { return grpc_.port; }
  /// Every phase has a worker: health says SERVING.
  bool ready() const;
  /// Health turns to NOT_SERVING and new requests are refused; running ones go on.
  void Drain();
  uint32_t in_flight() const { return core_.in_flight(); }
  /// Cancels what still runs and stops every thread.
  void Stop();

 private:
  Router(RouterOptions options, std::shared_ptr<const workers::Model> model,
         std::shared_ptr<prometheus::Registry> registry);
  // Drives the core, and keeps health and gauges up to date, until Stop.
  void Watch();
  void Show(absl::Time now);
  void SetHealth(bool serving);

  RouterCore core_;
  std::unique_ptr<InferenceServiceImpl> inference_;
  std::unique_ptr<ClusterServiceImpl> cluster_;
  std::unique_ptr<PlannerLoop> planner_;
  GrpcServer grpc_;
  std::atomic<bool> stopping_{false}, draining_{false};
  std::thread watcher_;
};

}  // namespace tandem::server
