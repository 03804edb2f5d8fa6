// A whole worker: one model with the loops that its phase needs, the data plane, the gRPC service
// and the registration with the routers. Built by the daemon for the roles `worker` and `all`.
#pragma once

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/grpc_server.h"
#include "kvstore/transfer/link_prober.h"
#include "workers/cluster_client.h"
#include "workers/decode_loop.h"
#include "workers/link_metrics.h"
#include "workers/parking_lot.h"
#include "workers/prefill_loop.h"
#include "workers/speed_cache.h"
#include "workers/store_service.h"
#include "workers/turn_gate.h"
#include "workers/worker_metrics.h"
#include "workers/worker_service.h"
#include "workers/worker_speed.h"

namespace tandem::workers {

struct WorkerOptions {
  std::string name;
  /// What it begins with: prefill, decode or mixed.
  v1::Phase phase = v1::PHASE_UNSPECIFIED;
  /// That is until the planner gives it another one.
  bool phase_planned = false;
  /// It keeps that, whatever routers say.
  bool phase_pinned = false;
  /// A decode worker computes prompts too, between its steps.
  bool prefill_on_decode = true;
  /// The engines of the two loops; equal but for what concerns their use.
  EngineOptions prefill_engine, decode_engine;
  /// CPUs to pin the engines' threads to; empty: none.
  std::vector<int32_t> cpus;
  /// host:port to listen on, and the hosts under which others reach them.
  std::string grpc_listen, grpc_advertised_host;
  std::string data_listen, data_advertised_host;
  std::vector<std::string> routers;
  uint32_t max_queued = 256;
  uint32_t chunk_tokens = 256;
  uint64_t handoff_buffer_bytes = 1 << 30;
  absl::Duration handoff_lease = absl::Seconds(30);
  /// Of the time that links, and this node's port, may be busy with probes.
  double link_probe_share = 0.01;
  absl::Duration report_interval = absl::Milliseconds(250);
  absl::Duration tpot_objective = absl::Milliseconds(100);
  /// Prompts computed at once; the engine's further sequences (prefill) retain those that are done.
  uint32_t prefill_sequences = 8;
  uint32_t prefill_overtake_tokens = scheduler::kDefaultOvertakeTokens;
  /// See DecodeLoop::Options and ParkingLot::Options.
  uint64_t decode_kv_tokens = 0;
  uint64_t parked_bytes = uint64_t{256} << 20;
  /// Null: nothing is cached. Must outlive the worker.
  kvstore::Store* store = nullptr;
  /// Another worker of the process tells the metrics of the same store.
  bool shares_store = false;
  /// Of the KV: null for none; see KvCoder.
  std::shared_ptr<const kvstore::codec::Profile> profile;
  std::optional<kvstore::Level> kv_floor;
  uint32_t kv_threads = 1;
  /// How long the engines' steps may be measured before the worker serves, unless
  /// `speed_cache_path` holds what was learned before; 0: neither.
  absl::Duration profile_at_start;
  /// A folder; empty: DefaultSpeedCachePath.
  std::string speed_cache_path;
  /// The engines use GPUs.
  bool uses_gpus = false;
};

/// Life: Start ──> serving ── Drain ──> draining ── Stop ──> stopped. Stop may come at any time.
///
/// Phases, while it serves; loops(P) are those that P needs (prefill: the prefill loop; mixed:
/// both; decode: both, or the decode loop alone without prefill_on_decode):
///
///   state            event                              next
///   P                AssignPhase(P)                     P
///   P                AssignPhase(Q), not pinned         making(P→Q)
///   making(P→Q)      loops(Q) are there                 changing(P→Q): the reports say so; loops
///                                                       that Q lacks send their sequences away
///   making(P→Q)      an engine cannot be made           P
///   changing(P→Q)    AssignPhase(R)                     making(P→R); what is away stays away
///   changing(P→Q)    loops that Q lacks have nothing    Q; a decode loop that Q lacks is dropped
///
/// A prefill loop stays once it is there, closed where the phase lacks it: its cache is in use by
/// others. While draining the decode loop sends its sequences away too.
///
/// Public members but for AssignPhase are for one controlling thread.
class Worker : public LoopSource {
 public:
  /// Makes the engines, binds both ports and registers with the routers. `metrics` as
  /// WorkerMetrics.
  static absl::StatusOr<std::unique_ptr<Worker>> Start(
      WorkerOptions options, std::shared_ptr<const Model> model,
      std::shared_ptr<prometheus::Registry> metrics);
  ~Worker() override;

  int grpc_port() const { return grpc_.port; }
  int data_port() const { return handoff_server_->port(); }

  /// Takes another phase, in the background. An operator's word holds: the planner's is refused
  /// from then on, until PHASE_AUTO leaves the phase to it. INVALID_ARGUMENT when it is none that a
  /// worker can have, FAILED_PRECONDITION when the phase is pinned, or is not for the planner to
  /// change. Thread-safe.
  absl::Status AssignPhase(v1::Phase phase, bool by_planner = false);
  /// Tells the routers to send nothing more, and sends away what can go on elsewhere. What is on
  /// its way is still served.
  void Drain();
  /// Requests that have not ended.
  uint32_t unfinished() const;
  /// What the routers are told. Thread-safe.
  v1::WorkerLoad Load() const;
  /// Where other workers reach the data plane.
  std::string data_address() const override;
  /// Ends what still runs with UNAVAILABLE and stops every thread.
  void Stop();

 private:
  struct Loops {
    bool prefill = false, decode = false;
  };
  explicit Worker(WorkerOptions options)
      : options_(std::move(options)),
        gate_(options_.tpot_objective),
        speed_(options_.prefill_engine.step_tokens),
        phase_(options_.phase),
        target_(options_.phase),
        planned_(options_.phase_planned),
        unassigned_(options_.phase_planned) {}
  absl::Status StartParts();
  // With the first engine: all that needs to know how its KV looks.
  absl::Status StartDataPlane(const Engine& engine);
  Loops LoopsOf(v1::Phase phase) const;
  // Makes the loops that the phase needs and that are not there.
  absl::Status MakeLoops(v1::Phase phase);
  absl::StatusOr<std::unique_ptr<Engine>> MakeEngine(EngineOptions options);
  absl::Status MakePrefillLoop();
  // With what an earlier process learned of such an engine's speed; else, while the worker does not
  // serve yet, with what steps of it take now.
  void LearnSpeed(Engine& engine);
  // Keeps what was learned for the next start.
  void KeepSpeed(EngineOptions::Use use);
  absl::Status MakeDecodeLoop();

  // The phase thread's.
  void RunPhases();
  void ChangePhase(v1::Phase next);
  // Opens and closes loops for it.
  void Arrange(v1::Phase next);

  // LoopSource.
  absl::StatusOr<std::shared_ptr<PrefillLoop>> Prefill() override;
  absl::StatusOr<std::shared_ptr<DecodeLoop>> Decode() override;

  v1::WorkerInfo Info() const;
  void SetPeers(const v1::Peers& peers);
  // Copies the present load into the metrics, again and again.
  void UpdateMetrics();
  std::shared_ptr<PrefillLoop> prefill() const;
  std::shared_ptr<DecodeLoop> decode() const;

  const WorkerOptions options_;
  std::shared_ptr<const Model> model_;
  std::unique_ptr<WorkerMetrics> prefill_metrics_, decode_metrics_;
  std::unique_ptr<KvMetrics> kv_metrics_;
  std::unique_ptr<LinkMetrics> link_metrics_;
  TurnGate gate_;
  WorkerSpeed speed_;
  std::unique_ptr<SpeedCache> speed_cache_;           // null: nothing is measured or kept
  std::string prefill_speed_key_, decode_speed_key_;  // empty: no such engine
  std::atomic<bool> draining_{false};
  bool stopped_ = false;

  boost::asio::io_context io_{1};
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> io_work_{
      io_.get_executor()};
  boost::asio::steady_timer metrics_timer_{io_};
  std::thread io_thread_;
  kvstore::LinkTable links_;
  // Order matters: destroyed from the last to the first.
  std::unique_ptr<KvCoder> coder_;
  std::unique_ptr<ParkingLot> lot_;
  std::unique_ptr<kvstore::HandoffServer> handoff_server_;
  std::unique_ptr<kvstore::HandoffClient> handoff_client_;
  std::unique_ptr<kvstore::LinkProber> prober_;
  std::unique_ptr<PrefixCache> prefix_cache_;

  mutable std::mutex mutex_;
  std::condition_variable phase_wake_;
  // Guarded by mutex_.
  std::shared_ptr<PrefillLoop> prefill_;
  std::shared_ptr<DecodeLoop> decode_;
  uint64_t steps_of_dropped_loops_ = 0;
  v1::Phase phase_, changing_to_ = v1::PHASE_UNSPECIFIED, target_;
  bool planned_, unassigned_;  // as in WorkerLoad
  bool stopping_ = false;
  std::map<std::string, std::string> peer_names_;  // by data address

  std::thread phase_thread_;
  std::unique_ptr<WorkerServiceImpl> service_;
  std::unique_ptr<StoreServiceImpl> store_service_;
  GrpcServer grpc_;
  std::unique_ptr<ClusterClient> cluster_;
};

}  // namespace tandem::workers
