#include "server/daemon.h"

#include <prometheus/registry.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <thread>
#include <utility>

#include "base/clock.h"
#include "base/files.h"
#include "base/log.h"
#include "base/status.h"
#include "server/tenant_limits.h"

namespace tandem::server {
namespace {

constexpr uint32_t kDefaultContextTokens = 8192;
constexpr std::chrono::milliseconds kPollInterval{10};

/// `wanted`, or what the model was trained with, within reason.
uint32_t ContextTokens(const Config& config, const workers::Model& model) {
  if (config.context_tokens != 0) return config.context_tokens;
  return std::min(model.training_context_tokens(), kDefaultContextTokens);
}

workers::EngineOptions EngineOptionsFor(const Config& config, workers::EngineOptions::Use use,
                                        const workers::Model& model) {
  const bool prefill = use == workers::EngineOptions::Use::kPrefill;
  workers::EngineOptions options;
  options.use = use;
  options.context_tokens = ContextTokens(config, model);
  options.max_sequences = config.decode_sequences;
  if (prefill) {
    options.max_sequences = config.prefill_sequences;
    if (config.kv_memory_bytes > 0) options.max_sequences += config.retained_prompts;
  }
  options.step_tokens = config.step_tokens;
  // Prompts stay only while they are computed: two of full length keep the steps full.
  if (prefill) {
    options.kv_tokens = uint64_t{options.context_tokens} * std::min(2u, config.prefill_sequences);
  }
  options.k_type = config.k_type;
  options.v_type = config.v_type;
  options.flash_attention = config.flash_attention;
  options.threads = EngineThreads(config);
  return options;
}

/// The profile that is named, or the one beside the model; null when there is none.
absl::StatusOr<std::shared_ptr<const kvstore::codec::Profile>> LoadProfile(const Config& config) {
  namespace fs = std::filesystem;
  const fs::path path = config.kv_profile.empty()
                            ? fs::path(config.model).replace_extension(".kvprofile")
                            : fs::path(config.kv_profile);
  std::error_code ignored;
  if (config.kv_profile.empty() && !fs::exists(path, ignored)) return nullptr;
  std::ifstream in(path, std::ios::binary);
  const std::vector<char> bytes((std::istreambuf_iterator<char>(in)), {});
  if (!in.good() && !in.eof()) {
    return absl::NotFoundError(absl::StrCat("kv_profile: cannot read ", path.string()));
  }
  auto profile =
      kvstore::codec::ParseProfile({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()});
  if (!profile.ok()) return Annotate(profile.status(), absl::StrCat("kv_profile ", path.string()));
  return std::make_shared<const kvstore::codec::Profile>(*std::move(profile));
}

absl::StatusOr<kvstore::StoreOptions> StoreOptionsFor(const Config& config) {
  kvstore::StoreOptions options{.memory_bytes = config.kv_memory_bytes};
  if (!config.kv_disk_path.empty()) {
    options.disk.emplace();
    options.disk->path = config.kv_disk_path;
    options.disk->limit_bytes = config.kv_disk_bytes;
  }
  if (config.kv_redis.empty()) return options;
  options.redis.emplace();
  options.redis->nodes = config.kv_redis;
  options.redis->username = config.kv_redis_username;
  options.redis->timeout = config.kv_redis_timeout;
  options.redis->ttl = config.kv_redis_ttl;
  if (config.kv_redis_password_file.empty()) return options;
  std::ifstream in(config.kv_redis_password_file);
  if (!std::getline(in, options.redis->password)) {
    return absl::NotFoundError(absl::StrCat("kv_redis_password_file: cannot read a password from ",
                                            config.kv_redis_password_file));
  }
  return options;
}

/// REQUIRES: the configuration is valid.
std::vector<std::pair<std::string, scheduler::TenantLimits>> TenantLimitsOf(const Config& config) {
  std::vector<std::pair<std::string, scheduler::TenantLimits>> limits;
  for (const std::string& text : config.tenant_limits) {
    limits.push_back(*ParseTenantLimits(text));
  }
  return limits;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Daemon>> Daemon::Start(const Config& config) {
  std::unique_ptr<Daemon> daemon(new Daemon(config));
  RETURN_IF_ERROR(daemon->StartParts());
  return daemon;
}

absl::Status Daemon::StartParts() {
  const bool routes = config_.role == Role::kAll || config_.role == Role::kRouter;
  auto registry = std::make_shared<prometheus::Registry>();
  if (!config_.metrics_listen.empty()) {
    ASSIGN_OR_RETURN(metrics_server_, MetricsServer::Start(config_.metrics_listen));
    metrics_server_->Add(registry);
  }
  if (config_.role != Role::kRouter) RETURN_IF_ERROR(StartStore());
  if (config_.role == Role::kStore) {
    RETURN_IF_ERROR(StartStoreNode(registry));
    return config_.port_file.empty() ? absl::OkStatus() : WritePortFile();
  }
  const Stopwatch loading;
  ASSIGN_OR_RETURN(const std::shared_ptr<const workers::Model> model,
                   workers::Model::Load({.path = config_.model,
                                         .vocabulary_only = config_.role == Role::kRouter,
                                         .gpu_layers = config_.gpu_layers}));
  spdlog::info("model loaded name={} seconds={:.2f}", model->name(), loading.seconds());
  if (routes) {
    ASSIGN_OR_RETURN(router_, Router::Start({.listen = config_.listen,
                                             .tenants = config_.tenants,
                                             .max_requests = config_.max_requests,
                                             .retry_after = config_.retry_after,
                                             .max_prompt_bytes = config_.max_prompt_bytes,
                                             .max_message_bytes = config_.max_message_bytes,
                                             .worker_timeout = config_.worker_timeout,
                                             .stall_timeout = config_.stall_timeout,
                                             .ttft_objective = config_.ttft_objective,
                                             .tpot_objective = config_.tpot_objective,
                                             .max_ttft = config_.max_ttft,
                                             .dispatch_ahead = config_.dispatch_ahead,
                                             .resume_timeout = config_.resume_timeout,
                                             .resume_budget = config_.resume_budget,
                                             .planner = config_.planner,
                                             .planner_interval = config_.planner_interval,
                                             .planner_min_dwell = config_.planner_min_dwell,
                                             .planner_min_gain = config_.planner_min_gain / 100.0,
                                             .tenant_limits = TenantLimitsOf(config_)},
                                            model, registry));
  }
  if (config_.role == Role::kAll) {
    const std::vector<std::string> self = {absl::StrCat("127.0.0.1:", router_->port())};
    RETURN_IF_ERROR(StartWorker(Phase::kPrefill, self, model, registry));
    RETURN_IF_ERROR(StartWorker(Phase::kDecode, self, model, registry));
    WaitReady();
  } else if (config_.role == Role::kWorker) {
    RETURN_IF_ERROR(StartWorker(config_.phase, config_.routers, model, registry));
  }
  return config_.port_file.empty() ? absl::OkStatus() : WritePortFile();
}

absl::Status Daemon::StartStore() {
  // A worker that will never compute a prompt has nothing to keep.
  const bool decode_only = config_.role == Role::kWorker && config_.phase == Phase::kDecode &&
                           config_.phase_pinned && !config_.prefill_on_decode;
  if (config_.kv_memory_bytes == 0 || decode_only) return absl::OkStatus();
  ASSIGN_OR_RETURN(kvstore::StoreOptions options, StoreOptionsFor(config_));
  ASSIGN_OR_RETURN(store_, kvstore::Store::Open(std::move(options)));
  return absl::OkStatus();
}

absl::Status Daemon::StartStoreNode(const std::shared_ptr<prometheus::Registry>& registry) {
  workers::StoreNodeOptions options;
  options.name = StoreName(config_);
  options.grpc_listen = config_.worker_listen;
  options.data_listen = config_.data_listen;
  options.grpc_advertised_host = AdvertisedHost(config_, options.grpc_listen);
  options.data_advertised_host = AdvertisedHost(config_, options.data_listen);
  options.routers = config_.routers;
  options.report_interval = config_.report_interval;
  ASSIGN_OR_RETURN(store_node_,
                   workers::StoreNode::Start(std::move(options), store_.get(), registry));
  return absl::OkStatus();
}

absl::Status Daemon::StartWorker(std::optional<Phase> phase,
                                 const std::vector<std::string>& routers,
                                 const std::shared_ptr<const workers::Model>& model,
                                 const std::shared_ptr<prometheus::Registry>& registry) {
  workers::WorkerOptions options;
  options.name = WorkerName(config_, phase);
  options.phase = phase == Phase::kPrefill  ? v1::PHASE_PREFILL
                  : phase == Phase::kDecode ? v1::PHASE_DECODE
                                            : v1::PHASE_MIXED;
  options.phase_planned = !phase;
  options.phase_pinned = config_.phase_pinned;
  options.prefill_on_decode = config_.prefill_on_decode;
  using Use = workers::EngineOptions::Use;
  options.prefill_engine = EngineOptionsFor(config_, Use::kPrefill, *model);
  options.decode_engine = EngineOptionsFor(config_, Use::kDecode, *model);
  options.cpus = config_.cpus;
  // In one process the two workers need no more than loopback, on ports of their own.
  const bool loopback = config_.role == Role::kAll;
  options.grpc_listen = loopback ? "127.0.0.1:0" : config_.worker_listen;
  options.data_listen = loopback ? "127.0.0.1:0" : config_.data_listen;
  options.grpc_advertised_host =
      loopback ? "127.0.0.1" : AdvertisedHost(config_, options.grpc_listen);
  options.data_advertised_host =
      loopback ? "127.0.0.1" : AdvertisedHost(config_, options.data_listen);
  options.routers = routers;
  options.max_queued = config_.max_queued;
  options.chunk_tokens = config_.chunk_tokens;
  options.handoff_buffer_bytes = config_.handoff_buffer_bytes;
  options.handoff_lease = config_.handoff_lease;
  options.link_probe_share = config_.link_probe_permille / 1000.0;
  options.report_interval = config_.report_interval;
  options.tpot_objective = config_.tpot_objective;
  options.prefill_sequences = config_.prefill_sequences;
  options.prefill_overtake_tokens = config_.prefill_overtake_tokens;
  options.decode_kv_tokens = config_.decode_kv_tokens;
  options.parked_bytes = config_.parked_bytes;
  options.store = store_.get();
  options.shares_store = !workers_.empty();
  ASSIGN_OR_RETURN(options.profile, LoadProfile(config_));
  if (config_.kv_floor != "auto") {
    ASSIGN_OR_RETURN(options.kv_floor, kvstore::codec::ParseLevel(config_.kv_floor));
  }
  options.kv_threads = config_.kv_threads;
  options.profile_at_start = config_.profile_at_start;
  options.speed_cache_path = config_.speed_cache_path;
  options.uses_gpus = config_.gpu_layers != 0;
  ASSIGN_OR_RETURN(auto worker, workers::Worker::Start(std::move(options), model, registry));
  workers_.push_back(std::move(worker));
  return absl::OkStatus();
}

void Daemon::WaitReady() {
  // Both workers are in this process: they register within milliseconds.
  const Stopwatch waited;
  while (!router_->ready() && waited.seconds() < 10) std::this_thread::sleep_for(kPollInterval);
}

absl::Status Daemon::WritePortFile() const {
  nlohmann::json ports;
  if (router_ != nullptr) ports["router"] = router_->port();
  if (metrics_server_ != nullptr) ports["metrics"] = metrics_server_->port();
  if (store_node_ != nullptr) {
    ports["store"] = {{"grpc", store_node_->grpc_port()}, {"data", store_node_->data_port()}};
  }
  for (const auto& worker : workers_) {
    ports["workers"].push_back({{"grpc", worker->grpc_port()}, {"data", worker->data_port()}});
  }
  return Annotate(WriteWholeFile(config_.port_file, ports.dump(2) + "\n"), "port_file");
}

void Daemon::Drain() {
  const auto unfinished = [this] {
    uint32_t n = router_ != nullptr ? router_->in_flight() : 0;
    for (const auto& worker : workers_) n += worker->unfinished();
    return n;
  };
  spdlog::info("draining unfinished={} timeout={}", unfinished(),
               absl::FormatDuration(config_.drain_timeout));
  if (router_ != nullptr) {
    router_->Drain();
  } else {
    for (const auto& worker : workers_) worker->Drain();
    if (store_node_ != nullptr) store_node_->Drain();
  }
  // A worker stays for a moment longer than its last request: one may be on its way from a router
  // that has not read yet that the worker drains.
  const double quiet_s = config_.role == Role::kWorker || config_.role == Role::kStore
                             ? absl::ToDoubleSeconds(config_.report_interval)
                             : 0;
  const Stopwatch waited;
  Stopwatch quiet;
  while (waited.seconds() < absl::ToDoubleSeconds(config_.drain_timeout)) {
    if (unfinished() > 0)
      quiet = Stopwatch();
    else if (quiet.seconds() >= quiet_s)
      break;
    std::this_thread::sleep_for(kPollInterval);
  }
  if (const uint32_t left = unfinished(); left > 0) {
    spdlog::warn("drain_timeout reached, ending {} requests", left);
  }
}

Daemon::~Daemon() {
  if (router_ != nullptr) router_->Stop();
  for (const auto& worker : workers_) worker->Stop();
  if (store_node_ != nullptr) store_node_->Stop();
}

}  // namespace tandem::server
