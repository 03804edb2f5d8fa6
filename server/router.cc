#include "server/router.h"

#include <grpcpp/health_check_service_interface.h>

#include <algorithm>
#include <utility>

#include "base/log.h"
#include "base/status.h"
#include "server/cluster_service.h"
#include "server/inference_service.h"

namespace tandem::server {
namespace {

constexpr std::chrono::milliseconds kWatchInterval{100};
constexpr absl::Duration kShutdownGrace = absl::Seconds(2);

}  // namespace

RouterCore::RouterCore(RouterOptions options, std::shared_ptr<const workers::Model> model,
                       std::shared_ptr<prometheus::Registry> registry)
    : options_(std::move(options)),
      model_(std::move(model)),
      view_({.worker_timeout = options_.worker_timeout,
             .dispatch = {.ttft_objective_s = absl::ToDoubleSeconds(options_.ttft_objective)}},
            &directory_),
      metrics_(std::move(registry), model_->name(), options_.tenants) {}

absl::Status RouterCore::Admit() {
  if (draining_) {
    metrics_.Rejected("draining");
    return absl::UnavailableError("this router is shutting down; send the request to another");
  }
  {
    std::lock_guard lock(mutex_);
    if (in_flight_ < options_.max_requests) {
      metrics_.InFlight(++in_flight_, options_.max_requests);
      return absl::OkStatus();
    }
  }
  metrics_.Rejected("queue_full");
  return absl::ResourceExhaustedError(
      absl::StrCat("the router has ", options_.max_requests,
                   " requests in flight, as many as max_requests allows; try again later"));
}

void RouterCore::Leave() {
  std::lock_guard lock(mutex_);
  metrics_.InFlight(--in_flight_, options_.max_requests);
}

void RouterCore::CallBegins() {
  std::lock_guard lock(mutex_);
  ++live_calls_;
}

void RouterCore::CallGone() {
  std::lock_guard lock(mutex_);
  if (--live_calls_ == 0) no_calls_.notify_all();
}

void RouterCore::WaitCallsGone() {
  std::unique_lock lock(mutex_);
  no_calls_.wait(lock, [this] { return live_calls_ == 0; });
}

RequestLimits RouterCore::Limits() const {
  uint32_t context_tokens = 0;
  {
    std::lock_guard lock(mutex_);
    for (const auto& [id, connection] : connections_) {
      const uint32_t own = connection.context_tokens;
      if (own != 0 && (context_tokens == 0 || own < context_tokens)) context_tokens = own;
    }
  }
  if (context_tokens == 0) context_tokens = model_->training_context_tokens();
  return {.tenants = options_.tenants,
          .max_prompt_bytes = options_.max_prompt_bytes,
          .context_tokens = context_tokens};
}

std::shared_ptr<v1::WorkerService::Stub> RouterCore::WorkerStub(const std::string& worker_id) {
  std::lock_guard lock(mutex_);
  auto found = connections_.find(worker_id);
  return found == connections_.end() ? nullptr : found->second.stub;
}

uint64_t RouterCore::AddWorker(const v1::WorkerInfo& info) {
  std::lock_guard membership(membership_mutex_);
  Connection connection{.context_tokens = info.context_tokens()};
  if (info.phase() != v1::PHASE_STORE) {
    auto channel = MakeChannel(info.grpc_address());
    channel->GetState(/*try_to_connect=*/true);  // the first request must not wait for it
    connection.stub = v1::WorkerService::NewStub(std::move(channel));
  }
  // Whoever chooses the worker must find its connection.
  std::lock_guard lock(mutex_);
  connection.registration = view_.Add(info, absl::Now());
  const uint64_t registration = connection.registration;
  connections_[info.worker_id()] = std::move(connection);
  return registration;
}

void RouterCore::RemoveWorker(const std::string& worker_id, uint64_t registration) {
  std::lock_guard membership(membership_mutex_);
  view_.Remove(worker_id, registration);
  {
    std::lock_guard lock(mutex_);
    auto found = connections_.find(worker_id);
    if (found == connections_.end() || found->second.registration != registration) return;
    connections_.erase(found);
  }
  directory_.Forget(worker_id);
}

bool RouterCore::ApplyChunks(const std::string& worker_id, uint64_t registration,
                             const v1::ChunkEvents& events) {
  {
    std::lock_guard lock(mutex_);
    auto found = connections_.find(worker_id);
    if (found == connections_.end() || found->second.registration != registration) return true;
  }
  return directory_.Apply(worker_id, events);
}

Router::Router(RouterOptions options, std::shared_ptr<const workers::Model> model,
               std::shared_ptr<prometheus::Registry> registry)
    : core_(std::move(options), std::move(model), std::move(registry)),
      inference_(std::make_unique<InferenceServiceImpl>(&core_)),
      cluster_(std::make_unique<ClusterServiceImpl>(&core_)) {}

absl::StatusOr<std::unique_ptr<Router>> Router::Start(
    RouterOptions options, std::shared_ptr<const workers::Model> model,
    std::shared_ptr<prometheus::Registry> registry) {
  std::unique_ptr<Router> router(
      new Router(std::move(options), std::move(model), std::move(registry)));
  const RouterOptions& made = router->core_.options();
  ASSIGN_OR_RETURN(
      router->grpc_,
      StartGrpcServer({.listen = made.listen,
                       .max_receive_bytes = made.max_message_bytes,
                       .services = {router->inference_.get(), router->cluster_.get()}}));
  router->SetHealth(false);
  router->core_.metrics().InFlight(0, made.max_requests);
  router->watcher_ = std::thread([target = router.get()] { target->Watch(); });
  spdlog::info("router ready listen={} port={}", made.listen, router->grpc_.port);
  return router;
}

Router::~Router() { Stop(); }

bool Router::ready() const { return core_.view().Ready(absl::Now()); }

void Router::SetHealth(bool serving) {
  auto* health = grpc_.server->GetHealthCheckService();
  health->SetServingStatus("tandem.v1.InferenceService", serving);
  health->SetServingStatus(serving);
}

void Router::Watch() {
  bool serving = false;
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    const absl::Time now = absl::Now();
    core_.metrics().Workers("prefill", core_.view().Usable(v1::PHASE_PREFILL, now));
    core_.metrics().Workers("decode", core_.view().Usable(v1::PHASE_DECODE, now));
    core_.metrics().Workers("store", core_.view().Usable(v1::PHASE_STORE, now));
    core_.metrics().DirectoryChunks(core_.directory().size());
    const bool should_serve = !draining_ && core_.view().Ready(now);
    if (should_serve != serving) {
      serving = should_serve;
      SetHealth(serving);
      spdlog::info("router health={}", serving ? "SERVING" : "NOT_SERVING");
    }
    wake_.wait_for(lock, kWatchInterval);
  }
}

void Router::Drain() {
  core_.Drain();
  std::lock_guard lock(mutex_);
  draining_ = true;
  wake_.notify_all();
}

void Router::Stop() {
  {
    std::lock_guard lock(mutex_);
    if (stopping_) return;
    stopping_ = true;
    wake_.notify_all();
  }
  if (watcher_.joinable()) watcher_.join();
  if (grpc_.server == nullptr) return;
  cluster_->CancelAll();  // registrations never end by themselves
  grpc_.server->Shutdown(absl::ToChronoTime(absl::Now() + kShutdownGrace));
  grpc_.server->Wait();
  core_.WaitCallsGone();  // they live on until their workers' streams have ended
}

}  // namespace tandem::server
