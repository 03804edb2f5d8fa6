// Which workers serve a request: the pair, prefill and decode, with the best predicted TTFT and
// TPOT. Used by the router and by the simulator. No I/O, no threads: one caller at a time, who
// passes time (seconds of any one clock) and random numbers in.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/random/bit_gen_ref.h"
#include "absl/status/statusor.h"
#include "scheduler/core/latency_model.h"

namespace tandem::scheduler {

/// Names a worker (or a node that only holds chunks); reused after Remove.
using WorkerIndex = uint32_t;
inline constexpr WorkerIndex kNoWorker = UINT32_MAX;

/// Of an assignment, from Assign until both of its parts are released.
using AssignmentId = uint64_t;

/// What a worker told of itself. A worker that takes neither is passed over: it drains, is silent,
/// stalled, between two phases, or a store.
struct WorkerReport {
  struct Prompt {
    AssignmentId id = 0;
    uint32_t tokens_to_compute = 0;
  };
  bool takes_prefill = false;
  bool takes_decode = false;
  /// A decode worker that may prefill as well: it does so only for what it decodes itself, where no
  /// running sequence suffers (conditional disaggregation), or when there is nobody else.
  bool decode_first = false;
  /// Prompt tokens still to be computed, of those waiting and those begun.
  uint64_t tokens_to_compute = 0;
  /// Sequences that decode; that wait for room, are being pulled, or are parked.
  uint32_t decode_running = 0, decode_waiting = 0;
  uint32_t max_sequences = 0;
  /// Tokens of KV: of the running sequences; in the whole expected life of all; that fit.
  uint64_t kv_used_tokens = 0, kv_expected_tokens = 0, kv_capacity_tokens = 0;
  LatencyModel latency;
  /// The assignments that these figures count. Ids that are nobody's, as other routers' are here,
  /// do no harm.
  std::vector<Prompt> prompts;
  std::vector<AssignmentId> sequences;
};

/// The way from one node's data port to another's.
struct Link {
  double bytes_per_s = 0;
  double rtt_s = 0;
  bool operator==(const Link&) const = default;
};

/// A node that holds the beginning of the prompt's KV.
struct CachedAt {
  WorkerIndex worker = kNoWorker;
  uint32_t tokens = 0;
};

/// What is to be placed.
struct Work {
  uint32_t prompt_tokens = 0;
  /// Expected, the first included.
  uint32_t expected_output_tokens = 1;
  /// False: the first token is all that is wanted; there is no decode worker.
  bool needs_decode = true;
  /// Who holds the prompt's first tokens, as far as may be used.
  std::vector<CachedAt> cached;
  /// Of a token's KV on the wire.
  double kv_bytes_per_token = 0;
  /// Only taken when there is nobody else.
  std::vector<WorkerIndex> excluded;
  std::vector<std::pair<WorkerIndex, WorkerIndex>> excluded_pairs;
  /// Seconds of the TTFT that have passed already.
  double waited_s = 0;
  /// Set for a sequence that moves: its KV is complete on this node, only a decode worker is
  /// chosen.
  std::optional<WorkerIndex> fixed_prefill;
};

/// A pair as the dispatch saw it. See Candidate in cluster.proto.
struct Candidate {
  WorkerIndex prefill = kNoWorker;
  WorkerIndex decode = kNoWorker;
  bool chosen = false;
  double score = 0;
  double ttft_s = 0, tpot_s = 0;
  /// Parts of the TTFT, with Work::waited_s: work ahead; computing; loading, beyond the queue.
  double queue_s = 0, compute_s = 0, load_s = 0;
  uint32_t cached_tokens = 0;
  /// Parts of the TPOT: a step; waiting for room and for the KV, before the second token.
  double step_s = 0, decode_wait_s = 0, handoff_s = 0;
  /// Work ahead on the prefill worker, in full steps.
  double steps_ahead = 0;
};

/// Whether the pair has room for the request, which waits in the router otherwise: no more than
/// `dispatch_ahead_steps` full steps of work are ahead of its prompt, and its sequence will not
/// wait for a decode place for longer than for its first token, nor so long that it misses its
/// objective: it does not help to compute a prompt whose sequence then waits, in the way of others.
bool HasRoom(const Candidate& pair, double dispatch_ahead_steps, double tpot_objective_s);

struct Decision {
  /// The one that was chosen.
  Candidate choice;
  /// The best ones, best first, and the chosen one among them.
  std::vector<Candidate> candidates;
};

class Dispatcher {
 public:
  struct Options {
    double ttft_objective_s = 0.25;
    double tpot_objective_s = 0.1;
    /// Of a link that nobody has measured: 1 Gbit/s.
    double default_bytes_per_s = 125e6;
    double default_rtt_s = 1e-3;
    /// From a node's own store or engine, decoding included.
    double local_bytes_per_s = 1e9;
    /// What was assigned so long before a report came is in it, though not by its name.
    double report_lag_s = 0.05;
    /// Scores that differ by less than this share are equal.
    double near_equal = 0.02;
    /// Tokens of the KV's last piece, which leaves only when the prompt is computed.
    uint32_t chunk_tokens = 256;
    /// The least that a prefill step between decode steps computes.
    uint32_t min_piece_tokens = 32;
  };
  Dispatcher() : Dispatcher(Options()) {}
  explicit Dispatcher(const Options& options);
  ~Dispatcher();

  /// A node is there; it takes nothing before its first report.
  WorkerIndex Add();
  /// It is gone, with its links and with what was assigned to it.
  void Remove(WorkerIndex worker);
  /// Replaces what was known of the worker; work assigned since is counted on top.
  void Report(WorkerIndex worker, const WorkerReport& report, double now_s);
  /// From now on it takes nothing, until its next report.
  void Suspend(WorkerIndex worker);

  /// What was measured on the way `from` → `to`; no bytes_per_s: nothing any more.
  void SetLink(WorkerIndex from, WorkerIndex to, const Link& link);
  /// As measured, else the default.
  Link LinkBetween(WorkerIndex from, WorkerIndex to) const;
  /// The way between the two is cut, it seems: both directions only if there is no other pair,
  /// until then.
  void AvoidPair(WorkerIndex a, WorkerIndex b, double until_s);

  /// The pair for this work, by lowest score; among (near) equals two draw lots, and the one with
  /// less assigned is taken. UNAVAILABLE, naming the phase, when there is none. Assigns nothing.
  absl::StatusOr<Decision> Choose(const Work& work, double now_s, absl::BitGenRef random);

  /// The work is sent to the pair of `choice`.
  ///   assigned ── ReleasePrefill, ReleaseDecode, in any order ──> gone
  /// Without a decode worker, or with a fixed prefill side, that part counts as released.
  AssignmentId Assign(const Work& work, const Candidate& choice, double now_s);
  /// The decode worker has been called: its next reports will count the sequence.
  void DecodeBegins(AssignmentId id, double now_s);
  /// Its first token has come: its prompt is ahead of nobody's any more.
  void PromptComputed(AssignmentId id, double now_s);
  /// That part is done, or was given up. Ignored when it was released before.
  void ReleasePrefill(AssignmentId id);
  void ReleaseDecode(AssignmentId id);

  /// Assignments of which a part is on the worker.
  uint32_t assigned(WorkerIndex worker) const;
  /// Assignments that are not wholly released.
  size_t assignments() const { return n_assignments_; }
  /// Prompt tokens per second that all prefill workers can compute.
  double PrefillTokensPerSecond() const;
  /// Workers that take prompts, or sequences, and are no decode worker's second job.
  uint32_t Takers(bool prefill) const;

 private:
  struct Pending {
    AssignmentId id = 0;
    double since_s = 0;
  };
  struct Worker {
    uint32_t generation = 0;
    bool live = false;
    WorkerReport report;
    double reported_s = 0;
    uint32_t assigned_prefill = 0, assigned_decode = 0;
    // Assigned, and not in the last report.
    uint64_t prefill_tokens = 0;
    uint32_t sequences = 0;
    uint64_t context_tokens = 0, life_tokens = 0;
    std::deque<Pending> pending_prefill, pending_decode;
  };
  struct Part {
    WorkerIndex worker = kNoWorker;
    uint32_t generation = 0;
    bool unreported = false;
  };
  struct Assignment {
    uint32_t generation = 0;
    Part prefill, decode;
    uint32_t compute_tokens = 0, prompt_tokens = 0, life_tokens = 0;
  };
  /// What a choice wants to know of a worker that prefills, made ready when it changes.
  struct Hot {
    // How much longer prefill takes there: decode steps leave it the rest of the worker's time.
    double slowdown = 1;
    // Of the prompts ahead: those reported, from reported_s on worked off; those assigned since.
    double reported_s = 0, reported_ahead_s = 0, assigned_ahead_s = 0;
    double full_step_s = 0;     // of L_m tokens
    double per_step_token = 0;  // 1 / L_m
    PrefillCost prefill;

    // Of a token among many, on the device alone.
    double TokenSeconds() const { return full_step_s * per_step_token; }
    // What is left of the work that was reported, if it went as predicted.
    double ReportedSeconds(double now_s) const {
      return std::max(0.0, reported_ahead_s * slowdown - std::max(0.0, now_s - reported_s));
    }
  };
  /// What bounds a worker's TTFT from below, and what its TPOT is made of, column by column: a
  /// choice goes over all of it, and looks at few workers' Hot.
  struct Bounds {
    enum Role : uint8_t {
      kPrefills = 1,  // for anybody
      kDecodes = 2,
      kPrefillsToo = 4,   // a decode worker that prefills for others when nobody else does
      kPrefillsSelf = 8,  // and, as things are, for what it decodes itself
      kServes = 16,       // sequences are there, or on their way
    };
    std::vector<uint8_t> role;
    // Slowdown included. Infinite base: it takes no prompts.
    std::vector<double> ahead_until_s, assigned_s, per_token_s, base_s;
    // A decode step with one more sequence, whose context adds per_context_token_s. A step of ages:
    // it takes no sequences.
    std::vector<double> step_s, per_context_token_s;
    // Share of an expected life to wait for a place; KV expected, and 1 / capacity.
    std::vector<double> lives_to_wait, life_tokens, per_capacity_token;
    // Its own prompts' work; sequences that are not there yet, whose KV shares the way in.
    std::vector<double> prefill_ahead_s, coming;
  };
  /// A Link as choices use it: they multiply.
  struct Way {
    double s_per_byte = 0, rtt_s = 0;
  };
  class Choice;
  /// A choice's vectors, kept from one to the next.
  struct Scratch;

  void Refresh(WorkerIndex worker);
  void RefreshPrefill(WorkerIndex worker, double step_s);
  void RefreshDecode(WorkerIndex worker);
  static Way WayOf(const Link& link) {
    return {.s_per_byte = 1 / link.bytes_per_s, .rtt_s = link.rtt_s};
  }
  Way WayBetween(WorkerIndex from, WorkerIndex to) const;
  Worker* Find(const Part& part);
  Assignment* Find(AssignmentId id);
  void PrefillReported(Assignment& assignment);
  void DecodeReported(Assignment& assignment);
  // A sequence that has ended and that the worker's last report still counts.
  void LeaveReport(const Assignment& assignment);
  void FreeIfDone(AssignmentId id);
  bool Avoided(WorkerIndex a, WorkerIndex b, double now_s) const;

  const Options options_;
  std::vector<Worker> workers_;
  std::vector<Hot> hot_;  // by worker
  Bounds bounds_;
  std::vector<WorkerIndex> free_workers_;
  // By from, then to. What is not measured is the default, as is what short rows lack.
  std::vector<std::vector<Way>> ways_;
  const Way unmeasured_, local_;
  absl::flat_hash_map<uint64_t, double> avoided_;  // pair → until
  std::vector<Assignment> assignments_;
  std::vector<uint32_t> free_assignments_;
  size_t n_assignments_ = 0;
  std::unique_ptr<Scratch> scratch_;
};

}  // namespace tandem::scheduler
