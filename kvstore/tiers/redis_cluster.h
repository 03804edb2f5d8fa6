// The servers of a Redis Cluster, or a single one: which of them owns a key, what happens when it
// has moved or its server is gone.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kvstore/tiers/circuit_breaker.h"
#include "kvstore/tiers/redis_connection.h"

namespace tandem::kvstore::redis {

/// A command about one key.
struct KeyedCommand {
  std::string_view key;
  Command command;
};

/// A slot of the 16384 that a cluster's keys fall into. As Redis counts: only what stands between
/// the first "{" and the "}" after it, when that is anything; random bytes hold such pairs too.
uint16_t SlotOf(std::string_view key);

/// Not thread-safe. Connects when it has something to send. Each server has a circuit breaker of
/// its own: the loss of one costs nobody time who asks for another's keys.
class Cluster {
 public:
  struct Options {
    std::vector<Address> seeds;
    Login login;
    uint32_t max_failures = 3;
    absl::Duration retry_after;
    std::function<absl::Time()> now;
  };
  explicit Cluster(Options options);

  /// Runs each command where its key is, all commands for a server in one round trip. One result
  /// for each, in order, none of them an error reply:
  ///   RESOURCE_EXHAUSTED  the server has no memory left
  ///   UNAVAILABLE         the server is away, late, left alone, or refuses; the message says which
  std::vector<absl::StatusOr<Reply>> Run(std::span<const KeyedCommand> commands, Deadline deadline);

  /// False while a server that owns keys is left alone.
  bool healthy() const;

 private:
  static constexpr size_t kSlots = 16384;

  struct Node {
    Address address;
    bool seed = false;
    /// Owns slots by the latest map.
    bool serving = false;
    std::unique_ptr<Connection> connection;
    CircuitBreaker breaker;
    /// How the last exchange during this Run went.
    std::optional<absl::Status> outcome;
  };
  /// A command that has no result yet.
  struct Job {
    size_t index = 0;
    /// Where MOVED or ASK sent it.
    std::optional<Address> target;
    bool asking = false;
    /// It lost its server once; the second time is final.
    bool lost = false;
  };
  /// One Run.
  struct Call {
    std::span<const KeyedCommand> commands;
    Deadline deadline;
    std::vector<absl::StatusOr<Reply>> results;
    std::vector<Job> open;
  };

  Node& FindOrAdd(const Address& address);
  void RunRound(Call& call);
  void RunAt(Node& node, std::vector<Job> jobs, Call& call);
  void OnLost(const absl::Status& why, std::vector<Job> jobs, Call& call);
  void OnReply(Node& node, Job job, Reply reply, Call& call);
  void Redirect(const Node& from, Job job, const redisReply& reply, Call& call);
  absl::StatusOr<std::vector<Reply>> Exchange(Node& node, std::span<const Command> commands,
                                              Deadline deadline);

  /// Asks the servers for the map, the good ones first, until one has told it.
  absl::Status RefreshMap(Deadline deadline);
  absl::Status AdoptMap(Node& from, const redisReply& reply);
  void AdoptRange(const Node& from, const redisReply& range);
  void ForgetUnused();
  void ReportOutcomes();

  const Options options_;
  std::vector<std::unique_ptr<Node>> nodes_;  // the seeds come first
  std::array<Node*, kSlots> owners_{};
  bool have_map_ = false, stale_ = true;
};

}  // namespace tandem::kvstore::redis
