// What a router knows of its workers, and the choice of the pair that serves a request. No I/O:
// the router's services feed it and pass the time in.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "tandem/v1/cluster.pb.h"

namespace tandem::scheduler {

/// The workers that serve one request.
struct Pair {
  v1::WorkerInfo prefill;
  v1::WorkerInfo decode;
};

/// Thread-safe.
class ClusterView {
 public:
  /// A worker that has not reported for `worker_timeout` is not chosen.
  explicit ClusterView(absl::Duration worker_timeout) : worker_timeout_(worker_timeout) {}

  /// A worker registered, or registered again under the same id (then the newer registration
  /// counts). Returns the registration's number, for Remove.
  uint64_t Add(v1::WorkerInfo info, absl::Time now);
  /// Forgets the worker, unless it has registered again since.
  void Remove(const std::string& worker_id, uint64_t registration);
  /// Ignored for a worker that is not known.
  void Report(const std::string& worker_id, v1::WorkerLoad load, absl::Time now);

  /// The least loaded prefill worker and the least loaded decode worker; equals take turns. Load
  /// is the larger of what the worker reported and what this router has assigned to it, so that
  /// reports under way do not make a herd. Counts the request as assigned to both until Release.
  /// UNAVAILABLE, naming the phase, when there is none.
  absl::StatusOr<Pair> Assign(absl::Time now);
  /// The request no longer occupies the worker. Once for each worker of a pair.
  void Release(const std::string& worker_id);

  /// Where the node's data plane is reached; empty when it is not known, or gone.
  std::string DataAddress(const std::string& worker_id, absl::Time now) const;
  /// Data address of the store that keeps what hashes to `hash`: the same one for as long as the
  /// stores are the same, and when one comes or goes only its share moves (rendezvous hashing).
  /// Empty when there is none.
  std::string StoreFor(uint64_t hash, absl::Time now) const;

  /// True when every phase has a worker that can be chosen.
  bool Ready(absl::Time now) const;
  /// Workers of the phase that can be chosen.
  uint32_t Usable(v1::Phase phase, absl::Time now) const;
  /// Every worker known, by name.
  std::vector<v1::WorkerState> List(absl::Time now) const;

 private:
  struct Entry {
    v1::WorkerInfo info;
    v1::WorkerLoad load;
    absl::Time reported;
    uint64_t registration = 0;
    uint32_t assigned = 0;
    uint64_t last_chosen = 0;  // the turn in which it was chosen last
  };
  bool IsUsable(const Entry& entry, v1::Phase phase, absl::Time now) const;
  Entry* LeastLoaded(v1::Phase phase, absl::Time now);

  const absl::Duration worker_timeout_;
  mutable std::mutex mutex_;
  std::map<std::string, Entry> entries_;  // guarded by mutex_, as all below
  uint64_t registrations_ = 0;
  uint64_t turn_ = 0;
};

}  // namespace tandem::scheduler
