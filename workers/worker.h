// A whole worker: one engine with its loop, the data plane, the gRPC service and the registration
// with the routers. Built by the daemon for the roles `worker` and `all`.
#pragma once

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/grpc_server.h"
#include "workers/cluster_client.h"
#include "workers/decode_loop.h"
#include "workers/prefill_loop.h"
#include "workers/store_service.h"
#include "workers/worker_metrics.h"
#include "workers/worker_service.h"

namespace tandem::workers {

struct WorkerOptions {
  std::string name;
  v1::Phase phase = v1::PHASE_UNSPECIFIED;
  EngineOptions engine;
  /// CPUs to pin the engine's threads to; empty: none.
  std::vector<int32_t> cpus;
  /// host:port to listen on, and the hosts under which others reach them.
  std::string grpc_listen, grpc_advertised_host;
  std::string data_listen, data_advertised_host;
  std::vector<std::string> routers;
  uint32_t max_queued = 256;
  uint32_t chunk_tokens = 256;
  uint64_t handoff_buffer_bytes = 1 << 30;
  absl::Duration handoff_lease = absl::Seconds(30);
  absl::Duration report_interval = absl::Milliseconds(250);
  /// Prompts computed at once; the engine's further sequences (prefill) retain those that are done.
  uint32_t prefill_sequences = 8;
  /// Null: nothing is cached. Must outlive the worker.
  kvstore::Store* store = nullptr;
  /// Of the KV: null for none; see KvCoder.
  std::shared_ptr<const kvstore::codec::Profile> profile;
  std::optional<kvstore::Level> kv_floor;
  uint32_t kv_threads = 1;
};

/// Life: Start ──> serving ── Drain ──> draining ── Stop ──> stopped. Stop may come at any time.
/// Public members are for one controlling thread.
class Worker {
 public:
  /// Loads the engine, binds both ports and registers with the routers. `metrics` as WorkerMetrics.
  static absl::StatusOr<std::unique_ptr<Worker>> Start(
      WorkerOptions options, std::shared_ptr<const Model> model,
      std::shared_ptr<prometheus::Registry> metrics);
  ~Worker();

  int grpc_port() const { return grpc_.port; }
  int data_port() const { return data_port_; }

  /// Tells the routers to send nothing more. What is on its way is still served.
  void Drain();
  /// Requests that have not ended.
  uint32_t unfinished() const;
  /// Ends what still runs with UNAVAILABLE and stops every thread.
  void Stop();

 private:
  explicit Worker(WorkerOptions options) : options_(std::move(options)) {}
  absl::Status StartParts(std::shared_ptr<const Model> model);
  absl::Status StartLoop(std::unique_ptr<Engine> engine);
  v1::WorkerInfo Info(const Model& model) const;
  v1::WorkerLoad Load();
  // Copies the present load into the metrics, again and again.
  void UpdateMetrics();
  LoopLoad CurrentLoad() const;

  const WorkerOptions options_;
  std::unique_ptr<WorkerMetrics> metrics_;
  std::unique_ptr<KvMetrics> kv_metrics_;
  uint64_t kv_capacity_tokens_ = 0;
  int data_port_ = 0;
  std::atomic<bool> draining_{false};
  bool stopped_ = false;

  boost::asio::io_context io_{1};
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> io_work_{
      io_.get_executor()};
  boost::asio::steady_timer metrics_timer_{io_};
  std::thread io_thread_;
  // Order matters: destroyed from the last to the first.
  std::unique_ptr<KvCoder> coder_;
  std::unique_ptr<kvstore::HandoffServer> handoff_server_;
  std::unique_ptr<kvstore::HandoffClient> handoff_client_;
  std::unique_ptr<PrefixCache> prefix_cache_;
  std::unique_ptr<PrefillLoop> prefill_;
  std::unique_ptr<DecodeLoop> decode_;
  std::unique_ptr<WorkerServiceImpl> service_;
  std::unique_ptr<StoreServiceImpl> store_service_;
  GrpcServer grpc_;
  std::unique_ptr<ClusterClient> cluster_;
};

}  // namespace tandem::workers
