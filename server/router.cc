#include "server/router.h"

#include <grpcpp/health_check_service_interface.h>

#include <algorithm>
#include <utility>

#include "base/log.h"
#include "base/status.h"
#include "server/cluster_service.h"
#include "server/inference_service.h"
#include "server/planner_loop.h"

namespace tandem::server {
namespace {

/// How often at least health is looked at, and workers that fell silent; and the gauges.
constexpr absl::Duration kWatchInterval = absl::Milliseconds(100);
constexpr absl::Duration kShowInterval = absl::Milliseconds(100);
constexpr absl::Duration kShutdownGrace = absl::Seconds(2);
/// Calls that are looked at, for each that may be in flight.
constexpr size_t kCallsPerRequest = 4;
/// Whose decisions are remembered.
constexpr size_t kExplainedRequests = 2048;

/// An objective for the dispatch; "as fast as can be" is a very short one.
double TermSeconds(absl::Duration objective) {
  return std::max(1e-3, absl::ToDoubleSeconds(objective));
}

}  // namespace

RouterCore::RouterCore(RouterOptions options, std::shared_ptr<const workers::Model> model,
                       std::shared_ptr<prometheus::Registry> registry)
    : options_(std::move(options)),
      model_(std::move(model)),
      view_({.worker_timeout = options_.worker_timeout,
             .stall_timeout = options_.stall_timeout,
             .dispatch = {.ttft_objective_s = TermSeconds(options_.ttft_objective),
                          .tpot_objective_s = TermSeconds(options_.tpot_objective)}},
            &directory_),
      metrics_(std::move(registry), model_->name(), options_.tenants),
      decisions_(kExplainedRequests),
      queue_({.max_requests = options_.max_requests,
              .dispatch_ahead_steps = static_cast<double>(options_.dispatch_ahead),
              .max_ttft_s = absl::ToDoubleSeconds(options_.max_ttft),
              .tpot_objective_s = TermSeconds(options_.tpot_objective),
              .patience = options_.resume_timeout,
              .min_retry_s = absl::ToDoubleSeconds(options_.retry_after),
              .tenants = options_.tenant_limits},
             &view_, [this] { Wake(); }),
      retries_({.share = options_.resume_budget / 100.0}) {}

Entry RouterCore::Admit() {
  if (draining_) {
    return {.status =
                absl::UnavailableError("this router is shutting down; send the request to another"),
            .reason = "draining",
            .retry_after = options_.retry_after};
  }
  {
    std::lock_guard lock(mutex_);
    // Among those that come the queue chooses; but not among any number.
    if (calls_.size() <= kCallsPerRequest * size_t{options_.max_requests}) return {};
  }
  return {.status = QueueFull(),
          .reason = "queue_full",
          .retry_after = absl::Seconds(queue_.RetryAfter())};
}

absl::Status RouterCore::QueueFull() const {
  return absl::ResourceExhaustedError(
      absl::StrCat("the router has ", options_.max_requests,
                   " requests in flight, as many as max_requests allows; try again later"));
}

void RouterCore::Enter() {
  std::lock_guard lock(mutex_);
  retries_.Earn();
  metrics_.InFlight(++in_flight_, options_.max_requests);
}

void RouterCore::Leave(scheduler::Ticket ticket) {
  queue_.Leave(ticket);
  std::lock_guard lock(mutex_);
  metrics_.InFlight(--in_flight_, options_.max_requests);
}

bool RouterCore::SpendRetry() {
  std::lock_guard lock(mutex_);
  return retries_.Spend(absl::ToDoubleSeconds(absl::Now() - absl::UnixEpoch()));
}

void RouterCore::CallBegins(const void* call, std::weak_ptr<PatientRequest> request) {
  std::lock_guard lock(mutex_);
  calls_.emplace(call, std::move(request));
}

void RouterCore::CallGone(const void* call) {
  std::lock_guard lock(mutex_);
  calls_.erase(call);
  if (calls_.empty()) no_calls_.notify_all();
}

void RouterCore::EndCalls() {
  ending_ = true;
  draining_ = true;
  std::vector<std::weak_ptr<PatientRequest>> calls;
  {
    std::lock_guard lock(mutex_);
    for (const auto& [call, request] : calls_) calls.push_back(request);
  }
  for (const auto& each : calls) {
    if (const auto request = each.lock()) request->OnRouterStops();
  }
}

void RouterCore::WaitCallsGone() {
  {
    std::unique_lock lock(mutex_);
    no_calls_.wait(lock, [this] { return calls_.empty(); });
  }
  steps_.Stop();
}

void RouterCore::Wait(std::weak_ptr<PatientRequest> request) {
  std::lock_guard lock(mutex_);
  patient_.push_back(std::move(request));
}

void RouterCore::Tick() {
  const absl::Time now = absl::Now();
  for (const scheduler::LostWorker& lost : view_.Lost(now)) {
    spdlog::warn("worker lost worker_id={} name={} reason=\"{}\"", lost.worker_id, lost.name,
                 lost.reason);
    LoseWorker(lost.worker_id, absl::StrCat("it ", lost.reason));
  }
  std::vector<std::weak_ptr<PatientRequest>> patient;
  {
    std::lock_guard lock(mutex_);
    patient.swap(patient_);
  }
  for (const auto& each : patient) {
    if (const auto request = each.lock()) request->OnTick(now);
  }
  queue_.Pump();
}

void RouterCore::WaitForTick(absl::Duration longest) {
  std::unique_lock lock(tick_mutex_);
  tick_.wait_for(lock, absl::ToChronoNanoseconds(longest), [this] { return tick_wanted_; });
  tick_wanted_ = false;
}

void RouterCore::Wake() {
  std::lock_guard lock(tick_mutex_);
  if (std::exchange(tick_wanted_, true)) return;
  tick_.notify_one();
}

void RouterCore::LoseWorker(const std::string& worker_id, const std::string& reason) {
  // A router that stops ends its registrations itself.
  if (!ending_) streams_.Lose(worker_id, reason);
  steps_.Lose(worker_id);
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
  Wake();
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
  LoseWorker(worker_id, "its registration has ended");
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
      cluster_(std::make_unique<ClusterServiceImpl>(&core_)),
      planner_(std::make_unique<PlannerLoop>(&core_, cluster_.get())) {
  cluster_->SetPlanner(planner_.get());
}

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
  router->planner_->Start();
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
  absl::Time shown = absl::InfinitePast();
  while (!stopping_) {
    core_.Tick();
    const absl::Time now = absl::Now();
    if (now - shown >= kShowInterval || now < shown) {
      shown = now;
      Show(now);
    }
    const bool should_serve = !draining_ && core_.view().Ready(now);
    if (should_serve != serving) {
      serving = should_serve;
      SetHealth(serving);
      spdlog::info("router health={}", serving ? "SERVING" : "NOT_SERVING");
    }
    core_.WaitForTick(kWatchInterval);
  }
}

void Router::Show(absl::Time now) {
  constexpr std::pair<const char*, v1::Phase> kPhases[] = {{"prefill", v1::PHASE_PREFILL},
                                                           {"decode", v1::PHASE_DECODE},
                                                           {"mixed", v1::PHASE_MIXED},
                                                           {"store", v1::PHASE_STORE}};
  for (const auto& [word, phase] : kPhases) {
    core_.metrics().Workers(word, core_.view().Usable(phase, now));
  }
  core_.metrics().Queued(core_.queue().queued());
  core_.metrics().DirectoryChunks(core_.directory().size());
}

void Router::Drain() {
  core_.Drain();
  draining_ = true;
  core_.Wake();
}

void Router::Stop() {
  if (stopping_.exchange(true)) return;
  core_.Wake();
  planner_->Stop();
  if (watcher_.joinable()) watcher_.join();
  if (grpc_.server == nullptr) return;
  core_.EndCalls();
  cluster_->CancelAll();  // registrations never end by themselves
  grpc_.server->Shutdown(absl::ToChronoTime(absl::Now() + kShutdownGrace));
  grpc_.server->Wait();
  core_.WaitCallsGone();  // they live on until their workers' streams have ended
}

}  // namespace tandem::server
