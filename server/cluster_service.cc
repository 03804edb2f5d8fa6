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
  // Reads are strictly one after another, and the only write is answered before the second read:
  // no two reactions run at once.
  void OnReadDone(bool ok) override {
    if (!ok) return Finish(grpc::Status::OK);
    if (report_.has_info() == registered()) {
      return Finish(grpc::Status(grpc::StatusCode::INVALID_ARGUMENT,
                                 "the first report, and no other, must carry info"));
    }
    if (registered()) {
      service_->core_->view().Report(info_.worker_id(), report_.load(), absl::Now());
      return StartRead(&report_);
    }
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

  absl::Status Check(const v1::WorkerInfo& info) const {
    const workers::Model& model = service_->core_->model();
    if (info.model_fingerprint() != model.fingerprint()) {
      return absl::FailedPreconditionError(absl::StrCat(
          "model: the worker serves '", info.model_name(), "' (",
          absl::BytesToHexString(info.model_fingerprint()).substr(0, 16), "…), this router '",
          model.name(), "' (", absl::BytesToHexString(model.fingerprint()).substr(0, 16), "…)"));
    }
    if (info.version() != kVersion) {
      return absl::FailedPreconditionError(
          absl::StrCat("version: the worker is ", info.version(), ", this router is ", kVersion));
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
