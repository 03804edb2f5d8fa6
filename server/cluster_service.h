// The router's cluster service: workers register and report, operators look.
#pragma once

#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/router.h"
#include "tandem/v1/cluster.grpc.pb.h"

namespace tandem::server {

/// Thread-safe.
class ClusterServiceImpl final : public v1::ClusterService::CallbackService {
 public:
  explicit ClusterServiceImpl(RouterCore* core);

  grpc::ServerBidiReactor<v1::WorkerReport, v1::RegisterResponse>* Register(
      grpc::CallbackServerContext* context) override;
  grpc::ServerUnaryReactor* ListWorkers(grpc::CallbackServerContext* context,
                                        const v1::ListWorkersRequest* request,
                                        v1::ListWorkersResponse* response) override;
  grpc::ServerUnaryReactor* AssignPhase(grpc::CallbackServerContext* context,
                                        const v1::AssignPhaseRequest* request,
                                        v1::AssignPhaseResponse* response) override;
  grpc::ServerUnaryReactor* Explain(grpc::CallbackServerContext* context,
                                    const v1::ExplainRequest* request,
                                    v1::ExplainResponse* response) override;

  grpc::ServerUnaryReactor* GetWorkload(grpc::CallbackServerContext* context,
                                        const v1::GetWorkloadRequest* request,
                                        v1::GetWorkloadResponse* response) override;
  grpc::ServerUnaryReactor* GetPlan(grpc::CallbackServerContext* context,
                                    const v1::GetPlanRequest* request,
                                    v1::GetPlanResponse* response) override;

  /// What GetPlan tells of. Call before the service is served; must outlive it.
  void SetPlanner(PlannerLoop* planner) { planner_ = planner; }
  const std::string& router_id() const { return router_id_; }
  /// As the call AssignPhase, for an operator or for the planner.
  absl::Status Assign(const v1::AssignPhaseRequest& request, bool by_planner);
  /// Ends every registration; the workers come back to whoever listens next.
  void CancelAll();

 private:
  class RegisterCall;
  // The other workers, for `call`, unless it was told already that they are these.
  std::optional<v1::Peers> NewPeers(RegisterCall& call, absl::Time now);
  RouterCore* const core_;
  const std::string router_id_;
  PlannerLoop* planner_ = nullptr;
  std::mutex mutex_;
  // Guarded by mutex_.
  std::set<grpc::CallbackServerContext*> open_;
  std::map<std::string, RegisterCall*> registered_;  // by worker id
  uint64_t registrations_ = 0;                       // counts changes of registered_
};

}  // namespace tandem::server
