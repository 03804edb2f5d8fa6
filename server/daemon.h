// The daemon: builds what its role asks for, and takes it down in the right order.
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "server/config.h"
#include "server/metrics_server.h"
#include "server/router.h"
#include "workers/store_node.h"
#include "workers/worker.h"

namespace tandem::server {

/// For one controlling thread.
class Daemon {
 public:
  /// Loads the model and starts everything; returns when requests can be taken (`all`), or when
  /// every port is open (`router`, `worker`). Errors say what to do.
  static absl::StatusOr<std::unique_ptr<Daemon>> Start(const Config& config);
  ~Daemon();

  /// Refuses new requests and waits, at most drain_timeout, for the running ones.
  void Drain();

 private:
  explicit Daemon(const Config& config) : config_(config) {}
  absl::Status StartParts();
  absl::Status StartWorker(std::optional<Phase> phase, const std::vector<std::string>& routers,
                           const std::shared_ptr<const workers::Model>& model,
                           const std::shared_ptr<prometheus::Registry>& registry);
  absl::Status StartStore();
  absl::Status StartStoreNode(const std::shared_ptr<prometheus::Registry>& registry);
  absl::Status WritePortFile() const;
  // Until `router_` has workers for both phases.
  void WaitReady();

  const Config config_;
  // Destroyed from the last to the first: the router before the workers that it uses.
  std::unique_ptr<MetricsServer> metrics_server_;
  std::unique_ptr<kvstore::Store> store_;
  std::unique_ptr<workers::StoreNode> store_node_;
  std::vector<std::unique_ptr<workers::Worker>> workers_;
  std::unique_ptr<Router> router_;
};

}  // namespace tandem::server
