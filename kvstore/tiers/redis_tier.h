// Chunks in a Redis, or a Redis Cluster, that several machines share.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "kvstore/tiers/tier.h"

namespace tandem::kvstore {

struct RedisTierOptions {
  /// host:port of a server, or of some nodes of a cluster (found out by itself).
  std::vector<std::string> nodes;
  std::string username, password;
  /// Keys begin with this.
  std::string key_prefix = "tandem:kv:";
  /// No operation takes longer, whatever the server does. A Put of a large value included.
  absl::Duration timeout = absl::Milliseconds(100);
  /// Entries expire by themselves after this; 0: never. Redis's own maxmemory policy bounds them.
  absl::Duration ttl = absl::Hours(24);
  /// Circuit breaker, one for each server: after so many failures in a row it is left alone for
  /// `retry_after`; then one operation is let through.
  uint32_t max_failures = 3;
  absl::Duration retry_after = absl::Seconds(5);
  /// Now, for tests.
  std::function<absl::Time()> now;
};

/// Connects lazily: a Redis that is away at start is no error. INVALID_ARGUMENT for an address that
/// is none, none at all, and times that make no sense.
///
/// Operations run one at a time; waiting for another counts towards the time limit. Contains is
/// one round trip a node (pipelined EXISTS); what a lost node of a cluster has counts as absent,
/// the others' entries are found. A server's calls return at once while its breaker is open;
/// `healthy` is false for as long as that is so for one that owns keys. A chunk of another
/// envelope version is NOT_FOUND and stays: another Tandem's. A Redis without memory left for a
/// Put is RESOURCE_EXHAUSTED, and no reason to leave it alone.
absl::StatusOr<std::unique_ptr<Tier>> NewRedisTier(RedisTierOptions options);

}  // namespace tandem::kvstore
