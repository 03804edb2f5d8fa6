// A node that only keeps chunks: the store, the data plane, the operator's service and the
// registration with the routers. Built by the daemon for the role `store`.
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
#include "kvstore/store.h"
#include "kvstore/transfer/transfer.h"
#include "workers/cluster_client.h"
#include "workers/kv_metrics.h"
#include "workers/store_service.h"

namespace tandem::workers {

struct StoreNodeOptions {
  std::string name;
  /// host:port to listen on, and the hosts under which others reach them.
  std::string grpc_listen, grpc_advertised_host;
  std::string data_listen, data_advertised_host;
  std::vector<std::string> routers;
  absl::Duration report_interval = absl::Milliseconds(250);
};

/// Public members are for one controlling thread.
class StoreNode {
 public:
  /// Binds both ports and registers with the routers. `store` must outlive the node.
  static absl::StatusOr<std::unique_ptr<StoreNode>> Start(
      StoreNodeOptions options, kvstore::Store* store,
      std::shared_ptr<prometheus::Registry> metrics);
  ~StoreNode();

  int grpc_port() const { return grpc_.port; }
  int data_port() const { return handoff_server_->port(); }
  /// Tells the routers that it goes away. What is being fetched is still served.
  void Drain();
  /// Closes every connection and stops every thread.
  void Stop();

 private:
  StoreNode(StoreNodeOptions options, kvstore::Store* store)
      : options_(std::move(options)), store_(store) {}
  absl::Status StartParts(std::shared_ptr<prometheus::Registry> metrics);
  void UpdateMetrics();

  const StoreNodeOptions options_;
  kvstore::Store* const store_;
  std::unique_ptr<KvMetrics> metrics_;
  std::atomic<bool> draining_{false};
  bool stopped_ = false;
  boost::asio::io_context io_{1};
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> io_work_{
      io_.get_executor()};
  boost::asio::steady_timer metrics_timer_{io_};
  std::thread io_thread_;
  std::unique_ptr<kvstore::HandoffServer> handoff_server_;
  std::unique_ptr<StoreServiceImpl> service_;
  GrpcServer grpc_;
  std::unique_ptr<ClusterClient> cluster_;
};

}  // namespace tandem::workers
