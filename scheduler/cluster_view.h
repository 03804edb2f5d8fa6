// What a router knows of its workers, and the choice of the pair that serves a request: reports and
// the chunk directory go in, as the scheduling core wants them; its decisions come out, with the
// workers' addresses and names. No I/O: the router's services feed it and pass the time in.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <random>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kvstore/chunk.h"
#include "scheduler/chunk_directory.h"
#include "scheduler/core/decode_policy.h"
#include "scheduler/core/dispatcher.h"
#include "tandem/v1/cluster.pb.h"

namespace tandem::scheduler {

/// A request, or what is left of one, that wants workers.
struct Placement {
  /// Tokens to be computed; on a resumption those already sent are among them.
  uint32_t prompt_tokens = 0;
  /// Tokens that may still be generated; 1: there is nothing to decode after the first.
  uint32_t max_tokens = 2;
  /// Of the prompt's chunks, by ClusterView::naming(); empty: cached KV is of no use.
  std::span<const kvstore::ChunkId> chunk_ids;
  kvstore::Level kv_floor = kvstore::Level::kLossless;
  /// Workers, and pairs (prefill, decode), that are taken only when there is no other.
  std::vector<std::string> excluded;
  std::vector<std::pair<std::string, std::string>> excluded_pairs;
  /// Seconds of the TTFT that have passed; those of a request that has had its first token: 0.
  double waited_s = 0;
  /// Data address where the KV is complete, of a sequence that moves: only its decode worker is
  /// chosen, another one when there is any.
  std::string kv_address;
};

/// The workers that serve one request.
struct Pair {
  /// Of a sequence that moves: whoever has its KV; empty when that is not known any more.
  v1::WorkerInfo prefill;
  /// Empty when there is nothing to decode.
  v1::WorkerInfo decode;
  AssignmentId assignment = 0;
  /// By this the workers name it in their reports; no other router has the same.
  uint64_t job_id = 0;
  /// Predicted.
  double ttft_s = 0, tpot_s = 0;
  /// The candidates; `dispatch`, `age_s`, `reason` and `queued_s` are the router's to fill in.
  v1::Decision decision;
};

/// A worker that cannot be used any more, though its registration stands.
struct LostWorker {
  std::string worker_id, name;
  /// In words: "has not reported for 5.2 s".
  std::string reason;
};

/// How the cluster's chunks are named (see kvstore/chunk.h).
struct ChunkNaming {
  std::string kv_namespace;
  /// 0: nobody keeps chunks.
  uint32_t chunk_tokens = 0;
};

/// The model that a worker has told, and of what it has no samples of yet that of `otherwise`.
LatencyModel ModelFrom(const v1::LatencyModel& told, const LatencyModel& otherwise);

/// Thread-safe.
///
/// A worker, as long as it is registered:
///
///   new ── first report ──> usable
///   usable ── says so ──> draining, changing phase (takes what both phases take) ──> usable
///   usable ── no report for worker_timeout; no step for stall_timeout though it has work ──> lost
///   lost ── reports, or steps, again ──> usable
class ClusterView {
 public:
  struct Options {
    /// A worker that has not reported for so long is lost.
    absl::Duration worker_timeout = absl::Seconds(5);
    /// So is one that has work and makes no step for so long; infinite: never.
    absl::Duration stall_timeout = absl::InfiniteDuration();
    /// How long a pair between which KV did not get through is avoided.
    absl::Duration avoid_pair = absl::Seconds(30);
    Dispatcher::Options dispatch;
    /// Of the lots that equals draw.
    uint64_t seed = std::random_device{}();
  };
  /// `directory` may be null; else it must outlive the view.
  ClusterView(const Options& options, const ChunkDirectory* directory)
      : options_(options),
        directory_(directory),
        dispatcher_(options.dispatch),
        random_(options.seed),
        job_salt_(std::mt19937_64(~options.seed)()) {}

  /// A worker registered, or registered again under the same id (then the newer registration
  /// counts). Returns the registration's number, for Remove. Until it reports it counts as idle.
  uint64_t Add(v1::WorkerInfo info, absl::Time now);
  /// Forgets the worker, unless it has registered again since.
  void Remove(const std::string& worker_id, uint64_t registration);
  /// Ignored for a worker that is not known.
  void Report(const std::string& worker_id, v1::WorkerLoad load, absl::Time now);
  /// Workers that were lost since the last call; each once, until it has come back.
  std::vector<LostWorker> Lost(absl::Time now);

  /// Chooses the pair by predicted TTFT and TPOT (docs/scheduling.md) and counts the request as
  /// assigned to it. UNAVAILABLE, naming the phase, when there is none.
  absl::StatusOr<Pair> Assign(const Placement& what, absl::Time now);
  /// The same choice, for the prediction alone. Nothing is assigned.
  absl::StatusOr<Candidate> Predict(const Placement& what, absl::Time now);
  /// The decode worker has been called; from its next report on it counts the sequence itself.
  void DecodeBegins(AssignmentId id, absl::Time now);
  /// The first token has come.
  void PromptComputed(AssignmentId id, absl::Time now);
  /// The prefill, or decode, worker is done with the request, or was never called. Once is enough,
  /// more does no harm; without a decode worker, or for a sequence that moves, the other part needs
  /// no release.
  void ReleasePrefill(AssignmentId id);
  void ReleaseDecode(AssignmentId id);
  /// KV did not get from one to the other; worker ids.
  void AvoidPair(const std::string& a, const std::string& b, absl::Time now);
  /// A request ended by itself after so many tokens: others are expected to be like it.
  void ObserveOutput(uint32_t generated_tokens);
  /// Assignments that are not wholly released.
  size_t assignments() const;
  /// Prompt tokens per second that all workers that prefill can compute.
  double PrefillTokensPerSecond() const;

  /// How chunks are named by those that prefill.
  ChunkNaming naming() const;
  /// Where the node's data plane is reached; empty when it is not known, or lost.
  std::string DataAddress(const std::string& worker_id, absl::Time now) const;
  /// Data address of the store that keeps what hashes to `hash`: the same one for as long as the
  /// stores are the same, and when one comes or goes only its share moves (rendezvous hashing).
  /// Empty when there is none.
  std::string StoreFor(uint64_t hash, absl::Time now) const;

  /// True when somebody prefills and somebody decodes.
  bool Ready(absl::Time now) const;
  /// Workers that have this phase now and can be chosen.
  uint32_t Usable(v1::Phase phase, absl::Time now) const;
  /// Every worker known, by name.
  std::vector<v1::WorkerState> List(absl::Time now) const;

 private:
  struct Entry {
    v1::WorkerInfo info;
    v1::WorkerLoad load;
    absl::Time reported;
    uint64_t registration = 0;
    WorkerIndex index = kNoWorker;
    absl::Time progressed;  // when it last made a step, or had nothing to do
    bool told = false;      // as lost
  };

  // One who holds chunks: what is asked for thousands of holders lies apart from the entries.
  struct NodeWorker {
    WorkerIndex index = kNoWorker;
    uint32_t chunk_tokens = 0;
  };

  // These expect mutex_ to be held.
  bool Silent(const Entry& entry, absl::Time now) const;
  bool Stalled(const Entry& entry) const;
  bool IsUsable(const Entry& entry, absl::Time now) const;
  void TellDispatcher(const Entry& entry, absl::Time now);
  void SetReported(Entry& entry, absl::Time now);
  void TellLinks(const Entry& entry);
  void SuspendSilent(absl::Time now);
  WorkerIndex IndexOf(const std::string& worker_id) const;
  Work WorkOf(const Placement& what) const;
  std::vector<CachedAt> Cached(const Placement& what) const;
  absl::StatusOr<Decision> Choose(const Work& work, absl::Time now);
  v1::Candidate Explain(const Candidate& candidate) const;

  const Options options_;
  const ChunkDirectory* const directory_;
  mutable std::mutex mutex_;
  // Guarded by mutex_, as all below.
  std::map<std::string, Entry> entries_;
  std::set<std::pair<absl::Time, WorkerIndex>> by_report_;          // the longest silent first
  std::vector<const Entry*> entry_of_index_;                        // null: nobody
  std::vector<NodeWorker> worker_of_node_;                          // by number in the directory
  absl::flat_hash_map<std::string, WorkerIndex> index_of_address_;  // by data address
  Dispatcher dispatcher_;
  std::mt19937_64 random_;
  const uint64_t job_salt_;  // between assignments' numbers and jobs'
  OutputLengthEstimate lengths_;
  LatencyModel typical_;  // the last that was measured, for workers that have measured nothing
  uint64_t registrations_ = 0;
};

}  // namespace tandem::scheduler
