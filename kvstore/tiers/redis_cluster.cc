#include "kvstore/tiers/redis_cluster.h"

#include <algorithm>
#include <charconv>
#include <map>

#include "base/status.h"
#include "spdlog/spdlog.h"

namespace tandem::kvstore::redis {
namespace {

/// A slot that moves while it is asked for sends a command on twice; more is a broken cluster.
constexpr int kMaxRounds = 5;

uint16_t Crc16(std::string_view bytes) {
  uint16_t crc = 0;
  for (const char byte : bytes) {
    crc ^= static_cast<uint16_t>(static_cast<uint8_t>(byte) << 8);
    for (int bit = 0; bit < 8; ++bit) {
      crc = static_cast<uint16_t>(crc & 0x8000 ? crc << 1 ^ 0x1021 : crc << 1);
    }
  }
  return crc;
}

bool IsError(const redisReply& reply, std::string_view prefix) {
  return reply.type == REDIS_REPLY_ERROR && TextOf(reply).starts_with(prefix);
}

/// "host:port" at the end of a redirection. A server that does not know its own name sends ":port".
std::optional<Address> RedirectionTarget(std::string_view error, const std::string& asked_host) {
  const std::string_view text = error.substr(error.rfind(' ') + 1);
  const size_t colon = text.rfind(':');
  if (colon == std::string_view::npos) return std::nullopt;
  Address address{.host = std::string(text.substr(0, colon))};
  if (address.host.empty()) address.host = asked_host;
  const char* const end = text.data() + text.size();
  const auto [rest, failure] = std::from_chars(text.data() + colon + 1, end, address.port);
  if (failure != std::errc() || rest != end) return std::nullopt;
  return address;
}

absl::Status RefusedBy(const Address& address, const redisReply& reply) {
  const std::string message = absl::StrCat("redis ", ToString(address), ": ", Quote(reply));
  return IsError(reply, "OOM") ? absl::ResourceExhaustedError(message)
                               : absl::UnavailableError(message);
}

}  // namespace

uint16_t SlotOf(std::string_view key) {
  if (const size_t open = key.find('{'); open != std::string_view::npos) {
    const size_t close = key.find('}', open + 1);
    if (close != std::string_view::npos && close > open + 1) {
      key = key.substr(open + 1, close - open - 1);
    }
  }
  return Crc16(key) % 16384;
}

Cluster::Cluster(Options options) : options_(std::move(options)) {
  for (const Address& seed : options_.seeds) FindOrAdd(seed).seed = true;
}

Cluster::Node& Cluster::FindOrAdd(const Address& address) {
  for (const auto& node : nodes_) {
    if (node->address.host == address.host && node->address.port == address.port) return *node;
  }
  nodes_.push_back(std::unique_ptr<Node>(new Node{
      .address = address, .breaker = CircuitBreaker(options_.max_failures, options_.retry_after)}));
  return *nodes_.back();
}

bool Cluster::healthy() const {
  return std::none_of(nodes_.begin(), nodes_.end(), [&](const auto& node) {
    return (node->serving || !have_map_) && node->breaker.open();
  });
}

std::vector<absl::StatusOr<Reply>> Cluster::Run(std::span<const KeyedCommand> commands,
                                                Deadline deadline) {
  Call call = {.commands = commands, .deadline = deadline};
  for (size_t i = 0; i < commands.size(); ++i) {
    call.results.emplace_back(absl::UnavailableError("redis: no node has the key"));
    call.open.push_back({.index = i});
  }
  for (int round = 0; round < kMaxRounds && !call.open.empty(); ++round) {
    if (stale_) {
      const absl::Status refreshed = RefreshMap(deadline);
      if (!refreshed.ok() && (!have_map_ || Now() >= deadline)) {
        for (const Job& job : call.open) call.results[job.index] = refreshed;
        break;
      }
    }
    RunRound(call);
  }
  ReportOutcomes();
  return std::move(call.results);
}

void Cluster::RunRound(Call& call) {
  std::map<Node*, std::vector<Job>> by_node;
  for (Job& job : std::exchange(call.open, {})) {
    Node* const node =
        job.target ? &FindOrAdd(*job.target) : owners_[SlotOf(call.commands[job.index].key)];
    if (node != nullptr) {
      by_node[node].push_back(std::move(job));
    } else {
      stale_ = true;  // a cluster that is being put together
    }
  }
  // One that failed last time may take all the time there is.
  std::vector<std::pair<Node*, std::vector<Job>>> groups(by_node.begin(), by_node.end());
  std::stable_sort(groups.begin(), groups.end(), [](const auto& a, const auto& b) {
    return a.first->breaker.failures() < b.first->breaker.failures();
  });
  for (auto& [node, jobs] : groups) RunAt(*node, std::move(jobs), call);
}

void Cluster::RunAt(Node& node, std::vector<Job> jobs, Call& call) {
  std::vector<Command> commands;
  for (const Job& job : jobs) {
    if (job.asking) commands.push_back({"ASKING"});
    commands.push_back(call.commands[job.index].command);
  }
  auto replies = Exchange(node, commands, call.deadline);
  if (!replies.ok()) return OnLost(replies.status(), std::move(jobs), call);
  auto reply = replies->begin();
  for (Job& job : jobs) {
    if (job.asking) ++reply;
    OnReply(node, std::move(job), std::move(*reply++), call);
  }
}

void Cluster::OnLost(const absl::Status& why, std::vector<Job> jobs, Call& call) {
  stale_ = true;
  for (Job& job : jobs) {
    call.results[job.index] = why;
    // A connection that was closed while idle, or a server that another has taken over from.
    if (!job.lost && Now() < call.deadline) {
      call.open.push_back({.index = job.index, .lost = true});
    }
  }
}

void Cluster::OnReply(Node& node, Job job, Reply reply, Call& call) {
  if (IsError(*reply, "MOVED ") || IsError(*reply, "ASK ")) {
    return Redirect(node, std::move(job), *reply, call);
  }
  absl::StatusOr<Reply>& result = call.results[job.index];
  if (reply->type != REDIS_REPLY_ERROR) {
    result = std::move(reply);
    return;
  }
  result = RefusedBy(node.address, *reply);
  if (absl::IsUnavailable(result.status())) {
    node.outcome = result.status();
    stale_ = true;  // e.g. a replica that was the owner
  }
}

void Cluster::Redirect(const Node& from, Job job, const redisReply& reply, Call& call) {
  call.results[job.index] = RefusedBy(from.address, reply);
  job.target = RedirectionTarget(TextOf(reply), from.address.host);
  if (!job.target) return;
  job.asking = IsError(reply, "ASK");
  if (!job.asking) stale_ = true;
  call.open.push_back(std::move(job));
}

absl::StatusOr<std::vector<Reply>> Cluster::Exchange(Node& node, std::span<const Command> commands,
                                                     Deadline deadline) {
  if (!node.breaker.Allows(options_.now())) {
    return absl::UnavailableError(
        absl::StrCat("redis ", ToString(node.address), " is left alone after failures"));
  }
  // Time that others have used up is not its failure.
  if (Now() >= deadline) return absl::UnavailableError("redis: no time left");
  if (node.connection == nullptr) {
    auto connection = Connection::Open(node.address, options_.login, deadline);
    if (!connection.ok()) {
      node.outcome = connection.status();
      return connection.status();
    }
    node.connection = *std::move(connection);
  }
  auto replies = node.connection->Exchange(commands, deadline);
  node.outcome = replies.status();
  if (!replies.ok()) node.connection.reset();
  return replies;
}

absl::Status Cluster::RefreshMap(Deadline deadline) {
  std::vector<Node*> candidates;
  for (const auto& node : nodes_) {
    if (node->breaker.Allows(options_.now())) candidates.push_back(node.get());
  }
  std::stable_sort(candidates.begin(), candidates.end(), [](const Node* a, const Node* b) {
    return a->breaker.failures() < b->breaker.failures();
  });
  absl::Status status = absl::UnavailableError("redis: all servers are left alone after failures");
  size_t left = candidates.size();
  for (Node* const node : candidates) {
    const Command command = {"CLUSTER", "SLOTS"};
    const auto replies = Exchange(*node, {&command, 1}, FirstOf(left--, deadline));
    status = replies.ok() ? AdoptMap(*node, *replies->front()) : replies.status();
    if (status.ok()) break;
  }
  return status;
}

absl::Status Cluster::AdoptMap(Node& from, const redisReply& reply) {
  // A server without cluster support, or one that does not let this user ask: MOVED will tell.
  const bool single = IsError(reply, "ERR") || IsError(reply, "NOPERM");
  if (!single && reply.type != REDIS_REPLY_ARRAY) {
    const absl::Status refused = RefusedBy(from.address, reply);
    from.outcome = refused;
    return refused;
  }
  for (const auto& node : nodes_) node->serving = false;
  owners_.fill(single ? &from : nullptr);
  from.serving = single;
  for (size_t i = 0; !single && i < reply.elements; ++i) AdoptRange(from, *reply.element[i]);
  have_map_ = true;
  stale_ = false;
  ForgetUnused();
  return absl::OkStatus();
}

/// One element of CLUSTER SLOTS: first slot, last slot, the owner's [host, port, …], its replicas.
void Cluster::AdoptRange(const Node& from, const redisReply& range) {
  if (range.type != REDIS_REPLY_ARRAY || range.elements < 3) return;
  const redisReply &first = *range.element[0], &last = *range.element[1];
  const redisReply& owner = *range.element[2];
  if (first.type != REDIS_REPLY_INTEGER || last.type != REDIS_REPLY_INTEGER ||
      owner.type != REDIS_REPLY_ARRAY || owner.elements < 2) {
    return;
  }
  const redisReply& port = *owner.element[1];
  if (first.integer < 0 || last.integer >= static_cast<int64_t>(kSlots) ||
      port.type != REDIS_REPLY_INTEGER || port.integer <= 0 || port.integer > UINT16_MAX) {
    return;
  }
  // A server that does not know its own name sends none, or "?".
  std::string host(TextOf(*owner.element[0]));
  if (host.empty() || host == "?") host = from.address.host;
  Node& node = FindOrAdd({.host = host, .port = static_cast<uint16_t>(port.integer)});
  node.serving = true;
  for (int64_t slot = first.integer; slot <= last.integer; ++slot) owners_[slot] = &node;
}

void Cluster::ForgetUnused() {
  std::erase_if(nodes_, [](const auto& node) { return !node->seed && !node->serving; });
}

void Cluster::ReportOutcomes() {
  for (const auto& node : nodes_) {
    const auto outcome = std::exchange(node->outcome, std::nullopt);
    if (!outcome) continue;
    const std::string name = ToString(node->address);
    if (outcome->ok()) {
      if (node->breaker.Succeed()) spdlog::info("redis node={} answers again", name);
    } else if (node->breaker.Fail(options_.now())) {
      spdlog::warn("redis node={} is left alone for {} after {} failures: {}", name,
                   absl::FormatDuration(options_.retry_after), node->breaker.failures(),
                   std::string(outcome->message()));
    }
  }
}

}  // namespace tandem::kvstore::redis
