// What the daemon was told to do: one struct, filled from defaults, a YAML file, the environment
// and flags, in that order. Read by main and by whatever main builds; nothing else reads flags or
// environment. The table behind it (names, bounds, help) is in config_properties.cc.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "scheduler/core/prefill_policy.h"

namespace tandem::server {

enum class Role { kAll, kRouter, kWorker, kStore };
enum class Phase { kPrefill, kDecode, kMixed };

/// "all", "router", "worker", "store".
std::string_view RoleName(Role role);
/// "prefill", "decode", "mixed".
std::string_view PhaseName(Phase phase);

/// Member initialisers are the defaults. Meaning, units and bounds: `tandemd --help` or
/// docs/configure.md, both written from config_properties.cc. Addresses are "host:port".
struct Config {
  // Every role.
  Role role = Role::kAll;
  std::string model;
  std::string metrics_listen = "127.0.0.1:9470";
  bool insecure = false;
  std::string log_level = "info";
  std::string log_format = "text";
  absl::Duration drain_timeout = absl::Seconds(30);
  std::string port_file;
  absl::Duration tpot_objective = absl::Milliseconds(100);

  // Router.
  std::string listen = "127.0.0.1:8470";
  std::vector<std::string> tenants = {"default"};
  uint32_t max_requests = 256;
  absl::Duration retry_after = absl::Seconds(1);
  uint64_t max_prompt_bytes = 4 << 20;
  uint64_t max_message_bytes = 128 << 20;
  absl::Duration worker_timeout = absl::Seconds(5);
  absl::Duration ttft_objective = absl::Milliseconds(250);
  std::vector<std::string> tenant_limits;
  absl::Duration max_ttft;
  uint32_t dispatch_ahead = 2;
  absl::Duration stall_timeout = absl::Minutes(1);
  absl::Duration resume_timeout = absl::Seconds(30);
  uint32_t resume_budget = 20;
  std::string planner = "on";
  absl::Duration planner_interval = absl::Seconds(1);
  absl::Duration planner_min_dwell = absl::Seconds(30);
  uint32_t planner_min_gain = 20;

  // Worker.
  /// Unset: `auto`.
  std::optional<Phase> phase;
  bool phase_pinned = false;
  bool prefill_on_decode = true;
  std::string name;
  std::vector<std::string> routers;
  std::string worker_listen = "127.0.0.1:0";
  std::string data_listen = "127.0.0.1:0";
  std::string advertise_host;
  uint32_t context_tokens = 0;
  uint32_t prefill_sequences = 8;
  uint32_t decode_sequences = 16;
  uint32_t step_tokens = 512;
  uint32_t chunk_tokens = 256;
  std::string k_type = "f16";
  std::string v_type = "f16";
  bool flash_attention = true;
  uint32_t threads = 0;
  std::vector<int32_t> cpus;
  int32_t gpu_layers = -1;
  uint32_t max_queued = 256;
  uint32_t prefill_overtake_tokens = scheduler::kDefaultOvertakeTokens;
  uint32_t decode_kv_tokens = 0;
  uint64_t parked_bytes = 256 << 20;
  uint64_t handoff_buffer_bytes = 1 << 30;
  absl::Duration handoff_lease = absl::Seconds(30);
  uint32_t link_probe_permille = 10;
  absl::Duration report_interval = absl::Milliseconds(250);
  uint32_t retained_prompts = 8;
  std::string kv_floor = "auto";
  std::string kv_profile;
  uint32_t kv_threads = 1;
  absl::Duration profile_at_start = absl::Seconds(3);
  std::string speed_cache_path;

  // Worker and store.
  uint64_t kv_memory_bytes = 1 << 30;
  std::string kv_disk_path;
  uint64_t kv_disk_bytes = uint64_t{16} << 30;
  std::vector<std::string> kv_redis;
  std::string kv_redis_username;
  std::string kv_redis_password_file;
  absl::Duration kv_redis_timeout = absl::Milliseconds(100);
  absl::Duration kv_redis_ttl = absl::Hours(24);
};

/// What to print, and the process's exit code, instead of running.
struct PrintAndExit {
  std::string text;
  int code = 0;
};

struct ParsedCommandLine {
  Config config;
  /// Property name to where its value came from ("--listen", "TANDEM_LISTEN", "tandem.yaml:3");
  /// properties at their default are absent.
  std::map<std::string, std::string> origins;
  /// Set upon --help, --version and --check-config.
  std::optional<PrintAndExit> exit;
  /// To be logged at start: legal settings that will probably disappoint.
  std::vector<std::string> warnings;
};

/// Reads the command line (`args[0]` is the program), the environment through `getenv` (null for
/// unset) and the file that --config or TANDEM_CONFIG names, and validates the result.
/// INVALID_ARGUMENT names the key, its value, what is allowed and where the value came from;
/// NOT_FOUND when the file cannot be read; else as Validate. Thread-safe when `getenv` is.
absl::StatusOr<ParsedCommandLine> ParseConfig(std::span<char* const> args,
                                              std::function<const char*(const char*)> getenv);

/// Puts the properties of a YAML document into `config` and their places, "`file`:line", into
/// `origins`. INVALID_ARGUMENT as above; then both are partly changed. Never throws.
absl::Status ApplyYaml(std::string_view yaml, std::string_view file, Config& config,
                       std::map<std::string, std::string>& origins);

/// Checks what concerns several properties at once. INVALID_ARGUMENT or, for a part that this
/// version does not have, UNIMPLEMENTED.
absl::Status Validate(const Config& config);

/// Legal settings that will probably disappoint, in words.
std::vector<std::string> Warnings(const Config& config);

/// The effective configuration as YAML that ApplyYaml reads back; with the origins as comments.
std::string ToYaml(const Config& config, const std::map<std::string, std::string>& origins);

/// Engines that this process runs: two for `all`, one for `worker`, else none.
uint32_t EnginesInProcess(const Config& config);
/// `threads`, or the cores (of `cpus`, when that is set) shared out among the process's engines;
/// at least 1.
uint32_t EngineThreads(const Config& config);
/// `name`, or the host's name; with "-prefill" or "-decode" behind it where the process has both
/// or the name is the host's; with "-worker" where that is so and there is no phase.
std::string WorkerName(const Config& config, std::optional<Phase> phase);
/// `name`, or the host's name with "-store" behind it.
std::string StoreName(const Config& config);
/// The host under which others reach a port that is bound to `listen_address`: advertise_host,
/// else the address's own host, else (0.0.0.0, ::) the host's name. Brackets around IPv6.
std::string AdvertisedHost(const Config& config, std::string_view listen_address);

}  // namespace tandem::server
