#include "workers/cluster_client.h"

#include <algorithm>
#include <bit>
#include <map>
#include <utility>

#include "base/grpc_server.h"
#include "base/log.h"
#include "base/status.h"

namespace tandem::workers {
namespace {

constexpr absl::Duration kFirstPause = absl::Milliseconds(100);
constexpr absl::Duration kLongestPause = absl::Seconds(2);
/// Entries of one message: less than a megabyte.
constexpr size_t kMaxEntries = 1 << 16;

v1::WorkerReport ToReport(const kvstore::ChunkJournal::Batch& batch) {
  static_assert(std::endian::native == std::endian::little, "a hash is the id's first bytes");
  v1::WorkerReport report;
  v1::ChunkEvents& events = *report.mutable_chunks();
  events.set_snapshot(batch.snapshot);
  events.set_first_sequence(batch.first_sequence);
  std::string& entries = *events.mutable_entries();
  entries.reserve(batch.entries.size() * (sizeof(uint64_t) + 1));
  for (const auto& [id_hash, levels] : batch.entries) {
    entries.append(reinterpret_cast<const char*>(&id_hash), sizeof id_hash);
    entries.push_back(static_cast<char>(levels));
  }
  return report;
}

}  // namespace

struct ClusterClient::Router {
  std::string address;
  std::unique_ptr<v1::ClusterService::Stub> stub;
  // Of the open stream; guarded by mutex_.
  grpc::ClientContext* context = nullptr;
  std::string router_id;  // empty: not registered
  bool ended = false;
  bool resend_chunks = false;
  v1::Peers peers;  // as told last, also by a stream that has broken; guarded by mutex_
  // For this router's thread only.
  bool registered = false;
  absl::Duration pause = kFirstPause;
  std::string last_error;
  std::thread thread;
};

ClusterClient::ClusterClient(const std::vector<std::string>& routers, v1::WorkerInfo info,
                             std::function<v1::WorkerLoad()> load, absl::Duration interval,
                             std::shared_ptr<const kvstore::ChunkJournal> journal,
                             std::function<void(v1::Phase, bool)> assign_phase,
                             std::function<void(const v1::Peers&)> set_peers)
    : info_(std::move(info)),
      load_(std::move(load)),
      interval_(interval),
      journal_(std::move(journal)),
      assign_phase_(std::move(assign_phase)),
      set_peers_(std::move(set_peers)) {
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

void ClusterClient::Run(Router& router) {
  while (true) {
    Register(router);
    std::unique_lock lock(mutex_);
    wake_.wait_for(lock, absl::ToChronoNanoseconds(router.pause), [this] { return stopping_; });
    if (stopping_) return;
    router.pause = std::min(router.pause * 2, kLongestPause);
  }
}

void ClusterClient::Register(Router& router) {
  grpc::ClientContext context;
  {
    std::lock_guard lock(mutex_);
    if (stopping_) return;
    router.context = &context;
    router.ended = router.resend_chunks = false;
  }
  auto stream = router.stub->Register(&context);
  v1::WorkerReport report;
  *report.mutable_info() = info_;
  // It may have changed since the last registration.
  if (const v1::Phase now = load_().phase(); now != v1::PHASE_UNSPECIFIED) {
    report.mutable_info()->set_phase(now);
  }
  v1::RegisterResponse accepted;
  if (stream->Write(report) && stream->Read(&accepted)) {
    spdlog::info("registered router={} router_id={}", router.address, accepted.router_id());
    router.pause = kFirstPause;
    router.registered = true;
    router.last_error.clear();
    {
      std::lock_guard lock(mutex_);
      router.router_id = accepted.router_id();
    }
    std::thread listener([&] { Listen(router, *stream); });
    // Otherwise the router's own status counts.
    if (!Report(router, *stream)) context.TryCancel();
    listener.join();
  }
  Lost(router, stream->Finish());
}

bool ClusterClient::Report(Router& router, Stream& stream) {
  kvstore::ChunkJournal::Cursor cursor;
  uint64_t reports_seen = 0;
  while (true) {
    if (!stream.Write(LoadReport()) || !ReportChunks(router, stream, cursor)) return true;
    std::unique_lock lock(mutex_);
    wake_.wait_for(lock, absl::ToChronoNanoseconds(interval_),
                   [&] { return stopping_ || router.ended || reports_seen != reports_wanted_; });
    if (stopping_) return false;
    if (router.ended) return true;
    reports_seen = reports_wanted_;
  }
}

v1::WorkerReport ClusterClient::LoadReport() {
  v1::WorkerReport report;
  *report.mutable_load() = load_();
  std::lock_guard lock(mutex_);
  for (const auto& router : routers_) {
    if (!router->router_id.empty()) report.mutable_load()->add_routers(router->router_id);
  }
  return report;
}

bool ClusterClient::ReportChunks(Router& router, Stream& stream,
                                 kvstore::ChunkJournal::Cursor& cursor) {
  if (journal_ == nullptr) return true;
  {
    std::lock_guard lock(mutex_);
    if (std::exchange(router.resend_chunks, false)) cursor = {};
  }
  while (true) {
    const kvstore::ChunkJournal::Batch batch = journal_->Read(cursor, kMaxEntries);
    if (batch.entries.empty() && !batch.snapshot) return true;
    if (!stream.Write(ToReport(batch))) return false;
    // What comes meanwhile goes with the next report: a busy store must not delay that.
    if (batch.entries.size() < kMaxEntries) return true;
  }
}

void ClusterClient::Listen(Router& router, Stream& stream) {
  v1::RegisterResponse response;
  while (stream.Read(&response)) {
    if (response.assign_phase() != v1::PHASE_UNSPECIFIED && assign_phase_) {
      assign_phase_(response.assign_phase(), response.by_planner());
    }
    if (response.has_peers()) TakePeers(router, response.peers());
    if (!response.resend_chunks()) continue;
    spdlog::warn("router missed chunk events; it gets them all again router={}", router.address);
    std::lock_guard lock(mutex_);
    router.resend_chunks = true;
  }
  std::lock_guard lock(mutex_);
  router.ended = true;
  wake_.notify_all();
}

void ClusterClient::TakePeers(Router& router, const v1::Peers& peers) {
  if (!set_peers_) return;
  std::lock_guard lock(mutex_);
  router.peers = peers;
  std::map<std::string, std::string> names;
  for (const auto& each : routers_) {
    for (const v1::Peer& peer : each->peers.peers()) names[peer.data_address()] = peer.name();
  }
  v1::Peers all;
  for (const auto& [address, name] : names) {
    v1::Peer& peer = *all.add_peers();
    peer.set_data_address(address);
    peer.set_name(name);
  }
  set_peers_(all);
}

void ClusterClient::Lost(Router& router, const grpc::Status& status) {
  std::lock_guard lock(mutex_);
  router.context = nullptr;
  router.router_id.clear();
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
