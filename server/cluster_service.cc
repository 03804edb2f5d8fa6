#include "server/cluster_service.h"

#include <unistd.h>

#include <deque>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/strip.h"
#include "base/log.h"
#include "base/status.h"
#include "base/version.h"
#include "server/planner_loop.h"

namespace tandem::server {

namespace {

/// Between two lists of its peers for a worker.
constexpr absl::Duration kPeersPause = absl::Seconds(1);

grpc::ServerUnaryReactor* Reply(grpc::CallbackServerContext* context, const absl::Status& status) {
  auto* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpc(status));
  return reactor;
}

v1::Phase PhaseOf(const v1::WorkerState& worker) {
  const v1::Phase now = worker.load().phase();
  return now == v1::PHASE_UNSPECIFIED ? worker.info().phase() : now;
}

bool Prefills(v1::Phase phase, const v1::WorkerInfo& info) {
  return phase == v1::PHASE_PREFILL || phase == v1::PHASE_MIXED ||
         (phase == v1::PHASE_DECODE && info.prefills_too());
}

bool Decodes(v1::Phase phase) { return phase == v1::PHASE_DECODE || phase == v1::PHASE_MIXED; }

/// "PHASE_PREFILL" as people write it.
std::string PhaseWord(v1::Phase phase) {
  return absl::AsciiStrToLower(absl::StripPrefix(v1::Phase_Name(phase), "PHASE_"));
}

/// FAILED_PRECONDITION when with `changed` in its new phase nobody would do what it does now.
absl::Status CheckSomebodyIsLeft(const std::vector<v1::WorkerState>& workers,
                                 const v1::WorkerState& changed, v1::Phase phase) {
  bool prefills = false, decodes = false;
  for (const v1::WorkerState& worker : workers) {
    const v1::Phase its = &worker == &changed ? phase : PhaseOf(worker);
    if (worker.load().draining()) continue;
    prefills |= Prefills(its, worker.info());
    decodes |= Decodes(its);
  }
  if (prefills && decodes) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("worker: '", changed.info().name(), "' is the last one that ",
                   prefills ? "decodes" : "prefills", "; give another that phase first, or force"));
}

}  // namespace

/// One worker's registration: lives as long as its stream. Reads follow each other; so do writes,
/// of which there may be some at any time.
class ClusterServiceImpl::RegisterCall final
    : public grpc::ServerBidiReactor<v1::WorkerReport, v1::RegisterResponse> {
 public:
  RegisterCall(ClusterServiceImpl* service, grpc::CallbackServerContext* context)
      : service_(service), context_(context) {
    std::lock_guard lock(service_->mutex_);
    service_->open_.insert(context_);
  }
  void Begin() { StartRead(&report_); }

  /// Tells the worker something. From any thread, while it is in `registered_`.
  void Tell(const v1::RegisterResponse& response) {
    {
      std::lock_guard lock(write_mutex_);
      responses_.push_back(response);
      if (writing_ || ending_) return;
      writing_ = true;
    }
    StartWrite(&responses_.front());
  }
  const v1::WorkerInfo& info() const { return info_; }

  /// Of the peers that it was told last: registrations_, and when. Guarded by the service's mutex.
  uint64_t peers_of_registration = 0;
  absl::Time peers_told = absl::InfinitePast();

 private:
  void OnReadDone(bool ok) override {
    if (!ok) return End(grpc::Status::OK);
    if (report_.has_info() == registered()) {
      return End(grpc::Status(grpc::StatusCode::INVALID_ARGUMENT,
                              "the first report, and no other, must carry info"));
    }
    if (!registered()) return Join();
    if (report_.has_chunks()) return Follow(report_.chunks());
    service_->core_->view().Report(info_.worker_id(), report_.load(), absl::Now());
    if (service_->core_->queue().queued() > 0) service_->core_->Wake();  // it may have room now
    if (auto peers = service_->NewPeers(*this, absl::Now()); peers) {
      v1::RegisterResponse response;
      *response.mutable_peers() = *std::move(peers);
      Tell(response);
    }
    StartRead(&report_);
  }
  void OnWriteDone(bool ok) override {
    {
      std::lock_guard lock(write_mutex_);
      responses_.pop_front();
      // A stream that cannot be written ends by its read.
      if (!ok) responses_.clear();
      writing_ = !responses_.empty();
      if (!writing_ && !ending_) return;
      if (!writing_) return Finish(end_);
    }
    StartWrite(&responses_.front());
  }
  /// Ends the stream once nothing is being written.
  void End(const grpc::Status& status) {
    std::lock_guard lock(write_mutex_);
    ending_ = true;
    end_ = status;
    if (!writing_) Finish(end_);
  }
  void OnDone() override {
    if (registered()) {
      {
        std::lock_guard lock(service_->mutex_);
        const auto found = service_->registered_.find(info_.worker_id());
        if (found != service_->registered_.end() && found->second == this) {
          service_->registered_.erase(found);
          ++service_->registrations_;
        }
      }
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
      return End(ToGrpc(status));
    }
    info_ = report_.info();
    registration_ = service_->core_->AddWorker(info_);
    spdlog::info("worker joined worker_id={} phase={} grpc={} data={}", info_.worker_id(),
                 v1::Phase_Name(info_.phase()), info_.grpc_address(), info_.data_address());
    v1::RegisterResponse response;
    response.set_router_id(service_->router_id_);
    Tell(response);
    {
      std::lock_guard lock(service_->mutex_);
      service_->registered_[info_.worker_id()] = this;
      ++service_->registrations_;
    }
    StartRead(&report_);
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
    v1::RegisterResponse response;
    response.set_resend_chunks(true);
    Tell(response);
    StartRead(&report_);
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
    const bool has_phase = Decodes(info.phase()) || Prefills(info.phase(), info);
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
  v1::WorkerInfo info_;
  uint64_t registration_ = 0;
  bool snapshot_asked_ = false;
  std::mutex write_mutex_;
  // Guarded by write_mutex_.
  std::deque<v1::RegisterResponse> responses_;  // the first one is being written
  bool writing_ = false, ending_ = false;
  grpc::Status end_;
};

std::optional<v1::Peers> ClusterServiceImpl::NewPeers(RegisterCall& call, absl::Time now) {
  if (call.info().phase() == v1::PHASE_STORE) return std::nullopt;
  std::lock_guard lock(mutex_);
  // Many that come at once are told together, or each of n workers would be told n times.
  if (call.peers_of_registration == registrations_ || now - call.peers_told < kPeersPause) {
    return std::nullopt;
  }
  call.peers_of_registration = registrations_;
  call.peers_told = now;
  v1::Peers peers;
  for (const auto& [id, other] : registered_) {
    if (other == &call || other->info().phase() == v1::PHASE_STORE) continue;
    v1::Peer& peer = *peers.add_peers();
    peer.set_name(other->info().name());
    peer.set_data_address(other->info().data_address());
  }
  return peers;
}

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
  return Reply(context, absl::OkStatus());
}

grpc::ServerUnaryReactor* ClusterServiceImpl::AssignPhase(grpc::CallbackServerContext* context,
                                                          const v1::AssignPhaseRequest* request,
                                                          v1::AssignPhaseResponse*) {
  const absl::Status status = Assign(*request, /*by_planner=*/false);
  spdlog::info("phase assigned worker={} phase={} force={} status=\"{}\"", request->worker(),
               PhaseWord(request->phase()), request->force(), status.ToString());
  return Reply(context, status);
}

absl::Status ClusterServiceImpl::Assign(const v1::AssignPhaseRequest& request, bool by_planner) {
  const v1::Phase phase = request.phase();
  const bool leaves = phase == v1::PHASE_AUTO;  // to the planner: nothing changes now
  if (phase != v1::PHASE_PREFILL && phase != v1::PHASE_DECODE && phase != v1::PHASE_MIXED &&
      !leaves) {
    return absl::InvalidArgumentError(
        "phase: not one that a worker can have; allowed are prefill, decode, mixed and auto");
  }
  const std::vector<v1::WorkerState> workers = core_->view().List(absl::Now());
  const v1::WorkerState* found = nullptr;
  for (const v1::WorkerState& worker : workers) {
    if (worker.info().worker_id() != request.worker() && worker.info().name() != request.worker()) {
      continue;
    }
    if (found != nullptr) {
      return absl::InvalidArgumentError(absl::StrCat("worker: several have the name '",
                                                     request.worker(), "'; give its id instead"));
    }
    found = &worker;
  }
  if (found == nullptr || found->info().phase() == v1::PHASE_STORE) {
    return absl::NotFoundError(absl::StrCat("worker: no worker '", request.worker(),
                                            "' is registered here; `tandem status` lists them"));
  }
  if (found->info().phase_pinned() && PhaseOf(*found) != phase) {
    return absl::FailedPreconditionError(
        absl::StrCat("worker: '", request.worker(), "' keeps its phase, ",
                     PhaseWord(PhaseOf(*found)), " (its phase_pinned is set)"));
  }
  if (!request.force() && !leaves) {
    RETURN_IF_ERROR(CheckSomebodyIsLeft(workers, *found, phase));
  }
  v1::RegisterResponse response;
  response.set_assign_phase(phase);
  response.set_by_planner(by_planner);
  std::lock_guard lock(mutex_);
  const auto call = registered_.find(found->info().worker_id());
  if (call == registered_.end()) {
    return absl::NotFoundError(absl::StrCat("worker: '", request.worker(), "' has just left"));
  }
  call->second->Tell(response);
  return absl::OkStatus();
}

grpc::ServerUnaryReactor* ClusterServiceImpl::Explain(grpc::CallbackServerContext* context,
                                                      const v1::ExplainRequest* request,
                                                      v1::ExplainResponse* response) {
  auto found = core_->decisions().Find(request->request_id(), absl::Now());
  if (!found.ok()) return Reply(context, found.status());
  *response = *std::move(found);
  return Reply(context, absl::OkStatus());
}

grpc::ServerUnaryReactor* ClusterServiceImpl::GetWorkload(grpc::CallbackServerContext* context,
                                                          const v1::GetWorkloadRequest*,
                                                          v1::GetWorkloadResponse* response) {
  for (const planner::WorkloadRequest& request : core_->workload().Finished(absl::Now())) {
    response->add_arrival_s(request.arrival_s);
    response->add_prompt_tokens(request.prompt_tokens);
    response->add_output_tokens(request.output_tokens);
    response->add_cached_tokens(request.cached_tokens);
  }
  return Reply(context, absl::OkStatus());
}

grpc::ServerUnaryReactor* ClusterServiceImpl::GetPlan(grpc::CallbackServerContext* context,
                                                      const v1::GetPlanRequest*,
                                                      v1::GetPlanResponse* response) {
  planner_->Tell(*response, absl::Now());
  return Reply(context, absl::OkStatus());
}

void ClusterServiceImpl::CancelAll() {
  std::lock_guard lock(mutex_);
  for (grpc::CallbackServerContext* context : open_) context->TryCancel();
}

}  // namespace tandem::server
