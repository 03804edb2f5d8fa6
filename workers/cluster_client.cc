#include "workers/cluster_client.h"

#include <algorithm>
#include <utility>

#include "base/grpc_server.h"
#include "base/log.h"
#include "base/status.h"

namespace tandem::workers {
namespace {

constexpr absl::Duration kFirstPause = absl::Milliseconds(100);
constexpr absl::Duration kLongestPause = absl::Seconds(2);

}  // namespace

struct ClusterClient::Router {
  std::string address;
  std::unique_ptr<v1::ClusterService::Stub> stub;
  grpc::ClientContext* context = nullptr;  // of the open stream; guarded by mutex_
  bool registered = false;                 // this router's thread only, as the rest
  absl::Duration pause = kFirstPause;
  std::string last_error;
  std::thread thread;
};

ClusterClient::ClusterClient(const std::vector<std::string>& routers, v1::WorkerInfo info,
                             std::function<v1::WorkerLoad()> load, absl::Duration interval)
    : info_(std::move(info)), load_(std::move(load)), interval_(interval) {
  for (const std::string& address : routers) {
    auto router = std::make_unique<Router>();
    router->address = address;
    router->stub = v1::ClusterService::NewStub(MakeChannel(address));
    routers_.push_back(std::move(router));
  }
  for (auto& router : routers_) {
    router->thread = std::thread([this, target = router.get()] { Run(*target); });
  }
}

ClusterClient::~ClusterClient() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    for (auto& router : routers_) {
      if (router->context != nullptr) router->context->TryCancel();
    }
    wake_.notify_all();
  }
  for (auto& router : routers_) router->thread.join();
}

void ClusterClient::ReportNow() {
  std::lock_guard lock(mutex_);
  ++reports_wanted_;
  wake_.notify_all();
}

bool ClusterClient::Pause(std::unique_lock<std::mutex>& lock, absl::Duration duration,
                          uint64_t* reports_seen) {
  wake_.wait_for(lock, absl::ToChronoNanoseconds(duration), [&] {
    return stopping_ || (reports_seen != nullptr && *reports_seen != reports_wanted_);
  });
  if (reports_seen != nullptr) *reports_seen = reports_wanted_;
  return !stopping_;
}

void ClusterClient::Run(Router& router) {
  while (true) {
    Report(router);
    std::unique_lock lock(mutex_);
    if (!Pause(lock, router.pause, nullptr)) return;
    router.pause = std::min(router.pause * 2, kLongestPause);
  }
}

void ClusterClient::Report(Router& router) {
  grpc::ClientContext context;
  {
    std::lock_guard lock(mutex_);
    if (stopping_) return;
    router.context = &context;
  }
  auto stream = router.stub->Register(&context);
  v1::WorkerReport report;
  *report.mutable_info() = info_;
  v1::RegisterResponse accepted;
  bool open = stream->Write(report) && stream->Read(&accepted);
  if (open) {
    spdlog::info("registered router={} router_id={}", router.address, accepted.router_id());
    router.pause = kFirstPause;
    router.registered = true;
    router.last_error.clear();
  }
  uint64_t reports_seen = 0;
  while (open) {
    *report.mutable_load() = load_();
    open = stream->Write(report);
    std::unique_lock lock(mutex_);
    if (open && !Pause(lock, interval_, &reports_seen)) break;
  }
  if (open) context.TryCancel();  // stopping; otherwise the router's own status counts
  const grpc::Status status = stream->Finish();
  std::lock_guard lock(mutex_);
  router.context = nullptr;
  // One line for each change: a router that stays away must not fill the log.
  if (!stopping_ && router.last_error != status.error_message()) {
    spdlog::warn("{} router={} error=\"{}\"; trying again",
                 router.registered ? "router lost" : "registration failed", router.address,
                 status.error_message());
    router.last_error = status.error_message();
    router.registered = false;
  }
}

}  // namespace tandem::workers
