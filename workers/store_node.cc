#include "workers/store_node.h"

#include <grpcpp/health_check_service_interface.h>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status.h"
#include "base/version.h"
#include "workers/node_id.h"

namespace tandem::workers {
namespace {

constexpr absl::Duration kShutdownGrace = absl::Seconds(2);

}  // namespace

absl::StatusOr<std::unique_ptr<StoreNode>> StoreNode::Start(
    StoreNodeOptions options, kvstore::Store* store,
    std::shared_ptr<prometheus::Registry> metrics) {
  std::unique_ptr<StoreNode> node(new StoreNode(std::move(options), store));
  RETURN_IF_ERROR(node->StartParts(std::move(metrics)));
  return node;
}

absl::Status StoreNode::StartParts(std::shared_ptr<prometheus::Registry> metrics) {
  metrics_ = std::make_unique<KvMetrics>(std::move(metrics), "", options_.name);
  io_thread_ = std::thread([this] { io_.run(); });
  ASSIGN_OR_RETURN(handoff_server_, kvstore::HandoffServer::Start(
                                        io_, {.listen = options_.data_listen, .chunks = store_}));
  UpdateMetrics();
  service_ = std::make_unique<StoreServiceImpl>(store_);
  ASSIGN_OR_RETURN(grpc_,
                   StartGrpcServer({.listen = options_.grpc_listen, .services = {service_.get()}}));
  v1::WorkerInfo info;
  info.set_worker_id(MakeNodeId(options_.name));
  info.set_name(options_.name);
  info.set_phase(v1::PHASE_STORE);
  info.set_grpc_address(absl::StrCat(options_.grpc_advertised_host, ":", grpc_.port));
  info.set_data_address(absl::StrCat(options_.data_advertised_host, ":", data_port()));
  info.set_version(kVersion);
  spdlog::info("store ready worker_id={} grpc={} data={} chunks={}", info.worker_id(),
               info.grpc_address(), info.data_address(), store_->journal()->size());
  cluster_ = std::make_unique<ClusterClient>(
      options_.routers, info,
      [this] {
        v1::WorkerLoad load;
        load.set_draining(draining_);
        return load;
      },
      options_.report_interval, store_->journal());
  return absl::OkStatus();
}

StoreNode::~StoreNode() { Stop(); }

void StoreNode::UpdateMetrics() {
  metrics_timer_.expires_after(absl::ToChronoNanoseconds(options_.report_interval));
  metrics_timer_.async_wait([this](const boost::system::error_code& error) {
    if (!error) UpdateMetrics();
  });
  metrics_->SetStore(store_->stats());
}

void StoreNode::Drain() {
  draining_ = true;
  grpc_.server->GetHealthCheckService()->SetServingStatus(false);
  cluster_->ReportNow();
}

void StoreNode::Stop() {
  if (stopped_) return;
  stopped_ = true;
  cluster_.reset();
  if (handoff_server_ != nullptr) handoff_server_->Stop();
  if (grpc_.server != nullptr) {
    grpc_.server->Shutdown(absl::ToChronoTime(absl::Now() + kShutdownGrace));
    grpc_.server->Wait();
  }
  io_.stop();
  if (io_thread_.joinable()) io_thread_.join();
}

}  // namespace tandem::workers
