// Dispatcher::Choose: the predictions and the score. Three passes: each prefill worker's TTFT, each
// decode worker's step, then pairs of the best prefill workers with all decode workers, so that a
// choice among a thousand workers takes microseconds.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "absl/random/distributions.h"
#include "absl/strings/str_cat.h"
#include "scheduler/core/dispatcher.h"

namespace tandem::scheduler {
namespace {

/// Prefill workers of which pairs are looked at, and holders that cached KV may be loaded from.
constexpr size_t kPrefillSides = 4, kHolders = 3;
constexpr size_t kCandidates = 8;
/// What an objective missed by its own length adds to the score, besides the time itself.
constexpr double kMissed = 4;
/// A mixed worker's steps leave at least this share of its time to prefill.
constexpr double kLeastShare = 0.1;
/// Of a worker or a pair that is to be taken only when there is no other.
constexpr double kExcluded = 1e6;
/// Scores that differ by less are equal, however small they are.
constexpr double kSmallestDifference = 1e-4;

double Term(double seconds, double objective_s) {
  const double ratio = seconds / objective_s;
  return ratio + kMissed * std::max(0.0, ratio - 1);
}

}  // namespace

class Dispatcher::Choice {
 public:
  Choice(const Dispatcher& dispatcher, const Work& work, double now_s, absl::BitGenRef random)
      : d_(dispatcher),
        work_(work),
        now_s_(now_s),
        random_(random),
        ttft_objective_s_(work.ttft_objective_s > 0 ? work.ttft_objective_s
                                                    : dispatcher.options_.ttft_objective_s),
        tpot_objective_s_(work.tpot_objective_s > 0 ? work.tpot_objective_s
                                                    : dispatcher.options_.tpot_objective_s) {}

  absl::StatusOr<Decision> Make();

 private:
  struct PrefillSide {
    WorkerIndex worker = kNoWorker;
    double score = 0;  // penalty included
    double penalty = 0;
    double queue_s = 0, compute_s = 0, load_s = 0, steps_ahead = 0;
    uint32_t cached_tokens = 0;
  };
  struct DecodeSide {
    WorkerIndex worker = kNoWorker;
    double penalty = 0;
    double step_s = 0, wait_s = 0;
  };
  struct Pair {
    uint32_t prefill = 0, decode = 0;  // indices of the sides
    double score = 0, penalty = 0;
  };

  void PredictPrefills();
  void PredictDecodes();
  void MakePairs();
  Decision Decide();
  absl::Status Nobody() const;

  void PickHolders();
  PrefillSide PredictPrefill(WorkerIndex index) const;
  DecodeSide PredictDecode(WorkerIndex index) const;
  double PrefillShare(const Worker& worker) const;
  bool LeavesSlack(const Worker& worker) const;
  void KeepBestPrefills();
  void AddPair(uint32_t prefill, uint32_t decode);
  double HandoffSeconds(const PrefillSide& prefill, const Link& link) const;
  double TpotSeconds(const DecodeSide& decode, double handoff_s) const;
  Candidate Describe(const Pair& pair) const;
  double Penalty(WorkerIndex worker) const;
  double PairPenalty(WorkerIndex prefill, WorkerIndex decode) const;

  const Dispatcher& d_;
  const Work& work_;
  const double now_s_;
  absl::BitGenRef random_;
  const double ttft_objective_s_, tpot_objective_s_;
  std::array<CachedAt, kHolders> holders_;
  size_t n_holders_ = 0;
  std::vector<uint32_t> local_tokens_;  // by worker
  std::vector<PrefillSide> prefills_;
  uint32_t n_shared_ = 0;  // of prefills_, those that serve any decode worker; they come first
  std::vector<DecodeSide> decodes_;
  std::vector<Pair> pairs_;
};

absl::StatusOr<Decision> Dispatcher::Choose(const Work& work, double now_s,
                                            absl::BitGenRef random) {
  return Choice(*this, work, now_s, random).Make();
}

absl::StatusOr<Decision> Dispatcher::Choice::Make() {
  if (work_.fixed_prefill) {
    prefills_.push_back({.worker = *work_.fixed_prefill});
    n_shared_ = 1;
  } else {
    PredictPrefills();
  }
  if (work_.needs_decode) PredictDecodes();
  MakePairs();
  if (pairs_.empty()) return Nobody();
  return Decide();
}

absl::Status Dispatcher::Choice::Nobody() const {
  return absl::UnavailableError(
      absl::StrCat("no ", prefills_.empty() ? "prefill" : "decode",
                   " worker is registered and able to take requests; `tandem status` lists the "
                   "workers"));
}

double Dispatcher::Choice::Penalty(WorkerIndex worker) const {
  const auto& excluded = work_.excluded;
  return std::find(excluded.begin(), excluded.end(), worker) == excluded.end() ? 0 : kExcluded;
}

double Dispatcher::Choice::PairPenalty(WorkerIndex prefill, WorkerIndex decode) const {
  for (const auto& [p, d] : work_.excluded_pairs) {
    if (p == prefill && d == decode) return kExcluded;
  }
  return d_.Avoided(prefill, decode, now_s_) ? kExcluded : 0;
}

void Dispatcher::Choice::PickHolders() {
  local_tokens_.assign(d_.workers_.size(), 0);
  uint32_t longest = 0;
  for (const CachedAt& at : work_.cached) {
    if (at.worker >= local_tokens_.size()) continue;
    local_tokens_[at.worker] = std::min(at.tokens, work_.prompt_tokens);
    longest = std::max(longest, local_tokens_[at.worker]);
  }
  // Some of those that hold the most, by lot: what everybody has is loaded from anybody.
  size_t n_seen = 0;
  for (const CachedAt& at : work_.cached) {
    if (longest == 0 || at.worker >= local_tokens_.size() || local_tokens_[at.worker] != longest) {
      continue;
    }
    ++n_seen;
    if (n_holders_ < kHolders) {
      holders_[n_holders_++] = {at.worker, longest};
    } else if (const size_t lot = absl::Uniform<size_t>(random_, 0, n_seen); lot < kHolders) {
      holders_[lot] = {at.worker, longest};
    }
  }
}

void Dispatcher::Choice::PredictPrefills() {
  PickHolders();
  // Decode workers prefill for others only when no other worker prefills.
  bool anybody = false;
  for (const Worker& worker : d_.workers_) {
    anybody |= worker.report.takes_prefill && !worker.report.decode_first;
  }
  for (WorkerIndex i = 0; i < d_.workers_.size(); ++i) {
    const WorkerReport& report = d_.workers_[i].report;
    if (report.takes_prefill && report.decode_first != anybody) {
      prefills_.push_back(PredictPrefill(i));
    }
  }
  KeepBestPrefills();
  n_shared_ = static_cast<uint32_t>(prefills_.size());
  if (!anybody || !work_.needs_decode) return;
  for (WorkerIndex i = 0; i < d_.workers_.size(); ++i) {
    const Worker& worker = d_.workers_[i];
    if (worker.report.takes_prefill && worker.report.takes_decode && worker.report.decode_first &&
        LeavesSlack(worker)) {
      prefills_.push_back(PredictPrefill(i));
    }
  }
}

/// The share of the worker's time that its decode steps leave to prefill.
double Dispatcher::Choice::PrefillShare(const Worker& worker) const {
  const uint32_t n_sequences = worker.report.decode_running;
  if (n_sequences == 0) return 1;
  const double step_s =
      worker.report.latency.decode.StepSeconds(n_sequences, worker.report.kv_used_tokens);
  return std::max(kLeastShare, 1 - step_s / tpot_objective_s_);
}

/// Whether a piece of prefill fits between the worker's decode steps.
bool Dispatcher::Choice::LeavesSlack(const Worker& worker) const {
  const WorkerReport& report = worker.report;
  const uint32_t n_sequences = report.decode_running + worker.sequences;
  if (n_sequences == 0) return true;
  const double step_s =
      report.latency.decode.StepSeconds(n_sequences, report.kv_used_tokens + worker.context_tokens);
  const double piece_s =
      report.latency.prefill.Seconds(d_.options_.min_piece_tokens, work_.prompt_tokens);
  return step_s + piece_s <= tpot_objective_s_;
}

Dispatcher::Choice::PrefillSide Dispatcher::Choice::PredictPrefill(WorkerIndex index) const {
  const Worker& worker = d_.workers_[index];
  const WorkerReport& report = worker.report;
  const double share = PrefillShare(worker);
  const double reported_s = static_cast<double>(report.tokens_to_compute) * worker.token_s / share;
  const double ahead_s = std::max(0.0, reported_s - std::max(0.0, now_s_ - worker.reported_s)) +
                         static_cast<double>(worker.prefill_tokens) * worker.token_s / share;
  PrefillSide side = {.worker = index, .penalty = Penalty(index), .queue_s = ahead_s};
  side.steps_ahead =
      ahead_s * share /
      std::max(1e-9, worker.token_s * std::max(1u, report.latency.saturation_tokens));
  // At least the last token is computed anew.
  const uint32_t usable = work_.prompt_tokens > 0 ? work_.prompt_tokens - 1 : 0;
  double least_s = std::numeric_limits<double>::infinity();
  auto consider = [&](uint32_t cached, uint32_t moved, const Link& link) {
    cached = std::min(cached, usable);
    const double compute_s =
        report.latency.PromptSeconds(work_.prompt_tokens - cached, cached) / share;
    const double load_s =
        moved == 0 ? 0 : link.rtt_s + moved * work_.kv_bytes_per_token / link.bytes_per_s;
    const double beyond_queue_s = std::max(0.0, load_s - ahead_s);
    if (compute_s + beyond_queue_s >= least_s) return;
    least_s = compute_s + beyond_queue_s;
    side.compute_s = compute_s;
    side.load_s = beyond_queue_s;
    side.cached_tokens = cached;
  };
  const uint32_t local = local_tokens_[index];
  consider(local, local, d_.LinkBetween(index, index));
  for (size_t i = 0; i < n_holders_; ++i) {
    const CachedAt& holder = holders_[i];
    if (holder.tokens <= local || holder.worker == index) continue;
    consider(holder.tokens, holder.tokens - local, d_.LinkBetween(holder.worker, index));
  }
  if (local > 0) consider(0, 0, Link());
  const double ttft_s = work_.waited_s + side.queue_s + side.compute_s + side.load_s;
  side.score = Term(ttft_s, ttft_objective_s_) + side.penalty;
  return side;
}

/// Equals at the edge draw lots, so that the same ones are not always taken.
void Dispatcher::Choice::KeepBestPrefills() {
  if (prefills_.size() <= kPrefillSides) return;
  const auto lower = [](const PrefillSide& a, const PrefillSide& b) { return a.score < b.score; };
  const auto best = std::min_element(prefills_.begin(), prefills_.end(), lower);
  const double limit =
      best->score + kSmallestDifference + d_.options_.near_equal * (best->score - best->penalty);
  const auto equals_end =
      std::partition(prefills_.begin(), prefills_.end(),
                     [&](const PrefillSide& side) { return side.score <= limit; });
  const auto n_equal = static_cast<size_t>(equals_end - prefills_.begin());
  if (n_equal > kPrefillSides) {
    for (size_t i = 0; i < kPrefillSides; ++i) {
      std::swap(prefills_[i], prefills_[absl::Uniform<size_t>(random_, i, n_equal)]);
    }
  } else {
    std::partial_sort(equals_end, prefills_.begin() + kPrefillSides, prefills_.end(), lower);
  }
  prefills_.resize(kPrefillSides);
}

void Dispatcher::Choice::PredictDecodes() {
  for (WorkerIndex i = 0; i < d_.workers_.size(); ++i) {
    if (d_.workers_[i].report.takes_decode) decodes_.push_back(PredictDecode(i));
  }
}

Dispatcher::Choice::DecodeSide Dispatcher::Choice::PredictDecode(WorkerIndex index) const {
  const Worker& worker = d_.workers_[index];
  const WorkerReport& report = worker.report;
  const uint32_t places = std::max(1u, report.max_sequences);
  const uint32_t n_sequences = report.decode_running + report.decode_waiting + worker.sequences;
  const uint32_t in_step = std::min(n_sequences + 1, places);
  const uint64_t context = report.kv_used_tokens + worker.context_tokens + work_.prompt_tokens;
  DecodeSide side = {.worker = index, .penalty = Penalty(index)};
  side.step_s = report.latency.decode.StepSeconds(in_step, context);
  // Sequences end at the rate at which so many, of the expected length, get their tokens.
  const double life_s = work_.expected_output_tokens * side.step_s;
  if (n_sequences >= places) side.wait_s = (n_sequences - places + 1) * life_s / places;
  const uint64_t life_tokens = report.kv_expected_tokens + worker.life_tokens +
                               work_.prompt_tokens + work_.expected_output_tokens;
  if (report.kv_capacity_tokens > 0 && life_tokens > report.kv_capacity_tokens) {
    const auto capacity = static_cast<double>(report.kv_capacity_tokens);
    const double over = static_cast<double>(life_tokens) - capacity;
    side.wait_s = std::max(side.wait_s, over / capacity * life_s);
  }
  // While it computes prompts as well, its steps come as far apart as the objective allows.
  if (report.takes_prefill) {
    const double prefill_s =
        static_cast<double>(report.tokens_to_compute + worker.prefill_tokens) * worker.token_s;
    const double busy = life_s > 0 ? std::min(1.0, prefill_s / life_s) : 0;
    side.step_s += busy * std::max(0.0, tpot_objective_s_ - side.step_s);
  }
  return side;
}

/// How long the KV is on its way after the prompt was computed: it moves while that goes on, but
/// its last piece cannot.
double Dispatcher::Choice::HandoffSeconds(const PrefillSide& prefill, const Link& link) const {
  const double whole_s = work_.prompt_tokens * work_.kv_bytes_per_token / link.bytes_per_s;
  const double last_s = std::min(work_.prompt_tokens, d_.options_.chunk_tokens) *
                        work_.kv_bytes_per_token / link.bytes_per_s;
  return link.rtt_s + std::max(last_s, whole_s - prefill.compute_s);
}

double Dispatcher::Choice::TpotSeconds(const DecodeSide& decode, double handoff_s) const {
  const uint32_t further = std::max(2u, work_.expected_output_tokens) - 1;
  return decode.step_s + (decode.wait_s + handoff_s) / further;
}

void Dispatcher::Choice::AddPair(uint32_t p, uint32_t d) {
  const PrefillSide& prefill = prefills_[p];
  const DecodeSide& decode = decodes_[d];
  const double handoff_s = HandoffSeconds(prefill, d_.LinkBetween(prefill.worker, decode.worker));
  const double penalty =
      prefill.penalty + decode.penalty + PairPenalty(prefill.worker, decode.worker);
  const double score = prefill.score - prefill.penalty + penalty +
                       Term(TpotSeconds(decode, handoff_s), tpot_objective_s_);
  pairs_.push_back({.prefill = p, .decode = d, .score = score, .penalty = penalty});
}

void Dispatcher::Choice::MakePairs() {
  if (!work_.needs_decode) {
    for (uint32_t p = 0; p < prefills_.size(); ++p) {
      pairs_.push_back(
          {.prefill = p, .score = prefills_[p].score, .penalty = prefills_[p].penalty});
    }
    return;
  }
  pairs_.reserve(n_shared_ * decodes_.size() + prefills_.size());
  for (uint32_t p = 0; p < n_shared_; ++p) {
    for (uint32_t d = 0; d < decodes_.size(); ++d) AddPair(p, d);
  }
  // The rest are decode workers, each with itself; both are in order of index.
  for (uint32_t p = n_shared_, d = 0; p < prefills_.size(); ++p) {
    while (decodes_[d].worker != prefills_[p].worker) ++d;
    AddPair(p, d);
  }
}

Decision Dispatcher::Choice::Decide() {
  std::vector<Pair> best;  // sorted
  for (const Pair& pair : pairs_) {
    if (best.size() == kCandidates && pair.score >= best.back().score) continue;
    if (best.size() == kCandidates) best.pop_back();
    best.insert(std::upper_bound(best.begin(), best.end(), pair,
                                 [](const Pair& a, const Pair& b) { return a.score < b.score; }),
                pair);
  }
  const double limit = best[0].score + kSmallestDifference +
                       d_.options_.near_equal * (best[0].score - best[0].penalty);
  // Two of the equals by lot (Mitzenmacher, "The Power of Two Choices", 2001).
  std::array<const Pair*, 2> lots = {&best[0], &best[0]};
  size_t n_equal = 0;
  for (const Pair& pair : pairs_) {
    if (pair.score > limit) continue;
    ++n_equal;
    const size_t lot = n_equal <= 2 ? n_equal - 1 : absl::Uniform<size_t>(random_, 0, n_equal);
    if (lot < 2) lots[lot] = &pair;
  }
  if (n_equal == 1) lots[1] = lots[0];
  Candidate one = Describe(*lots[0]), other = Describe(*lots[1]);
  auto load = [&](const Candidate& pair) {
    return (pair.prefill == kNoWorker ? 0 : d_.assigned(pair.prefill)) +
           (pair.decode == kNoWorker ? 0 : d_.assigned(pair.decode));
  };
  if (absl::Bernoulli(random_, 0.5)) std::swap(one, other);
  Decision decision;
  decision.choice = load(other) < load(one) ? other : one;
  decision.choice.chosen = true;
  bool among = false;
  for (const Pair& pair : best) {
    Candidate candidate = Describe(pair);
    candidate.chosen =
        candidate.prefill == decision.choice.prefill && candidate.decode == decision.choice.decode;
    among |= candidate.chosen;
    decision.candidates.push_back(candidate);
  }
  if (!among) decision.candidates.push_back(decision.choice);
  return decision;
}

Candidate Dispatcher::Choice::Describe(const Pair& pair) const {
  const PrefillSide& prefill = prefills_[pair.prefill];
  Candidate candidate = {
      .prefill = prefill.worker,
      .score = pair.score,
      .ttft_s = work_.waited_s + prefill.queue_s + prefill.compute_s + prefill.load_s,
      .queue_s = prefill.queue_s,
      .compute_s = prefill.compute_s,
      .load_s = prefill.load_s,
      .cached_tokens = prefill.cached_tokens,
      .steps_ahead = prefill.steps_ahead};
  if (!work_.needs_decode) return candidate;
  const DecodeSide& decode = decodes_[pair.decode];
  candidate.decode = decode.worker;
  candidate.step_s = decode.step_s;
  candidate.decode_wait_s = decode.wait_s;
  candidate.handoff_s = HandoffSeconds(prefill, d_.LinkBetween(prefill.worker, decode.worker));
  candidate.tpot_s = TpotSeconds(decode, candidate.handoff_s);
  return candidate;
}

}  // namespace tandem::scheduler
