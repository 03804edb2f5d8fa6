// Which calls are open to which worker, so that all of them end when the worker is lost: a worker
// that is silent keeps its connections, and would hold its requests until their deadlines.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "absl/time/time.h"

namespace tandem::server {

/// Thread-safe.
class OpenStreams {
 public:
  using Id = uint64_t;

  /// A call to the worker begins. `on_lost` runs, with the reason in words and no lock held, when
  /// the worker is lost before Remove; it may be that it still does so while Remove returns.
  Id Add(const std::string& worker_id, std::function<void(const std::string& reason)> on_lost);
  /// The call has ended.
  void Remove(const std::string& worker_id, Id id);
  /// Tells every call that the worker is lost. They stay until they are removed.
  void Lose(const std::string& worker_id, const std::string& reason);

  /// A call of this worker broke. One over the number of calls that it had when the first of them
  /// did: the share of the blame that falls on each, should one of them have killed it.
  double ShareOfLoss(const std::string& worker_id, absl::Time now);

 private:
  using Streams = std::map<Id, std::function<void(const std::string&)>>;
  struct Broken {
    absl::Time since;
    size_t n_streams = 0;
  };
  std::mutex mutex_;
  // Guarded by mutex_, as all below.
  absl::flat_hash_map<std::string, Streams> streams_;
  absl::flat_hash_map<std::string, Broken> broken_;
  Id last_id_ = 0;
};

}  // namespace tandem::server
