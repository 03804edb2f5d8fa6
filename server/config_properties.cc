#include "server/config_properties.h"

#include <algorithm>
#include <iterator>
#include <type_traits>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_join.h"
#include "base/status.h"
#include "server/config_values.h"
#include "server/tenant_limits.h"

namespace tandem::server {
namespace {

constexpr uint64_t kKiB = 1024, kMiB = kKiB * 1024, kGiB = kMiB * 1024, kTiB = kGiB * 1024;
constexpr int64_t kMs = 1'000'000;  // nanoseconds
constexpr uint64_t kSecond = 1'000'000'000, kMinute = 60 * kSecond, kHour = 60 * kMinute;

const std::vector<const char*> kRoles = {"all", "router", "worker", "store"};
const std::vector<const char*> kPhases = {"prefill", "decode", "mixed", "auto"};
constexpr char kAuto[] = "auto";
const std::vector<const char*> kCacheTypes = {"f32",  "f16",  "bf16", "q8_0",  "q5_1",
                                              "q5_0", "q4_1", "q4_0", "iq4_nl"};

std::vector<Property> EveryRole() {
  constexpr Users kUsers = Users::kEveryRole;
  return {
      {"role", kUsers, &Config::role,
       "What this process is. `all`: a router, a prefill worker and a decode worker, on loopback. "
       "`store`: a node that keeps KV for others and computes nothing.",
       TextKind::kWord, 0, 0, kRoles},
      {"model", kUsers, &Config::model,
       "The GGUF file to serve. Required, but for a store. A router reads only its vocabulary.",
       TextKind::kPath},
      {"metrics_listen", kUsers, &Config::metrics_listen,
       "Where Prometheus scrapes `/metrics`. Empty: nowhere.", TextKind::kOptionalListener},
      {"insecure", kUsers, &Config::insecure,
       "Permit listening on addresses that other machines reach, although nothing is encrypted and "
       "nobody is authenticated."},
      {"log_level",
       kUsers,
       &Config::log_level,
       "The least severe lines to log.",
       TextKind::kWord,
       0,
       0,
       {"debug", "info", "warn", "error"}},
      {"log_format",
       kUsers,
       &Config::log_format,
       "How log lines look; they go to stderr.",
       TextKind::kWord,
       0,
       0,
       {"text", "json"}},
      {"drain_timeout", kUsers, &Config::drain_timeout,
       "After SIGTERM, how long running requests may take to finish.", TextKind::kAny, kHour, 0},
      {"port_file", kUsers, &Config::port_file,
       "A file to which the bound ports are written as JSON once the process is ready; for scripts "
       "that use port 0. Empty: none.",
       TextKind::kPath},
      {"tpot_objective", kUsers, &Config::tpot_objective,
       "The time per output token, after the first, that is aimed at. Workers keep their steps, "
       "and "
       "the pieces of prompts between them, short enough for it.",
       TextKind::kAny, kMinute, kMs},
  };
}

std::vector<Property> RouterOnly() {
  constexpr Users kUsers = Users::kRouter;
  return {
      {"listen", kUsers, &Config::listen, "Where clients and workers reach the router, by gRPC.",
       TextKind::kListener},
      {"tenants", kUsers, &Config::tenants, "The tenants whose requests are served.",
       TextKind::kIdentifier},
      {"tenant_limits", kUsers, &Config::tenant_limits,
       "What a tenant may have, besides being served at all. `weight`: its share where tenants "
       "compete, against 1 of the others. `rate`: requests per second. `burst`: requests that may "
       "come at once; one second's, if it is not set. `running`: requests on workers at once.",
       TextKind::kTenantLimits},
      {"max_requests", kUsers, &Config::max_requests,
       "Requests in flight at once, those that wait for their turn included; more are refused with "
       "RESOURCE_EXHAUSTED, those of the tenant that has most of the queue first.",
       TextKind::kAny, 1'000'000, 1},
      {"max_ttft", kUsers, &Config::max_ttft,
       "A request whose first token would probably take longer is refused at once, with the time "
       "to come back, as is one that would miss its own deadline. 0: its deadline alone counts.",
       TextKind::kAny, kHour, 0},
      {"dispatch_ahead", kUsers, &Config::dispatch_ahead,
       "Full steps of work that may wait on a prefill worker; what is more waits in the router, "
       "where tenants and priorities are still told apart.",
       TextKind::kAny, 1000, 1},
      {"retry_after", kUsers, &Config::retry_after,
       "The least delay that a refused client is told to wait before it tries again; longer when "
       "the queue will take longer.",
       TextKind::kAny, 10 * kMinute, 10 * kMs},
      {"max_prompt_bytes", kUsers, &Config::max_prompt_bytes, "The longest prompt text.",
       TextKind::kAny, kGiB, 1},
      {"max_message_bytes", kUsers, &Config::max_message_bytes,
       "The largest gRPC message that is read at all. Between this and max_prompt_bytes a prompt "
       "is refused with a precise message, above it by gRPC itself.",
       TextKind::kAny, kGiB, static_cast<int64_t>(64 * kKiB)},
      {"worker_timeout", kUsers, &Config::worker_timeout,
       "A worker that has not reported for so long is lost: its requests go on elsewhere.",
       TextKind::kAny, 10 * kMinute, 100 * kMs},
      {"stall_timeout", kUsers, &Config::stall_timeout,
       "So is a worker that reports and has work, but makes no step for so long. Longer than its "
       "longest step.",
       TextKind::kAny, kHour, static_cast<int64_t>(kSecond)},
      {"resume_timeout", kUsers, &Config::resume_timeout,
       "How long a request waits for a worker when the last of a phase has gone, whether it was "
       "running there or is new.",
       TextKind::kAny, kHour, 0},
      {"resume_budget", kUsers, &Config::resume_budget,
       "How many requests may be resumed after failures, for each hundred that come; besides one a "
       "second, and a hundred saved up. More fail: a storm must not take the cluster down.",
       TextKind::kAny, 1000, 0},
      {"planner",
       kUsers,
       &Config::planner,
       "Whether this router gives phases to workers whose `phase` is `auto`, and changes them when "
       "requests, links or nodes do. `dry-run`: it only tells what it would do. Of several routers "
       "one "
       "decides.",
       TextKind::kWord,
       0,
       0,
       {"off", "dry-run", "on"}},
      {"planner_interval", kUsers, &Config::planner_interval,
       "How often the planner looks whether something has changed.", TextKind::kAny, kMinute,
       100 * kMs},
      {"planner_min_dwell", kUsers, &Config::planner_min_dwell,
       "The least time between two changes of phases, but for those that replace lost workers.",
       TextKind::kAny, 24 * kHour, static_cast<int64_t>(kSecond)},
      {"planner_min_gain", kUsers, &Config::planner_min_gain,
       "By how many per cent the goodput must rise for a change, where the present phases carry "
       "the requests.",
       TextKind::kAny, 1000, 1},
      {"ttft_objective", kUsers, &Config::ttft_objective,
       "The time to first token that is aimed at: cached KV is loaded at the finest level that "
       "still meets it. 0: as fast as can be.",
       TextKind::kAny, kHour, 0},
  };
}

std::vector<Property> WorkerPhase() {
  constexpr Users kUsers = Users::kWorker;
  return {
      {"phase", kUsers, &Config::phase,
       "What the worker does, until an operator tells it otherwise. `mixed`: both, taking turns. "
       "`auto`: what the routers' planner finds best, and that may change; mixed, until it says. "
       "With `role: all` there is one worker for prefill and one for decode.",
       TextKind::kWord, 0, 0, kPhases},
      {"phase_pinned", kUsers, &Config::phase_pinned,
       "Keep that phase, whatever an operator assigns."},
      {"prefill_on_decode", kUsers, &Config::prefill_on_decode,
       "A decode worker can compute prompts too, between its steps, when that is the quickest way. "
       "Its prefill engine takes memory."},
  };
}

std::vector<Property> WorkerEngine() {
  constexpr Users kUsers = Users::kWorker;
  return {
      {"context_tokens", kUsers, &Config::context_tokens,
       "Tokens of prompt and answer together. 0: what the model was trained with, at most 8192.",
       TextKind::kAny, 1 << 20, 0},
      {"prefill_sequences", kUsers, &Config::prefill_sequences,
       "Prompts held at once by a prefill worker.", TextKind::kAny, 128, 1},
      {"decode_sequences", kUsers, &Config::decode_sequences,
       "Sequences generated at once by a decode worker.", TextKind::kAny, 256, 1},
      {"step_tokens", kUsers, &Config::step_tokens,
       "Tokens of one forward pass at most. Larger is faster for prompts, and takes memory.",
       TextKind::kAny, 65536, 1},
      {"chunk_tokens", kUsers, &Config::chunk_tokens,
       "Tokens of KV that are handed over as one piece.", TextKind::kAny, 65536, 1},
      {"k_type", kUsers, &Config::k_type,
       "Element type of the cached keys; the same on all workers.", TextKind::kWord, 0, 0,
       kCacheTypes},
      {"v_type", kUsers, &Config::v_type,
       "Element type of the cached values; the same on all workers. Quantised types need "
       "`flash_attention`.",
       TextKind::kWord, 0, 0, kCacheTypes},
      {"flash_attention", kUsers, &Config::flash_attention,
       "Compute attention in one fused pass; the same on all workers."},
      {"threads", kUsers, &Config::threads,
       "Compute threads of each engine. 0: the cores that are free for it. Never more engine "
       "threads than cores: they wait by spinning.",
       TextKind::kAny, 1024, 0},
      {"cpus", kUsers, &Config::cpus, "Cores to pin the engine threads to. Empty: no pinning.",
       TextKind::kAny, 4095, 0},
      {"gpu_layers", kUsers, &Config::gpu_layers,
       "Layers to compute on a GPU, where libllama was built for one. -1: all.", TextKind::kAny,
       10'000, -1},
  };
}

std::vector<Property> WorkerLimits() {
  constexpr Users kUsers = Users::kWorker;
  return {
      {"max_queued", kUsers, &Config::max_queued,
       "Requests that may wait; more are refused with RESOURCE_EXHAUSTED.", TextKind::kAny,
       1'000'000, 1},
      {"prefill_overtake_tokens", kUsers, &Config::prefill_overtake_tokens,
       "How many tokens of a tenant's shorter prompts may be computed before a longer one of its "
       "own that came first. 0: strictly first come, first served.",
       TextKind::kAny, 1 << 20, 0},
      {"decode_kv_tokens", kUsers, &Config::decode_kv_tokens,
       "Tokens of KV for all sequences that are generated at once. When they need more, the "
       "youngest "
       "are parked until there is room. 0: decode_sequences × context_tokens.",
       TextKind::kAny, 1 << 30, 0},
      {"parked_bytes", kUsers, &Config::parked_bytes,
       "Memory for the KV of parked sequences; more goes to the cache's memory and disk "
       "(`kv_memory_bytes`).",
       TextKind::kAny, 16 * kTiB, 0},
      {"handoff_buffer_bytes", kUsers, &Config::handoff_buffer_bytes,
       "Computed KV that may wait to be fetched. When it is full, no further prompt is begun.",
       TextKind::kAny, 16 * kTiB, static_cast<int64_t>(kMiB)},
      {"handoff_lease", kUsers, &Config::handoff_lease,
       "KV that nobody has fetched for so long is dropped.", TextKind::kAny, kHour, 100 * kMs},
      {"link_probe_permille", kUsers, &Config::link_probe_permille,
       "Thousandths of the time that a node's port, in either direction, may be busy with probes "
       "of links over which no KV goes. 0: nothing is probed.",
       TextKind::kAny, 10, 0},
  };
}

std::vector<Property> WorkerReuse() {
  constexpr Users kUsers = Users::kWorker;
  return {
      {"retained_prompts", kUsers, &Config::retained_prompts,
       "Prompts whose KV stays in the prefill engine after they are done, for the next one that "
       "begins alike. 0: none.",
       TextKind::kAny, 64, 0},
      {"kv_floor",
       kUsers,
       &Config::kv_floor,
       "The coarsest level at which KV is kept and moved. `auto`: `q1` where a profile has "
       "measured "
       "its loss on this very model, else `lossless`.",
       TextKind::kWord,
       0,
       0,
       {"auto", "lossless", "q1", "q2", "q3", "q4"}},
      {"kv_profile", kUsers, &Config::kv_profile,
       "The model's KV profile, as `tandem kv profile` makes it. Empty: the file beside the model "
       "that has its name and ends in `.kvprofile`, if there is one.",
       TextKind::kPath},
      {"kv_threads", kUsers, &Config::kv_threads, "Threads that encode and decode KV.",
       TextKind::kAny, 256, 1},
      {"profile_at_start", kUsers, &Config::profile_at_start,
       "How long the speed of prefill and decode steps is measured before the worker registers, "
       "unless an earlier start of the same model, machine and settings has left it in "
       "`speed_cache_path`. 0: neither; it is learned from requests alone.",
       TextKind::kAny, kMinute, 0},
      {"speed_cache_path", kUsers, &Config::speed_cache_path,
       "A folder where what was learned of the speed is kept for the next start. Empty: "
       "`$XDG_CACHE_HOME/tandem`, or `~/.cache/tandem`.",
       TextKind::kPath},
  };
}

std::vector<Property> NodeIdentity() {
  constexpr Users kUsers = Users::kKeeper;
  return {
      {"name", kUsers, &Config::name,
       "The node's name in status, logs and metrics. Empty: the host's name and what it does.",
       TextKind::kOptionalIdentifier},
      {"routers", kUsers, &Config::routers,
       "Every router to report to. Required for the roles `worker` and `store`.", TextKind::kPeer},
      {"worker_listen", kUsers, &Config::worker_listen,
       "Where routers and operators reach the node, by gRPC. With `role: all`: loopback.",
       TextKind::kListener},
      {"data_listen", kUsers, &Config::data_listen,
       "Where other nodes fetch KV from this one. With `role: all`: loopback.",
       TextKind::kListener},
      {"advertise_host", kUsers, &Config::advertise_host,
       "The host under which others reach this node. Empty: the host of `worker_listen` and "
       "`data_listen`, or the machine's name where those are 0.0.0.0 or [::].",
       TextKind::kHost},
      {"report_interval", kUsers, &Config::report_interval,
       "How often a node reports its load, and what it holds, to the routers.", TextKind::kAny,
       kMinute, 10 * kMs},
  };
}

std::vector<Property> KvStore() {
  constexpr Users kUsers = Users::kKeeper;
  return {
      {"kv_memory_bytes", kUsers, &Config::kv_memory_bytes,
       "Memory for cached KV. 0: nothing is cached.", TextKind::kAny, 16 * kTiB, 0},
      {"kv_disk_path", kUsers, &Config::kv_disk_path,
       "A folder for cached KV that survives a restart. Empty: none.", TextKind::kPath},
      {"kv_disk_bytes", kUsers, &Config::kv_disk_bytes, "Room for cached KV on disk.",
       TextKind::kAny, 1024 * kTiB, static_cast<int64_t>(kMiB)},
      {"kv_redis", kUsers, &Config::kv_redis,
       "A Redis, or some nodes of a Redis Cluster, that several machines share as a further tier. "
       "Empty: none.",
       TextKind::kPeer},
      {"kv_redis_username", kUsers, &Config::kv_redis_username,
       "Its user. Empty: the default one."},
      {"kv_redis_password_file", kUsers, &Config::kv_redis_password_file,
       "A file with its password. Empty: none.", TextKind::kPath},
      {"kv_redis_timeout", kUsers, &Config::kv_redis_timeout,
       "No operation on Redis is waited for longer.", TextKind::kAny, kMinute, kMs},
      {"kv_redis_ttl", kUsers, &Config::kv_redis_ttl,
       "Chunks that were not written anew for so long leave Redis. 0: never.", TextKind::kAny,
       24 * 365 * kHour, 0},
  };
}

std::vector<Property> MakeTable() {
  std::vector<Property> all;
  for (auto part : {EveryRole(), RouterOnly(), WorkerPhase(), WorkerEngine(), WorkerLimits(),
                    WorkerReuse(), NodeIdentity(), KvStore()}) {
    std::move(part.begin(), part.end(), std::back_inserter(all));
  }
  return all;
}

bool IsIdentifier(std::string_view text) {
  return !text.empty() && text.size() <= 64 && std::all_of(text.begin(), text.end(), [](char c) {
    return absl::ascii_isalnum(c) || c == '.' || c == '_' || c == '-';
  });
}

/// "" when `text` is allowed, else what is wrong with it.
std::string TextFault(const Property& property, const std::string& text) {
  const std::string kFault = "not allowed";
  switch (property.text) {
    case TextKind::kAny:
      return "";
    case TextKind::kPath:
      // Such a path is a slip, e.g. a line break inside quotes.
      return std::any_of(text.begin(), text.end(), absl::ascii_iscntrl)
                 ? "a character that no path has"
                 : "";
    case TextKind::kWord: {
      const auto& words = property.words;
      return std::find(words.begin(), words.end(), text) == words.end() ? kFault : "";
    }
    case TextKind::kIdentifier:
      return IsIdentifier(text) ? "" : kFault;
    case TextKind::kOptionalIdentifier:
      return text.empty() || IsIdentifier(text) ? "" : kFault;
    case TextKind::kTenantLimits:
      return std::string(ParseTenantLimits(text).status().message());
    case TextKind::kHost:
      // A port of its own makes the host's syntax the only thing that can be wrong.
      if (text.empty() || ParseHostPort(text + ":1").ok()) return "";
      return ParseHostPort(absl::StrCat("[", text, "]:1")).ok() ? "" : kFault;
    case TextKind::kOptionalListener:
      if (text.empty()) return "";
      [[fallthrough]];
    case TextKind::kListener:
    case TextKind::kPeer:
      break;
  }
  const auto address = ParseHostPort(text);
  if (!address.ok()) return std::string(address.status().message());
  return property.text == TextKind::kPeer && address->port == 0 ? "the port is 0" : "";
}

/// Reads one value of each member type; an overload returns "" or what is wrong.
struct Reader {
  const Property& property;

  std::string operator()(const std::string& text, std::string& out) const {
    out = text;
    return TextFault(property, text);
  }
  std::string operator()(const std::string& text, bool& out) const {
    return absl::SimpleAtob(text, &out) ? "" : "neither true nor false";
  }
  template <typename Integer>
  std::string Number(const std::string& text, Integer& out) const {
    int64_t number = 0;
    if (!absl::SimpleAtoi(text, &number)) return "not a whole number";
    if (number < property.min || number > static_cast<int64_t>(property.max)) return "out of range";
    out = static_cast<Integer>(number);
    return "";
  }
  std::string operator()(const std::string& text, uint32_t& out) const { return Number(text, out); }
  std::string operator()(const std::string& text, int32_t& out) const { return Number(text, out); }
  std::string operator()(const std::string& text, uint64_t& out) const {
    const auto bytes = ParseBytes(text);
    if (!bytes.ok()) return std::string(bytes.status().message());
    out = *bytes;
    const bool fits = out >= static_cast<uint64_t>(property.min) && out <= property.max;
    return fits ? "" : "out of range";
  }
  std::string operator()(const std::string& text, absl::Duration& out) const {
    const auto duration = ParseDuration(text);
    if (!duration.ok()) return std::string(duration.status().message());
    out = *duration;
    const bool fits = out >= absl::Nanoseconds(property.min) &&
                      out <= absl::Nanoseconds(static_cast<int64_t>(property.max));
    return fits ? "" : "out of range";
  }
  template <typename Enum>
  std::string Word(const std::string& text, Enum& out) const {
    const auto found = std::find(property.words.begin(), property.words.end(), text);
    if (found == property.words.end()) return "not allowed";
    out = static_cast<Enum>(found - property.words.begin());
    return "";
  }
  std::string operator()(const std::string& text, Role& out) const { return Word(text, out); }
  std::string operator()(const std::string& text, std::optional<Phase>& out) const {
    std::string fault = Word(text, out.emplace());
    if (text == kAuto) out.reset();
    return fault;
  }
};

template <typename T>
struct IsVector : std::false_type {};
template <typename T>
struct IsVector<std::vector<T>> : std::true_type {};

template <typename T>
struct ValueOf;
template <typename T>
struct ValueOf<T Config::*> {
  using Type = T;
};

template <typename T>
std::string ReadAll(const Property& property, std::span<const std::string> values, T& out) {
  const Reader read{property};
  if constexpr (IsVector<T>::value) {
    T result;
    for (const std::string& value : values) {
      typename T::value_type element{};
      if (std::string fault = read(value, element); !fault.empty()) {
        return values.size() == 1 ? fault : absl::StrCat("'", value, "': ", fault);
      }
      if (std::find(result.begin(), result.end(), element) != result.end()) {
        return absl::StrCat("'", value, "' is there twice");
      }
      result.push_back(std::move(element));
    }
    out = std::move(result);
    return "";
  } else {
    T result{};
    std::string fault = read(values[0], result);
    if (fault.empty()) out = std::move(result);
    return fault;
  }
}

std::string DurationText(int64_t nanoseconds) {
  return absl::FormatDuration(absl::Nanoseconds(nanoseconds));
}

struct Writer {
  std::string operator()(const std::string& value) const { return value; }
  std::string operator()(bool value) const { return value ? "true" : "false"; }
  std::string operator()(uint32_t value) const { return absl::StrCat(value); }
  std::string operator()(int32_t value) const { return absl::StrCat(value); }
  std::string operator()(uint64_t value) const { return FormatBytes(value); }
  std::string operator()(absl::Duration value) const { return absl::FormatDuration(value); }
  std::string operator()(Role value) const { return std::string(RoleName(value)); }
  std::string operator()(Phase value) const { return std::string(PhaseName(value)); }
};

std::string AllowedText(const Property& property) {
  switch (property.text) {
    case TextKind::kAny:
      return "any text";
    case TextKind::kPath:
      return "a path";
    case TextKind::kWord:
      return absl::StrCat("one of ", absl::StrJoin(property.words, ", "));
    case TextKind::kListener:
      return "host:port";
    case TextKind::kOptionalListener:
      return "host:port or nothing";
    case TextKind::kPeer:
      return "host:port with a port from 1 to 65535";
    case TextKind::kHost:
      return "a host's name or address, or nothing";
    case TextKind::kIdentifier:
      return "1 to 64 letters, digits, '.', '_' and '-'";
    case TextKind::kOptionalIdentifier:
      return "at most 64 letters, digits, '.', '_' and '-'";
    case TextKind::kTenantLimits:
      return "a tenant and its limits, like `alice weight=2 rate=10 burst=20 running=8`";
  }
  return "";
}

}  // namespace

std::string_view RoleName(Role role) { return kRoles[static_cast<size_t>(role)]; }
std::string_view PhaseName(Phase phase) { return kPhases[static_cast<size_t>(phase)]; }

std::span<const Property> Properties() {
  static const auto* const table = new std::vector<Property>(MakeTable());
  return *table;
}

const Property* FindProperty(std::string_view name) {
  std::string key(name);
  std::replace(key.begin(), key.end(), '-', '_');
  for (const Property& property : Properties()) {
    if (key == property.name) return &property;
  }
  return nullptr;
}

bool IsList(const Property& property) {
  return std::visit(
      [](auto member) { return IsVector<typename ValueOf<decltype(member)>::Type>::value; },
      property.member);
}

bool IsFlag(const Property& property) {
  return std::holds_alternative<bool Config::*>(property.member);
}

absl::Status SetProperty(const Property& property, std::span<const std::string> values,
                         std::string_view origin, Config& config) {
  const std::string fault = std::visit(
      [&](auto member) { return ReadAll(property, values, config.*member); }, property.member);
  if (fault.empty()) return absl::OkStatus();
  // A value may be megabytes of someone's mistaken file; its beginning identifies it.
  std::string shown = absl::StrJoin(values, ",").substr(0, 200);
  return absl::InvalidArgumentError(absl::StrCat(property.name, " is '", shown, "' (from ",
                                                 View(origin), "): ", fault, "; allowed is ",
                                                 Allowed(property)));
}

std::vector<std::string> PropertyValues(const Property& property, const Config& config) {
  return std::visit(
      [&](auto member) -> std::vector<std::string> {
        const auto& value = config.*member;
        using T = typename ValueOf<decltype(member)>::Type;
        if constexpr (IsVector<T>::value) {
          std::vector<std::string> texts;
          for (const auto& element : value) texts.push_back(Writer()(element));
          return texts;
        } else if constexpr (std::is_same_v<T, std::optional<Phase>>) {
          return {value ? Writer()(*value) : kAuto};
        } else {
          return {Writer()(value)};
        }
      },
      property.member);
}

std::string Allowed(const Property& property) {
  const auto max = static_cast<int64_t>(property.max);
  std::string element = std::visit(
      [&](auto member) -> std::string {
        using T = typename ValueOf<decltype(member)>::Type;
        if constexpr (std::is_same_v<T, bool>) return "true or false";
        if constexpr (std::is_same_v<T, uint64_t>) {
          return absl::StrCat("a size from ", FormatBytes(property.min), " to ",
                              FormatBytes(property.max));
        }
        if constexpr (std::is_same_v<T, absl::Duration>) {
          return absl::StrCat("a duration from ", DurationText(property.min), " to ",
                              DurationText(max));
        }
        if constexpr (std::is_same_v<T, uint32_t> || std::is_same_v<T, int32_t> ||
                      std::is_same_v<T, std::vector<int32_t>>) {
          return absl::StrCat("a whole number from ", property.min, " to ", max);
        }
        return AllowedText(property);
      },
      property.member);
  return IsList(property) ? absl::StrCat("a list, each ", element) : element;
}

}  // namespace tandem::server
