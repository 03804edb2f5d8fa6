#include "server/cluster_service.h"

#include <unistd.h>

#include "absl/strings/escaping.h"
#include "base/log.h"
#include "base/status.h"
#include "base/version.h"

namespace tandem::server {

/// One worker's registration: lives as long as its stream.
class ClusterServiceImpl::RegisterCall final
    : public grpc::ServerBidiReactor<v1::WorkerReport, v1::RegisterResponse> {
 public:
  RegisterCall(ClusterServiceImpl* service, grpc::CallbackServerContext* context)
      : service_(service), context_(context) {
    std::lock_guard lock(service_->mutex_);
    service_->open_.insert(context_);
  }
  void Begin() { StartRead(&report_); }

 private:
  // Either a read or a write is under way: no two reactions run at once.
  void OnReadDone(bool ok) override {
    if (!ok) return Finish(grpc::Status::OK);
    if (report_.has_info() == registered()) {
      return Finish(grpc::Status(grpc::StatusCode::INVALID_ARGUMENT,
                                 "the first report, and no other, must carry info"));
    }
    if (!registered()) return Join();
    if (report_.has_chunks()) return Follow(report_.chunks());
    service_->core_->view().Report(info_.worker_id(), report_.load(), absl::Now());
    StartRead(&report_);
  }
  void OnWriteDone(bool ok) override {
    if (!ok) return Finish(grpc::Status::OK);
    StartRead(&report_);
  }
  void OnDone() override {
    if (registered()) {
      service_->core_->RemoveWorker(info_.worker_id(), registration_);
      spdlog::info("worker left worker_id={}", info_.worker_id());
    }
    {
      std::lock_guard lock(service_->mutex_);
      service_->open_.erase(context_);
    }
    delete this;
  }

  bool registered() const { return registration_ != 0; }

  void Join() {
    if (absl::Status status = Check(report_.info()); !status.ok()) {
      spdlog::warn("worker refused name={} error=\"{}\"", report_.info().name(),
                   std::string(status.message()));
      return Finish(ToGrpc(status));
    }
    info_ = report_.info();
    registration_ = service_->core_->AddWorker(info_);
    spdlog::info("worker joined worker_id={} phase={} grpc={} data={}", info_.worker_id(),
                 v1::Phase_Name(info_.phase()), info_.grpc_address(), info_.data_address());
    response_.set_router_id(service_->router_id_);
    StartWrite(&response_);
  }

  /// Chunk events. Asks once for a snapshot when some were missed; what comes before it is of no
  /// use.
  void Follow(const v1::ChunkEvents& events) {
    if (events.snapshot()) snapshot_asked_ = false;
    if (snapshot_asked_ || service_->core_->ApplyChunks(info_.worker_id(), registration_, events)) {
      return StartRead(&report_);
    }
    spdlog::warn("chunk events missed worker_id={}; asking for all of them", info_.worker_id());
    snapshot_asked_ = true;
    response_.Clear();
    response_.set_resend_chunks(true);
    StartWrite(&response_);
  }

  absl::Status Check(const v1::WorkerInfo& info) const {
    if (info.version() != kVersion) {
      return absl::FailedPreconditionError(
          absl::StrCat("version: the worker is ", info.version(), ", this router is ", kVersion));
    }
    return info.phase() == v1::PHASE_STORE ? CheckStore(info) : CheckEngine(info);
  }

  static absl::Status CheckStore(const v1::WorkerInfo& info) {
    if (info.worker_id().empty() || info.grpc_address().empty() || info.data_address().empty()) {
      return absl::InvalidArgumentError(
          "info: worker_id, grpc_address and data_address of a store must be set");
    }
    return absl::OkStatus();
  }

  absl::Status CheckEngine(const v1::WorkerInfo& info) const {
    const workers::Model& model = service_->core_->model();
    if (info.model_fingerprint() != model.fingerprint()) {
      return absl::FailedPreconditionError(absl::StrCat(
          "model: the worker serves '", info.model_name(), "' (",
          absl::BytesToHexString(info.model_fingerprint()).substr(0, 16), "…), this router '",
          model.name(), "' (", absl::BytesToHexString(model.fingerprint()).substr(0, 16), "…)"));
    }
    const bool has_phase = info.phase() == v1::PHASE_PREFILL || info.phase() == v1::PHASE_DECODE;
    if (info.worker_id().empty() || info.grpc_address().empty() || !has_phase ||
        info.context_tokens() == 0) {
      return absl::InvalidArgumentError(
          "info: worker_id, phase, grpc_address and context_tokens must be set");
    }
    return absl::OkStatus();
  }

  ClusterServiceImpl* const service_;
  grpc::CallbackServerContext* const context_;
  v1::WorkerReport report_;
  v1::RegisterResponse response_;
  v1::WorkerInfo info_;
  uint64_t registration_ = 0;
  bool snapshot_asked_ = false;
};

ClusterServiceImpl::ClusterServiceImpl(RouterCore* core)
    : core_(core), router_id_([] {
        char host[256] = "router";
        gethostname(host, sizeof host - 1);
        return absl::StrCat(host, "-", getpid());
      }()) {}

grpc::ServerBidiReactor<v1::WorkerReport, v1::RegisterResponse>* ClusterServiceImpl::Register(
    grpc::CallbackServerContext* context) {
  auto* call = new RegisterCall(this, context);
  call->Begin();
  return call;
}

grpc::ServerUnaryReactor* ClusterServiceImpl::ListWorkers(grpc::CallbackServerContext* context,
                                                          const v1::ListWorkersRequest*,
                                                          v1::ListWorkersResponse* response) {
  for (v1::WorkerState& state : core_->view().List(absl::Now())) {
    state.set_chunks(core_->directory().ChunksOf(state.info().worker_id()));
    *response->add_workers() = std::move(state);
  }
  response->set_requests_in_flight(core_->in_flight());
  response->set_max_requests(core_->options().max_requests);
  auto* reactor = context->DefaultReactor();
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

void ClusterServiceImpl::CancelAll() {
  std::lock_guard lock(mutex_);
  for (grpc::CallbackServerContext* context : open_) context->TryCancel();
}

}  // namespace tandem::server
