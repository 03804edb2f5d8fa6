// Why the last requests went where they went: what `tandem explain` shows.
#pragma once

#include <cstddef>
#include <deque>
#include <mutex>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "tandem/v1/cluster.pb.h"

namespace tandem::server {

/// Thread-safe. Keeps the decisions of the last `max_requests` requests, and of each the first and
/// the latest ones; the oldest request goes first.
class DecisionLog {
 public:
  explicit DecisionLog(size_t max_requests) : max_requests_(max_requests) {}

  void Add(const std::string& request_id, v1::Decision decision, absl::Time now);
  /// The request's decisions, the first one first, with their age. NOT_FOUND when none are kept.
  absl::StatusOr<v1::ExplainResponse> Find(const std::string& request_id, absl::Time now) const;

 private:
  struct Entry {
    v1::Decision decision;
    absl::Time when;
  };
  const size_t max_requests_;
  mutable std::mutex mutex_;
  // Guarded by mutex_.
  absl::flat_hash_map<std::string, std::vector<Entry>> decisions_;
  std::deque<std::string> order_;  // of arrival
};

}  // namespace tandem::server
