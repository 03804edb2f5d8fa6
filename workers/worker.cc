#include "workers/worker.h"

#include <grpcpp/health_check_service_interface.h>
#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status.h"
#include "base/version.h"
#include "workers/node_id.h"

namespace tandem::workers {
namespace {

constexpr absl::Duration kShutdownGrace = absl::Seconds(2);

/// Pins the calling thread, and every thread that it starts meanwhile, to some CPUs.
class ScopedAffinity {
 public:
  explicit ScopedAffinity(const std::vector<int32_t>& cpus) : active_(!cpus.empty()) {
    if (!active_) return;
    pthread_getaffinity_np(pthread_self(), sizeof before_, &before_);
    cpu_set_t wanted;
    CPU_ZERO(&wanted);
    for (const int32_t cpu : cpus) CPU_SET(cpu, &wanted);
    if (pthread_setaffinity_np(pthread_self(), sizeof wanted, &wanted) != 0) {
      spdlog::warn("cpus: this machine does not allow pinning to the given CPUs; running unpinned");
    }
  }
  ~ScopedAffinity() {
    if (active_) pthread_setaffinity_np(pthread_self(), sizeof before_, &before_);
  }
  ScopedAffinity(const ScopedAffinity&) = delete;
  ScopedAffinity& operator=(const ScopedAffinity&) = delete;

 private:
  const bool active_;
  cpu_set_t before_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Worker>> Worker::Start(
    WorkerOptions options, std::shared_ptr<const Model> model,
    std::shared_ptr<prometheus::Registry> metrics) {
  std::unique_ptr<Worker> worker(new Worker(std::move(options)));
  worker->metrics_ = std::make_unique<WorkerMetrics>(
      std::move(metrics),
      WorkerMetricsOptions{
          .model_name = model->name(),
          .worker_name = worker->options_.name,
          .phase = worker->options_.phase == v1::PHASE_PREFILL ? "prefill" : "decode",
          .context_tokens = worker->options_.engine.context_tokens});
  if (worker->options_.phase == v1::PHASE_PREFILL) {
    worker->kv_metrics_ = std::make_unique<KvMetrics>(worker->metrics_->registry(), model->name(),
                                                      worker->options_.name);
  }
  RETURN_IF_ERROR(worker->StartParts(std::move(model)));
  return worker;
}

absl::Status Worker::StartParts(std::shared_ptr<const Model> model) {
  {
    const ScopedAffinity pinned(options_.cpus);
    ASSIGN_OR_RETURN(std::unique_ptr<Engine> engine, Engine::Create(model, options_.engine));
    const EngineOptions& made = engine->options();
    kv_capacity_tokens_ =
        made.kv_tokens != 0 ? made.kv_tokens : uint64_t{made.context_tokens} * made.max_sequences;
    RETURN_IF_ERROR(StartLoop(std::move(engine)));
  }
  UpdateMetrics();
  metrics_->SetCacheConfig(options_.chunk_tokens, kv_capacity_tokens_ / options_.chunk_tokens);
  service_ =
      std::make_unique<WorkerServiceImpl>(prefill_.get(), decode_.get(), model->fingerprint());
  // A prompt's token ids take up to 5 bytes each.
  const uint64_t max_receive_bytes = (1 << 20) + uint64_t{5} * options_.engine.context_tokens;
  std::vector<grpc::Service*> services = {service_.get()};
  if (options_.store != nullptr) {
    store_service_ = std::make_unique<StoreServiceImpl>(options_.store);
    services.push_back(store_service_.get());
  }
  ASSIGN_OR_RETURN(grpc_, StartGrpcServer({.listen = options_.grpc_listen,
                                           .max_receive_bytes = max_receive_bytes,
                                           .services = std::move(services)}));
  grpc_.server->GetHealthCheckService()->SetServingStatus("tandem.v1.WorkerService", true);
  const v1::WorkerInfo info = Info(*model);
  spdlog::info("worker ready worker_id={} phase={} grpc={} data={} kv_tokens={} threads={}",
               info.worker_id(), v1::Phase_Name(info.phase()), info.grpc_address(),
               info.data_address(), kv_capacity_tokens_, options_.engine.threads);
  cluster_ = std::make_unique<ClusterClient>(
      options_.routers, info, [this] { return Load(); }, options_.report_interval,
      options_.store != nullptr ? options_.store->journal() : nullptr);
  return absl::OkStatus();
}

absl::Status Worker::StartLoop(std::unique_ptr<Engine> engine) {
  ASSIGN_OR_RETURN(
      coder_, KvCoder::Create(*engine, options_.profile, options_.kv_floor, options_.kv_threads));
  io_thread_ = std::thread([this] { io_.run(); });
  if (options_.phase == v1::PHASE_PREFILL) {
    ASSIGN_OR_RETURN(handoff_server_,
                     kvstore::HandoffServer::Start(io_, {.listen = options_.data_listen,
                                                         .identity = engine->identity(),
                                                         .chunks = options_.store,
                                                         .coder = coder_.get(),
                                                         .lease = options_.handoff_lease}));
    data_port_ = handoff_server_->port();
    if (options_.store != nullptr) {
      prefix_cache_ = std::make_unique<PrefixCache>(
          *engine, io_, options_.store, coder_.get(), kv_metrics_.get(),
          PrefixCache::Options{.chunk_tokens = options_.chunk_tokens});
    }
    prefill_ = std::make_unique<PrefillLoop>(
        std::move(engine), handoff_server_.get(), prefix_cache_.get(), metrics_.get(),
        kv_metrics_.get(),
        PrefillLoop::Options{.max_queued = options_.max_queued,
                             .chunk_tokens = options_.chunk_tokens,
                             .handoff_buffer_bytes = options_.handoff_buffer_bytes,
                             .kv_floor = coder_->floor(),
                             .max_sequences = options_.prefill_sequences});
  } else {
    handoff_client_ = kvstore::HandoffClient::Create(
        io_, {.identity = engine->identity(),
              .coder = coder_.get(),
              .raw_bytes_per_token = engine->layout().BytesPerToken()});
    decode_ = std::make_unique<DecodeLoop>(std::move(engine), handoff_client_.get(), metrics_.get(),
                                           DecodeLoop::Options{.max_queued = options_.max_queued});
  }
  return absl::OkStatus();
}

Worker::~Worker() { Stop(); }

v1::WorkerInfo Worker::Info(const Model& model) const {
  v1::WorkerInfo info;
  info.set_worker_id(MakeNodeId(options_.name));
  info.set_name(options_.name);
  info.set_phase(options_.phase);
  info.set_grpc_address(absl::StrCat(options_.grpc_advertised_host, ":", grpc_.port));
  if (data_port_ != 0) {
    info.set_data_address(absl::StrCat(options_.data_advertised_host, ":", data_port_));
  }
  info.set_model_name(model.name());
  info.set_model_fingerprint(model.fingerprint());
  info.set_context_tokens(options_.engine.context_tokens);
  info.set_max_sequences(options_.phase == v1::PHASE_PREFILL ? options_.prefill_sequences
                                                             : options_.engine.max_sequences);
  info.set_kv_capacity_tokens(kv_capacity_tokens_);
  info.set_version(kVersion);
  if (prefix_cache_ != nullptr) {
    info.set_kv_namespace(prefix_cache_->kv_namespace());
    info.set_chunk_tokens(options_.chunk_tokens);
  }
  return info;
}

LoopLoad Worker::CurrentLoad() const {
  return prefill_ != nullptr ? prefill_->load() : decode_->load();
}

v1::WorkerLoad Worker::Load() {
  const LoopLoad load = CurrentLoad();
  v1::WorkerLoad report;
  report.set_running(load.running);
  report.set_waiting(load.waiting);
  report.set_waiting_tokens(load.waiting_tokens);
  report.set_kv_used_tokens(load.kv_used_tokens);
  report.set_handoff_held_bytes(load.handoff_held_bytes);
  report.set_tokens_per_s(load.tokens_per_s);
  report.set_draining(draining_);
  return report;
}

void Worker::UpdateMetrics() {
  metrics_timer_.expires_after(absl::ToChronoNanoseconds(options_.report_interval));
  metrics_timer_.async_wait([this](const boost::system::error_code& error) {
    if (!error) UpdateMetrics();
  });
  if (options_.store != nullptr) kv_metrics_->SetStore(options_.store->stats());
  const LoopLoad load = CurrentLoad();
  metrics_->SetLoad({.running = load.running,
                     .waiting = load.waiting,
                     .queue_limit = options_.max_queued,
                     .kv_used_tokens = load.kv_used_tokens,
                     .kv_limit_tokens = kv_capacity_tokens_,
                     .handoff_held_bytes = load.handoff_held_bytes,
                     .handoff_limit_bytes = options_.handoff_buffer_bytes,
                     .connections = static_cast<uint32_t>(
                         handoff_server_ != nullptr ? handoff_server_->connections()
                                                    : handoff_client_->idle_connections())});
}

uint32_t Worker::unfinished() const { return CurrentLoad().unfinished; }

void Worker::Drain() {
  draining_ = true;
  grpc_.server->GetHealthCheckService()->SetServingStatus(false);
  cluster_->ReportNow();
}

void Worker::Stop() {
  if (stopped_) return;
  stopped_ = true;
  cluster_.reset();
  // The data plane first: it ends pulls and publications, for which the loops wait.
  if (handoff_client_ != nullptr) handoff_client_->Stop();
  if (prefill_ != nullptr) prefill_->Stop();
  if (prefix_cache_ != nullptr) prefix_cache_->Stop();
  if (handoff_server_ != nullptr) handoff_server_->Stop();
  if (decode_ != nullptr) decode_->Stop();
  if (coder_ != nullptr) coder_->Stop();
  if (grpc_.server != nullptr) {
    grpc_.server->Shutdown(absl::ToChronoTime(absl::Now() + kShutdownGrace));
    grpc_.server->Wait();
  }
  io_.stop();
  if (io_thread_.joinable()) io_thread_.join();
}

}  // namespace tandem::workers
