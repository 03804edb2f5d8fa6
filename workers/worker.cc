#include "workers/worker.h"

#include <grpcpp/health_check_service_interface.h>
#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/status.h"
#include "base/version.h"
#include "workers/engine/device.h"
#include "workers/node_id.h"
#include "workers/profiler.h"

namespace tandem::workers {
namespace {

constexpr absl::Duration kShutdownGrace = absl::Seconds(2);
// How often a worker that changes its phase looks whether its sequences have left.
constexpr std::chrono::milliseconds kPhasePoll{10};

std::string PhaseWord(v1::Phase phase) {
  switch (phase) {
    case v1::PHASE_PREFILL:
      return "prefill";
    case v1::PHASE_DECODE:
      return "decode";
    case v1::PHASE_MIXED:
      return "mixed";
    default:
      return "none";
  }
}

void FillPhase(const LoopLoad& load, v1::PhaseLoad& out) {
  out.set_running(load.running);
  out.set_waiting(load.waiting);
  out.set_tokens_to_compute(load.tokens_to_compute);
  out.set_kv_used_tokens(load.kv_used_tokens);
  out.set_kv_capacity_tokens(load.kv_capacity_tokens);
  out.set_kv_expected_tokens(load.kv_expected_tokens);
  out.set_max_sequences(load.max_sequences);
  for (const LoopLoad::Job& job : load.jobs) {
    v1::Job& told = *out.add_jobs();
    told.set_id(job.id);
    told.set_tokens_to_compute(job.tokens_to_compute);
  }
}

void FillLink(const kvstore::LinkEstimate& link, absl::Time now, v1::LinkEstimate& out) {
  out.set_data_address(link.address);
  out.set_bytes_per_s(link.bytes_per_s);
  out.set_rtt_s(link.rtt_s);
  out.set_age_s(absl::ToDoubleSeconds(now - link.measured));
  out.set_samples(link.samples);
  out.set_confidence(link.confidence);
  out.set_usual_bytes_per_s(link.usual_bytes_per_s);
  out.set_degraded(link.degraded());
  out.set_asymmetric(link.asymmetric());
  out.set_relayed(link.relayed);
}

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
  const WorkerOptions& given = worker->options_;
  const auto metrics_for = [&](const char* phase) {
    return std::make_unique<WorkerMetrics>(
        metrics, WorkerMetricsOptions{.model_name = model->name(),
                                      .worker_name = given.name,
                                      .phase = phase,
                                      .context_tokens = given.decode_engine.context_tokens});
  };
  worker->prefill_metrics_ = metrics_for("prefill");
  worker->decode_metrics_ = metrics_for("decode");
  worker->kv_metrics_ = std::make_unique<KvMetrics>(metrics, model->name(), given.name);
  worker->link_metrics_ = std::make_unique<LinkMetrics>(metrics, model->name(), given.name);
  worker->model_ = std::move(model);
  RETURN_IF_ERROR(worker->StartParts());
  return worker;
}

absl::Status Worker::StartParts() {
  io_thread_ = std::thread([this] { io_.run(); });
  if (options_.profile_at_start > absl::ZeroDuration()) {
    speed_cache_ = std::make_unique<SpeedCache>(
        options_.speed_cache_path.empty() ? DefaultSpeedCachePath() : options_.speed_cache_path);
  }
  RETURN_IF_ERROR(MakeLoops(phase_));
  const v1::WorkerLoad load = Load();
  const uint64_t capacity =
      load.prefill().kv_capacity_tokens() + load.decode().kv_capacity_tokens();
  prefill_metrics_->SetCacheConfig(options_.chunk_tokens, capacity / options_.chunk_tokens);
  UpdateMetrics();
  service_ = std::make_unique<WorkerServiceImpl>(this, model_->fingerprint());
  // A prompt's token ids take up to 5 bytes each.
  const uint64_t max_receive_bytes =
      (1 << 20) + uint64_t{5} * options_.prefill_engine.context_tokens;
  std::vector<grpc::Service*> services = {service_.get()};
  if (options_.store != nullptr) {
    store_service_ = std::make_unique<StoreServiceImpl>(options_.store);
    services.push_back(store_service_.get());
  }
  ASSIGN_OR_RETURN(grpc_, StartGrpcServer({.listen = options_.grpc_listen,
                                           .max_receive_bytes = max_receive_bytes,
                                           .services = std::move(services)}));
  grpc_.server->GetHealthCheckService()->SetServingStatus("tandem.v1.WorkerService", true);
  const v1::WorkerInfo info = Info();
  spdlog::info("worker ready worker_id={} phase={} grpc={} data={} kv_tokens={} threads={}",
               info.worker_id(), PhaseWord(info.phase()), info.grpc_address(), info.data_address(),
               info.kv_capacity_tokens(), options_.prefill_engine.threads);
  cluster_ = std::make_unique<ClusterClient>(
      options_.routers, info, [this] { return Load(); }, options_.report_interval,
      options_.store != nullptr ? options_.store->journal() : nullptr,
      [this](v1::Phase phase, bool by_planner) {
        if (absl::Status status = AssignPhase(phase, by_planner); !status.ok()) {
          spdlog::warn("phase not taken error=\"{}\"", status.ToString());
        }
      },
      [this](const v1::Peers& peers) { SetPeers(peers); });
  phase_thread_ = std::thread([this] { RunPhases(); });
  return absl::OkStatus();
}

// Loops

Worker::Loops Worker::LoopsOf(v1::Phase phase) const {
  const bool decodes = phase != v1::PHASE_PREFILL;
  return {.prefill = !decodes || phase == v1::PHASE_MIXED || options_.prefill_on_decode,
          .decode = decodes};
}

absl::Status Worker::MakeLoops(v1::Phase phase) {
  const Loops needed = LoopsOf(phase);
  // The loops' threads, and the engines' own, are pinned with the one that makes them.
  const ScopedAffinity pinned(options_.cpus);
  if (needed.prefill && prefill() == nullptr) RETURN_IF_ERROR(MakePrefillLoop());
  if (needed.decode && decode() == nullptr) RETURN_IF_ERROR(MakeDecodeLoop());
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Engine>> Worker::MakeEngine(EngineOptions options) {
  const std::shared_ptr<PrefillLoop> prefill = this->prefill();
  const std::shared_ptr<DecodeLoop> decode = this->decode();
  const Engine* sibling = prefill != nullptr  ? &prefill->engine()
                          : decode != nullptr ? &decode->engine()
                                              : nullptr;
  ASSIGN_OR_RETURN(std::unique_ptr<Engine> engine, Engine::Create(model_, options, sibling));
  if (coder_ == nullptr) RETURN_IF_ERROR(StartDataPlane(*engine));
  return engine;
}

absl::Status Worker::StartDataPlane(const Engine& engine) {
  ASSIGN_OR_RETURN(
      coder_, KvCoder::Create(engine, options_.profile, options_.kv_floor, options_.kv_threads));
  ASSIGN_OR_RETURN(handoff_server_,
                   kvstore::HandoffServer::Start(io_, {.listen = options_.data_listen,
                                                       .identity = engine.identity(),
                                                       .chunks = options_.store,
                                                       .coder = coder_.get(),
                                                       .links = &links_,
                                                       .probe_share = options_.link_probe_share,
                                                       .lease = options_.handoff_lease}));
  const uint64_t bytes_per_token = engine.layout().BytesPerToken();
  handoff_client_ = kvstore::HandoffClient::Create(io_, {.identity = engine.identity(),
                                                         .coder = coder_.get(),
                                                         .raw_bytes_per_token = bytes_per_token,
                                                         .links = &links_});
  prober_ = std::make_unique<kvstore::LinkProber>(
      io_, kvstore::LinkProber::Options{
               .address = data_address(), .links = &links_, .share = options_.link_probe_share});
  lot_ = std::make_unique<ParkingLot>(options_.store, coder_.get(),
                                      ParkingLot::Options{.memory_bytes = options_.parked_bytes,
                                                          .raw_bytes_per_token = bytes_per_token});
  return absl::OkStatus();
}

void Worker::LearnSpeed(Engine& engine) {
  if (speed_cache_ == nullptr) return;
  const EngineOptions::Use use = engine.options().use;
  const bool prefill = use == EngineOptions::Use::kPrefill;
  const char* const kind = prefill ? "prefill" : "decode";
  std::string& key = prefill ? prefill_speed_key_ : decode_speed_key_;
  // A loop that was dropped comes back: what was learned of it is here still.
  if (!key.empty()) return;
  key = SpeedKey(*model_, engine.options(), DeviceDescription(options_.uses_gpus));
  const auto kept = speed_cache_->Load(key);
  if (kept.ok() && kept->fit.samples > 0) {
    speed_.Restore(use, *kept);
    spdlog::info("speed known from an earlier start steps={} samples={} file={}", kind,
                 kept->fit.samples, speed_cache_->PathOf(key));
    return;
  }
  if (absl::IsDataLoss(kept.status())) {
    spdlog::warn("speed is measured anew error=\"{}\"", kept.status().ToString());
  }
  if (service_ != nullptr) return;  // real steps will tell
  const Stopwatch took;
  const auto measured = ProfileSteps(engine, options_.profile_at_start / 2, speed_);
  if (!measured.ok()) {
    spdlog::warn("speed not measured steps={} error=\"{}\"; it is learned from requests", kind,
                 measured.status().ToString());
    return;
  }
  spdlog::info("speed measured steps={} samples={} seconds={:.2f}", kind, *measured,
               took.seconds());
  KeepSpeed(use);
}

void Worker::KeepSpeed(EngineOptions::Use use) {
  const std::string& key =
      use == EngineOptions::Use::kPrefill ? prefill_speed_key_ : decode_speed_key_;
  const auto learned = speed_.Learned(use);
  if (speed_cache_ == nullptr || key.empty() || learned.fit.samples == 0) return;
  if (absl::Status saved = speed_cache_->Save(key, learned); !saved.ok()) {
    spdlog::warn("speed not kept for the next start error=\"{}\"", saved.ToString());
  }
}

absl::Status Worker::MakePrefillLoop() {
  ASSIGN_OR_RETURN(std::unique_ptr<Engine> engine, MakeEngine(options_.prefill_engine));
  LearnSpeed(*engine);
  if (options_.store != nullptr) {
    prefix_cache_ =
        std::make_unique<PrefixCache>(*engine, io_, options_.store, coder_.get(), kv_metrics_.get(),
                                      PrefixCache::Options{.chunk_tokens = options_.chunk_tokens});
  }
  auto loop = std::make_shared<PrefillLoop>(
      std::move(engine), handoff_server_.get(), prefix_cache_.get(), &gate_, &speed_,
      prefill_metrics_.get(), kv_metrics_.get(),
      PrefillLoop::Options{.max_queued = options_.max_queued,
                           .chunk_tokens = options_.chunk_tokens,
                           .handoff_buffer_bytes = options_.handoff_buffer_bytes,
                           .kv_floor = coder_->floor(),
                           .max_sequences = options_.prefill_sequences,
                           .overtake_tokens = options_.prefill_overtake_tokens});
  std::lock_guard lock(mutex_);
  prefill_ = std::move(loop);
  return absl::OkStatus();
}

absl::Status Worker::MakeDecodeLoop() {
  ASSIGN_OR_RETURN(std::unique_ptr<Engine> engine, MakeEngine(options_.decode_engine));
  LearnSpeed(*engine);
  auto loop = std::make_shared<DecodeLoop>(
      std::move(engine),
      DecodeLoop::Parts{.client = handoff_client_.get(),
                        .server = handoff_server_.get(),
                        .lot = lot_.get(),
                        .gate = &gate_,
                        .speed = &speed_,
                        .metrics = decode_metrics_.get()},
      DecodeLoop::Options{.max_queued = options_.max_queued,
                          .kv_tokens = options_.decode_kv_tokens,
                          .tpot_objective = options_.tpot_objective,
                          .longest_wait = options_.handoff_lease / 3,
                          .chunk_tokens = options_.chunk_tokens,
                          .handoff_buffer_bytes = options_.handoff_buffer_bytes});
  std::lock_guard lock(mutex_);
  decode_ = std::move(loop);
  return absl::OkStatus();
}

std::shared_ptr<PrefillLoop> Worker::prefill() const {
  std::lock_guard lock(mutex_);
  return prefill_;
}

std::shared_ptr<DecodeLoop> Worker::decode() const {
  std::lock_guard lock(mutex_);
  return decode_;
}

absl::StatusOr<std::shared_ptr<PrefillLoop>> Worker::Prefill() {
  std::lock_guard lock(mutex_);
  if (prefill_ != nullptr) return prefill_;
  return absl::UnavailableError(
      absl::StrCat("this worker's phase is ", PhaseWord(phase_), "; it does not prefill"));
}

absl::StatusOr<std::shared_ptr<DecodeLoop>> Worker::Decode() {
  std::lock_guard lock(mutex_);
  if (decode_ != nullptr) return decode_;
  return absl::UnavailableError(
      absl::StrCat("this worker's phase is ", PhaseWord(phase_), "; it does not decode"));
}

// Phases

absl::Status Worker::AssignPhase(v1::Phase phase, bool by_planner) {
  if (PhaseWord(phase) == "none" && phase != v1::PHASE_AUTO) {
    return absl::InvalidArgumentError("a worker's phase is prefill, decode or mixed");
  }
  std::lock_guard lock(mutex_);
  if (options_.phase_pinned && phase != phase_) {
    return absl::FailedPreconditionError(
        absl::StrCat("this worker's phase is pinned to ", PhaseWord(phase_)));
  }
  if (by_planner && !planned_) {
    return absl::FailedPreconditionError("this worker's phase is not the planner's to change");
  }
  planned_ = by_planner || phase == v1::PHASE_AUTO;
  if (phase == v1::PHASE_AUTO) return absl::OkStatus();
  unassigned_ = false;
  target_ = phase;
  phase_wake_.notify_all();
  return absl::OkStatus();
}

void Worker::RunPhases() {
  while (true) {
    v1::Phase next;
    {
      std::unique_lock lock(mutex_);
      phase_wake_.wait(lock, [this] {
        return stopping_ || target_ != phase_ || changing_to_ != v1::PHASE_UNSPECIFIED;
      });
      if (stopping_) return;
      next = target_;
    }
    ChangePhase(next);
  }
}

void Worker::ChangePhase(v1::Phase next) {
  const Stopwatch took;
  if (absl::Status made = MakeLoops(next); !made.ok()) {
    spdlog::error("phase not changed to={} error=\"{}\"", PhaseWord(next), made.ToString());
    std::lock_guard lock(mutex_);
    target_ = phase_;
    if (changing_to_ == v1::PHASE_UNSPECIFIED) return;
    next = phase_;  // back from another change that has begun
  }
  {
    std::lock_guard lock(mutex_);
    changing_to_ = next;
    spdlog::info("phase changes from={} to={}", PhaseWord(phase_), PhaseWord(next));
  }
  Arrange(next);
  cluster_->ReportNow();
  const Loops needed = LoopsOf(next);
  std::shared_ptr<DecodeLoop> dropped;
  {
    std::unique_lock lock(mutex_);
    const auto empty = [&] {
      return (needed.prefill || prefill_ == nullptr || prefill_->load().unfinished == 0) &&
             (needed.decode || decode_ == nullptr || decode_->load().unfinished == 0);
    };
    while (!stopping_ && target_ == next && !empty()) phase_wake_.wait_for(lock, kPhasePoll);
    if (stopping_ || target_ != next) return;
    phase_ = next;
    changing_to_ = v1::PHASE_UNSPECIFIED;
    if (!needed.decode && decode_ != nullptr) {
      dropped = std::move(decode_);
      steps_of_dropped_loops_ += dropped->load().steps;
    }
  }
  spdlog::info("phase is phase={} seconds={:.3f}", PhaseWord(next), took.seconds());
  cluster_->ReportNow();
}

void Worker::Arrange(v1::Phase next) {
  const Loops needed = LoopsOf(next);
  const std::string why = absl::StrCat("the worker's phase becomes ", PhaseWord(next));
  if (const auto loop = prefill(); loop != nullptr) {
    loop->SetClosed(needed.prefill ? "" : why);
    // A decode worker computes prompts when it is asked to, not those that came before.
    if (next == v1::PHASE_DECODE) loop->GiveBackWaiting(why);
  }
  if (const auto loop = decode(); loop != nullptr) {
    if (!needed.decode) {
      loop->Leave(why);
    } else if (!draining_) {
      loop->Stay();
    }
  }
}

// Reports

std::string Worker::data_address() const {
  return absl::StrCat(options_.data_advertised_host, ":", handoff_server_->port());
}

v1::WorkerInfo Worker::Info() const {
  v1::WorkerInfo info;
  info.set_worker_id(MakeNodeId(options_.name));
  info.set_name(options_.name);
  info.set_phase(options_.phase);
  info.set_grpc_address(absl::StrCat(options_.grpc_advertised_host, ":", grpc_.port));
  info.set_data_address(data_address());
  info.set_model_name(model_->name());
  info.set_model_fingerprint(model_->fingerprint());
  info.set_context_tokens(options_.prefill_engine.context_tokens);
  info.set_version(kVersion);
  info.set_phase_pinned(options_.phase_pinned);
  info.set_prefills_too(options_.prefill_on_decode);
  info.set_decode_sequences(options_.decode_engine.max_sequences);
  info.set_decode_kv_tokens(options_.decode_kv_tokens != 0
                                ? options_.decode_kv_tokens
                                : uint64_t{options_.decode_engine.max_sequences} *
                                      options_.decode_engine.context_tokens);
  info.set_prefill_sequences(options_.prefill_sequences);
  info.set_step_tokens(options_.prefill_engine.step_tokens);
  const v1::WorkerLoad load = Load();
  const v1::PhaseLoad& main = options_.phase == v1::PHASE_PREFILL ? load.prefill() : load.decode();
  info.set_max_sequences(main.max_sequences());
  info.set_kv_capacity_tokens(main.kv_capacity_tokens());
  const auto loop = prefill();
  const Engine& engine = loop != nullptr ? loop->engine() : decode()->engine();
  info.set_kv_bytes_per_token(engine.layout().BytesPerToken());
  info.set_chunk_tokens(options_.chunk_tokens);
  if (prefix_cache_ != nullptr) info.set_kv_namespace(prefix_cache_->kv_namespace());
  return info;
}

v1::WorkerLoad Worker::Load() const {
  v1::WorkerLoad report;
  std::lock_guard lock(mutex_);
  report.set_phase(phase_);
  report.set_changing_to(changing_to_);
  report.set_phase_planned(planned_);
  report.set_phase_unassigned(unassigned_);
  const LoopLoad prefill = prefill_ != nullptr ? prefill_->load() : LoopLoad();
  const LoopLoad decode = decode_ != nullptr ? decode_->load() : LoopLoad();
  FillPhase(prefill, *report.mutable_prefill());
  FillPhase(decode, *report.mutable_decode());
  report.set_running(prefill.running + decode.running);
  report.set_waiting(prefill.waiting + decode.waiting + decode.parked);
  report.set_waiting_tokens(prefill.waiting_tokens);
  report.set_kv_used_tokens(prefill.kv_used_tokens + decode.kv_used_tokens);
  report.set_handoff_held_bytes(handoff_server_->held_bytes());
  report.set_tokens_per_s(prefill.tokens_per_s + decode.tokens_per_s);
  report.set_draining(draining_);
  report.set_steps(prefill.steps + decode.steps + steps_of_dropped_loops_);
  report.set_parked(decode.parked);
  *report.mutable_latency() = speed_.Report();
  *report.mutable_usual_latency() = speed_.ReportUsual();
  const absl::Time now = absl::Now();
  for (const kvstore::LinkEstimate& link : links_.List(now))
    FillLink(link, now, *report.add_links());
  return report;
}

void Worker::SetPeers(const v1::Peers& peers) {
  std::vector<std::string> addresses;
  std::lock_guard lock(mutex_);
  peer_names_.clear();
  for (const v1::Peer& peer : peers.peers()) {
    addresses.push_back(peer.data_address());
    peer_names_[peer.data_address()] = peer.name();
  }
  prober_->SetPeers(std::move(addresses));
}

void Worker::UpdateMetrics() {
  metrics_timer_.expires_after(absl::ToChronoNanoseconds(options_.report_interval));
  metrics_timer_.async_wait([this](const boost::system::error_code& error) {
    if (!error) UpdateMetrics();
  });
  if (options_.store != nullptr && !options_.shares_store) {
    kv_metrics_->SetStore(options_.store->stats());
  }
  const auto values = [&](const LoopLoad& load) {
    return WorkerLoadValues{.running = load.running,
                            .waiting = load.waiting,
                            .queue_limit = options_.max_queued,
                            .kv_used_tokens = load.kv_used_tokens,
                            .kv_limit_tokens = load.kv_capacity_tokens,
                            .parked = load.parked,
                            .parked_bytes = load.parked_bytes};
  };
  const auto prefill_loop = prefill();
  const auto decode_loop = decode();
  WorkerLoadValues prefill = values(prefill_loop != nullptr ? prefill_loop->load() : LoopLoad());
  WorkerLoadValues decode = values(decode_loop != nullptr ? decode_loop->load() : LoopLoad());
  // The data plane serves both; the side that gives is told with the phase that mostly gives.
  prefill.handoff_held_bytes = handoff_server_->held_bytes();
  prefill.handoff_limit_bytes = options_.handoff_buffer_bytes;
  prefill.connections = static_cast<uint32_t>(handoff_server_->connections());
  decode.connections = static_cast<uint32_t>(handoff_client_->idle_connections());
  WorkerLoadValues whole = decode;
  whole.running += prefill.running;
  whole.waiting += prefill.waiting;
  whole.kv_used_tokens += prefill.kv_used_tokens;
  whole.kv_limit_tokens += prefill.kv_limit_tokens;
  prefill_metrics_->SetLoad(prefill, whole);
  decode_metrics_->SetLoad(decode, whole);
  std::map<std::string, std::string> names;
  {
    std::lock_guard lock(mutex_);
    names = peer_names_;
  }
  const absl::Time now = absl::Now();
  link_metrics_->Set(links_.List(now), names, now);
}

// The end

uint32_t Worker::unfinished() const {
  const auto prefill = this->prefill();
  const auto decode = this->decode();
  return (prefill != nullptr ? prefill->load().unfinished : 0) +
         (decode != nullptr ? decode->load().unfinished : 0);
}

void Worker::Drain() {
  draining_ = true;
  grpc_.server->GetHealthCheckService()->SetServingStatus(false);
  cluster_->ReportNow();
  const std::string why = "the worker is being shut down";
  if (const auto loop = prefill(); loop != nullptr) loop->GiveBackWaiting(why);
  if (const auto loop = decode(); loop != nullptr) loop->Leave(why);
}

Worker::~Worker() { Stop(); }

void Worker::Stop() {
  if (stopped_) return;
  stopped_ = true;
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    phase_wake_.notify_all();
  }
  // The phase thread uses the registration, whose threads may be calling AssignPhase.
  if (phase_thread_.joinable()) phase_thread_.join();
  cluster_.reset();
  const auto prefill = this->prefill();
  const auto decode = this->decode();
  // The data plane first: it ends pulls and publications, for which the loops wait.
  if (prober_ != nullptr) prober_->Stop();
  if (handoff_client_ != nullptr) handoff_client_->Stop();
  if (prefill != nullptr) prefill->Stop();
  if (prefix_cache_ != nullptr) prefix_cache_->Stop();
  if (handoff_server_ != nullptr) handoff_server_->Stop();
  if (decode != nullptr) decode->Stop();
  if (coder_ != nullptr) coder_->Stop();
  for (const auto use : {EngineOptions::Use::kPrefill, EngineOptions::Use::kDecode}) KeepSpeed(use);
  if (grpc_.server != nullptr) {
    service_->Stop();
    grpc_.server->Shutdown(absl::ToChronoTime(absl::Now() + kShutdownGrace));
    grpc_.server->Wait();
  }
  io_.stop();
  if (io_thread_.joinable()) io_thread_.join();
}

}  // namespace tandem::workers
