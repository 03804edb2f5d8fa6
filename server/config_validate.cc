// What concerns several properties at once, and the values that follow from others.
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <set>
#include <thread>

#include "absl/strings/str_join.h"
#include "base/status.h"
#include "server/config.h"
#include "server/config_values.h"
#include "server/tenant_limits.h"

namespace tandem::server {
namespace {

bool HasRouter(const Config& config) {
  return config.role == Role::kAll || config.role == Role::kRouter;
}
bool HasWorker(const Config& config) {
  return config.role == Role::kAll || config.role == Role::kWorker;
}

absl::Status ValidateListener(const Config& config, std::string_view name,
                              const std::string& address) {
  if (address.empty() || config.insecure) return absl::OkStatus();
  ASSIGN_OR_RETURN(const HostPort parsed, ParseHostPort(address));
  if (IsLoopback(parsed.host)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      View(name), " is '", address,
      "', which other machines may reach, and this version neither encrypts nor authenticates: "
      "listen on 127.0.0.1, or set insecure to true if the network is trusted"));
}

absl::Status ValidateListeners(const Config& config) {
  RETURN_IF_ERROR(ValidateListener(config, "metrics_listen", config.metrics_listen));
  if (HasRouter(config)) RETURN_IF_ERROR(ValidateListener(config, "listen", config.listen));
  // The workers of `all` listen on loopback, whatever is written for those of their own process.
  if (config.role != Role::kWorker && config.role != Role::kStore) return absl::OkStatus();
  RETURN_IF_ERROR(ValidateListener(config, "worker_listen", config.worker_listen));
  return ValidateListener(config, "data_listen", config.data_listen);
}

absl::Status ValidateRole(const Config& config) {
  const std::string role(RoleName(config.role));
  const bool store = config.role == Role::kStore;
  if (config.model.empty() && !store) {
    return absl::InvalidArgumentError(
        absl::StrCat("model is not set; role '", role, "' needs it: the path of a GGUF file"));
  }
  if (config.role != Role::kWorker && !store) return absl::OkStatus();
  if (!config.phase && config.phase_pinned && !store) {
    return absl::InvalidArgumentError(
        "phase_pinned is true and phase is auto; which phase is to be kept?");
  }
  if (config.routers.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "routers is empty; role '", role, "' needs at least one router to report to, host:port"));
  }
  if (store && config.kv_memory_bytes == 0) {
    return absl::InvalidArgumentError("kv_memory_bytes is 0; role 'store' needs some memory");
  }
  return absl::OkStatus();
}

absl::Status ValidateSizes(const Config& config) {
  if (config.context_tokens != 0 && config.chunk_tokens > config.context_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("chunk_tokens is ", config.chunk_tokens,
                                                   ", more than context_tokens, which is ",
                                                   config.context_tokens));
  }
  if (config.decode_kv_tokens != 0 && config.decode_kv_tokens < config.context_tokens) {
    return absl::InvalidArgumentError(absl::StrCat(
        "decode_kv_tokens is ", config.decode_kv_tokens, ", less than context_tokens, which is ",
        config.context_tokens, ": a sequence alone must fit"));
  }
  if (config.step_tokens < config.decode_sequences) {
    return absl::InvalidArgumentError(absl::StrCat(
        "step_tokens is ", config.step_tokens, ", less than decode_sequences, which is ",
        config.decode_sequences, ": a step has a token of every sequence"));
  }
  constexpr std::array kPlain = {"f32", "f16", "bf16"};
  const bool quantised_v = std::find(kPlain.begin(), kPlain.end(), config.v_type) == kPlain.end();
  if (quantised_v && !config.flash_attention) {
    return absl::InvalidArgumentError(
        absl::StrCat("v_type is '", config.v_type,
                     "' and flash_attention is false; without it v_type must be one of ",
                     absl::StrJoin(kPlain, ", ")));
  }
  return absl::OkStatus();
}

absl::Status ValidateStore(const Config& config) {
  if (config.kv_memory_bytes > 0) return absl::OkStatus();
  if (config.kv_disk_path.empty() && config.kv_redis.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("kv_memory_bytes is 0, so nothing is cached, but ",
                   config.kv_redis.empty() ? "kv_disk_path" : "kv_redis", " is set"));
}

absl::Status ValidateRouter(const Config& config) {
  if (config.tenants.empty()) {
    return absl::InvalidArgumentError("tenants is empty; nobody would be served");
  }
  std::set<std::string> limited;
  for (const std::string& limits : config.tenant_limits) {
    ASSIGN_OR_RETURN(const auto parsed, ParseTenantLimits(limits));
    const auto& tenants = config.tenants;
    if (std::find(tenants.begin(), tenants.end(), parsed.first) == tenants.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat("tenant_limits has '", parsed.first, "', which is not among the tenants"));
    }
    if (!limited.insert(parsed.first).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("tenant_limits has '", parsed.first, "' twice"));
    }
  }
  if (config.max_prompt_bytes > config.max_message_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "max_prompt_bytes is ", FormatBytes(config.max_prompt_bytes),
        ", more than max_message_bytes, which is ", FormatBytes(config.max_message_bytes)));
  }
  return absl::OkStatus();
}

uint32_t AvailableCores(const Config& config) {
  if (!config.cpus.empty()) return static_cast<uint32_t>(config.cpus.size());
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return static_cast<uint32_t>(CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

std::string HostName() {
  std::array<char, 256> name{};
  if (gethostname(name.data(), name.size() - 1) != 0 || name[0] == '\0') return "localhost";
  return name.data();
}

}  // namespace

absl::Status Validate(const Config& config) {
  RETURN_IF_ERROR(ValidateRole(config));
  RETURN_IF_ERROR(ValidateListeners(config));
  if (HasRouter(config)) RETURN_IF_ERROR(ValidateRouter(config));
  if (HasWorker(config)) RETURN_IF_ERROR(ValidateSizes(config));
  if (config.role != Role::kRouter) RETURN_IF_ERROR(ValidateStore(config));
  // On one process only: a worker's file says nothing about its routers' patience.
  if (config.role == Role::kAll && config.worker_timeout < 2 * config.report_interval) {
    return absl::InvalidArgumentError(absl::StrCat("worker_timeout is ",
                                                   absl::FormatDuration(config.worker_timeout),
                                                   ", less than twice report_interval, which is ",
                                                   absl::FormatDuration(config.report_interval)));
  }
  return absl::OkStatus();
}

std::vector<std::string> Warnings(const Config& config) {
  std::vector<std::string> warnings;
  if (!HasWorker(config)) return warnings;
  const uint32_t threads = EngineThreads(config) * EnginesInProcess(config);
  if (const uint32_t cores = AvailableCores(config); threads > cores) {
    warnings.push_back(absl::StrCat("threads: ", threads, " engine threads on ", cores,
                                    cores == 1 ? " core" : " cores",
                                    "; they wait by spinning and will be several times slower"));
  }
  if (config.role != Role::kWorker || !config.advertise_host.empty()) return warnings;
  const auto listener = ParseHostPort(config.worker_listen);
  if (!listener.ok() || !IsLoopback(listener->host)) return warnings;
  for (const std::string& router : config.routers) {
    const auto address = ParseHostPort(router);
    if (!address.ok() || IsLoopback(address->host)) continue;
    warnings.push_back(absl::StrCat("worker_listen is '", config.worker_listen, "', which router '",
                                    router, "' cannot reach unless it is on this machine"));
    break;
  }
  return warnings;
}

uint32_t EnginesInProcess(const Config& config) {
  if (config.role == Role::kAll) return 2;
  return config.role == Role::kWorker ? 1 : 0;
}

uint32_t EngineThreads(const Config& config) {
  if (config.threads != 0) return config.threads;
  return std::max(1u, AvailableCores(config) / std::max(1u, EnginesInProcess(config)));
}

std::string WorkerName(const Config& config, std::optional<Phase> phase) {
  const std::string suffix = absl::StrCat("-", phase ? View(PhaseName(*phase)) : "worker");
  if (config.name.empty()) return HostName() + suffix;
  return config.role == Role::kAll ? config.name + suffix : config.name;
}

std::string StoreName(const Config& config) {
  return config.name.empty() ? HostName() + "-store" : config.name;
}

std::string AdvertisedHost(const Config& config, std::string_view listen_address) {
  std::string host = config.advertise_host;
  if (host.empty()) {
    const auto address = ParseHostPort(listen_address);
    host = !address.ok() || IsAnyAddress(address->host) ? HostName() : address->host;
  }
  const bool bare_ipv6 = host.find(':') != std::string::npos && host.front() != '[';
  return bare_ipv6 ? absl::StrCat("[", host, "]") : host;
}

}  // namespace tandem::server
