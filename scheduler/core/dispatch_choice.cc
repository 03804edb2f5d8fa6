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

/// The N lowest of some numbers.
template <size_t N>
class Lowest {
 public:
  Lowest() { lowest_.fill(std::numeric_limits<double>::infinity()); }
  void Insert(double number) {
    if (number >= worst()) return;
    size_t at = N - 1;
    for (; at > 0 && lowest_[at - 1] > number; --at) lowest_[at] = lowest_[at - 1];
    lowest_[at] = number;
  }
  double best() const { return lowest_[0]; }
  /// Infinity while there are fewer than N.
  double worst() const { return lowest_[N - 1]; }

 private:
  std::array<double, N> lowest_;
};

}  // namespace

struct Dispatcher::Scratch {
  struct Side {
    WorkerIndex worker = kNoWorker;
    double score = 0;
  };
  struct DecodeSide {
    WorkerIndex worker = kNoWorker;
    double penalty = 0, step_s = 0, wait_s = 0;
    double least_score = 0;  // with KV that is there at once
  };
  struct Pair {
    WorkerIndex prefill = kNoWorker, decode = kNoWorker;
    double score = 0;
  };
  std::vector<uint32_t> local_tokens;  // by worker: of the prompt's beginning, in its own store
  std::vector<Side> prefills;          // of which each may go with any decode worker
  /// Decode workers that may prefill for themselves; with their least scores.
  std::vector<Side> alone;
  std::vector<DecodeSide> decodes;  // by rising worker index
  std::vector<Pair> pairs;
};

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
                                                    : dispatcher.options_.tpot_objective_s),
        per_further_token_(1.0 / (std::max(2u, work.expected_output_tokens) - 1)),
        s_(*dispatcher.scratch_),
        fastest_token_s_(
            work.kv_bytes_per_token /
            std::max({dispatcher.fastest_bytes_per_s_, dispatcher.options_.default_bytes_per_s,
                      dispatcher.options_.local_bytes_per_s})) {}

  absl::StatusOr<Decision> Make();

 private:
  using Side = Scratch::Side;
  using DecodeSide = Scratch::DecodeSide;
  using Pair = Scratch::Pair;
  struct Ttft {
    double queue_s = 0, compute_s = 0, load_s = 0, steps_ahead = 0;
    uint32_t cached_tokens = 0;
  };

  // In the order in which they are called.
  void PickHolders();
  void ScorePrefills();
  void KeepBestPrefills();
  void ScoreDecodes();
  void ScorePairs();
  Decision Decide();
  absl::Status Nobody() const;

  Ttft PredictTtft(WorkerIndex index) const;
  double Slowdown(const Hot& hot) const;
  double AheadSeconds(const Hot& hot, double slowdown) const;
  double LeastScore(WorkerIndex index) const;
  double ScoreOf(WorkerIndex index) const;
  DecodeSide PredictDecode(WorkerIndex index) const;
  double HandoffSeconds(double compute_s, const Link& link) const;
  double TpotSeconds(const DecodeSide& decode, double handoff_s) const;
  double PairScore(const Side& prefill, double compute_s, const DecodeSide& decode) const;
  Candidate Describe(const Pair& pair) const;
  double Penalty(WorkerIndex worker) const;
  double PairPenalty(WorkerIndex prefill, WorkerIndex decode) const;
  double PenaltyOf(const Pair& pair) const;
  double Limit(double least, double penalty) const;

  const Dispatcher& d_;
  const Work& work_;
  const double now_s_;
  absl::BitGenRef random_;
  const double ttft_objective_s_, tpot_objective_s_;
  const double per_further_token_;
  Scratch& s_;
  std::array<CachedAt, kHolders> holders_;
  size_t n_holders_ = 0;
  const double fastest_token_s_;  // of a token's KV over the fastest link there is
  uint32_t longest_ = 0;          // tokens of the prompt that they hold
};

Dispatcher::Dispatcher(const Options& options)
    : options_(options), scratch_(std::make_unique<Scratch>()) {}
Dispatcher::~Dispatcher() = default;

absl::StatusOr<Decision> Dispatcher::Choose(const Work& work, double now_s,
                                            absl::BitGenRef random) {
  return Choice(*this, work, now_s, random).Make();
}

absl::StatusOr<Decision> Dispatcher::Choice::Make() {
  s_.prefills.clear();
  s_.alone.clear();
  s_.decodes.clear();
  s_.pairs.clear();
  if (work_.fixed_prefill) {
    s_.prefills.push_back({.worker = *work_.fixed_prefill});
  } else {
    PickHolders();
    ScorePrefills();
    KeepBestPrefills();
  }
  if (work_.needs_decode) ScoreDecodes();
  ScorePairs();
  if (s_.pairs.empty()) return Nobody();
  return Decide();
}

absl::Status Dispatcher::Choice::Nobody() const {
  return absl::UnavailableError(
      absl::StrCat("no ", s_.prefills.empty() ? "prefill" : "decode",
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

double Dispatcher::Choice::PenaltyOf(const Pair& pair) const {
  const double prefill = work_.fixed_prefill ? 0 : Penalty(pair.prefill);
  if (!work_.needs_decode) return prefill;
  return prefill + Penalty(pair.decode) + PairPenalty(pair.prefill, pair.decode);
}

/// The highest score that equals `least`, of which so much is penalty.
double Dispatcher::Choice::Limit(double least, double penalty) const {
  return least + kSmallestDifference + d_.options_.near_equal * (least - penalty);
}

void Dispatcher::Choice::PickHolders() {
  s_.local_tokens.assign(d_.workers_.size(), 0);
  for (const CachedAt& at : work_.cached) {
    if (at.worker >= s_.local_tokens.size()) continue;
    s_.local_tokens[at.worker] = std::min(at.tokens, work_.prompt_tokens);
    longest_ = std::max(longest_, s_.local_tokens[at.worker]);
  }
  if (longest_ == 0) return;
  // Some of those that hold the most, from anywhere on: what everybody has is loaded from anybody.
  const size_t n = work_.cached.size(), first = absl::Uniform<size_t>(random_, 0, n);
  for (size_t i = 0; i < n && n_holders_ < kHolders; ++i) {
    const WorkerIndex worker = work_.cached[(first + i) % n].worker;
    if (worker < s_.local_tokens.size() && s_.local_tokens[worker] == longest_) {
      holders_[n_holders_++] = {worker, longest_};
    }
  }
}

/// How much longer prefill takes there: decode steps leave it the rest of the worker's time.
double Dispatcher::Choice::Slowdown(const Hot& hot) const {
  return hot.step_s == 0 ? 1 : 1 / std::max(kLeastShare, 1 - hot.step_s / tpot_objective_s_);
}

double Dispatcher::Choice::AheadSeconds(const Hot& hot, double slowdown) const {
  const double worked_s = std::max(0.0, now_s_ - hot.reported_s);
  return std::max(0.0, hot.reported_ahead_s * slowdown - worked_s) +
         hot.assigned_ahead_s * slowdown;
}

Dispatcher::Choice::Ttft Dispatcher::Choice::PredictTtft(WorkerIndex index) const {
  const Hot& hot = d_.hot_[index];
  const double slowdown = Slowdown(hot);
  const double ahead_s = AheadSeconds(hot, slowdown);
  Ttft ttft = {.queue_s = ahead_s, .steps_ahead = ahead_s / (slowdown * hot.full_step_s)};
  // At least the last token is computed anew.
  const uint32_t usable = work_.prompt_tokens - std::min(work_.prompt_tokens, 1u);
  auto compute = [&](uint32_t cached) {
    const uint32_t n_tokens = work_.prompt_tokens - cached;
    const double further_steps = std::floor((std::max(n_tokens, 1u) - 1) * hot.per_step_token);
    return (hot.prefill.Seconds(n_tokens, cached) + further_steps * hot.prefill.base_s) * slowdown;
  };
  double least_s = std::numeric_limits<double>::infinity();
  auto consider = [&](uint32_t cached, uint32_t moved, const Link& link) {
    cached = std::min(cached, usable);
    const double compute_s = compute(cached);
    const double arrives_s =
        moved == 0 ? 0 : link.rtt_s + moved * work_.kv_bytes_per_token / link.bytes_per_s;
    const double load_s = std::max(0.0, arrives_s - ahead_s);
    if (compute_s + load_s >= least_s) return;
    least_s = compute_s + load_s;
    ttft.compute_s = compute_s;
    ttft.load_s = load_s;
    ttft.cached_tokens = cached;
  };
  const uint32_t local = s_.local_tokens[index];
  consider(0, 0, Link());
  if (local > 0) consider(local, local, d_.LinkBetween(index, index));
  for (size_t i = 0; i < n_holders_; ++i) {
    const CachedAt& holder = holders_[i];
    if (holder.tokens <= local || holder.worker == index) continue;
    consider(holder.tokens, holder.tokens - local, d_.LinkBetween(holder.worker, index));
  }
  return ttft;
}

/// No prediction comes lower: as if all that is cached anywhere came over the fastest link there
/// is.
double Dispatcher::Choice::LeastScore(WorkerIndex index) const {
  const Hot& hot = d_.hot_[index];
  const double slowdown = Slowdown(hot);
  const double whole_s = work_.prompt_tokens * hot.prefill.per_token_s;
  const uint32_t n_cached = std::min(longest_, work_.prompt_tokens);
  const double spared_s = n_cached * hot.prefill.per_token_s * slowdown;
  const double ahead_s = AheadSeconds(hot, slowdown);
  const double load_s = (n_cached - s_.local_tokens[index]) * fastest_token_s_;
  const double ready_s = std::min(ahead_s + spared_s, std::max(ahead_s, load_s));
  return Term(work_.waited_s + ready_s + (whole_s + hot.prefill.base_s) * slowdown - spared_s,
              ttft_objective_s_) +
         Penalty(index);
}

double Dispatcher::Choice::ScoreOf(WorkerIndex index) const {
  const Ttft ttft = PredictTtft(index);
  return Term(work_.waited_s + ttft.queue_s + ttft.compute_s + ttft.load_s, ttft_objective_s_) +
         Penalty(index);
}

void Dispatcher::Choice::ScorePrefills() {
  // Decode workers prefill for others only when no other worker prefills.
  const bool anybody = std::any_of(d_.hot_.begin(), d_.hot_.end(), [](const Hot& hot) {
    return hot.takes_prefill && !hot.decode_first;
  });
  // Who can neither come among the best nor equal the best one need not be looked at closely.
  Lowest<kPrefillSides> least;
  double limit = least.worst();
  for (WorkerIndex i = 0; i < d_.hot_.size(); ++i) {
    const Hot& hot = d_.hot_[i];
    if (!hot.takes_prefill) continue;
    if (hot.decode_first != anybody) {
      if (LeastScore(i) > limit) continue;
      const double score = ScoreOf(i);
      s_.prefills.push_back({.worker = i, .score = score});
      least.Insert(score);
      limit = std::max(least.worst(), Limit(least.best(), 0));
    } else if (hot.takes_decode && work_.needs_decode &&
               (hot.step_s == 0 || hot.next_step_s + hot.least_piece_s <= tpot_objective_s_)) {
      s_.alone.push_back({.worker = i, .score = LeastScore(i)});
    }
  }
}

/// Equals at the edge draw lots, so that the same ones are not always taken.
void Dispatcher::Choice::KeepBestPrefills() {
  auto& sides = s_.prefills;
  if (sides.size() <= kPrefillSides) return;
  const auto lower = [](const Side& a, const Side& b) { return a.score < b.score; };
  const auto best = std::min_element(sides.begin(), sides.end(), lower);
  const double limit = Limit(best->score, Penalty(best->worker));
  const auto equals_end = std::partition(sides.begin(), sides.end(),
                                         [&](const Side& side) { return side.score <= limit; });
  const auto n_equal = static_cast<size_t>(equals_end - sides.begin());
  if (n_equal > kPrefillSides) {
    for (size_t i = 0; i < kPrefillSides; ++i) {
      std::swap(sides[i], sides[absl::Uniform<size_t>(random_, i, n_equal)]);
    }
  } else {
    std::partial_sort(equals_end, sides.begin() + kPrefillSides, sides.end(), lower);
  }
  sides.resize(kPrefillSides);
}

Dispatcher::Choice::DecodeSide Dispatcher::Choice::PredictDecode(WorkerIndex index) const {
  const Hot& hot = d_.hot_[index];
  DecodeSide side = {.worker = index, .penalty = Penalty(index)};
  side.step_s = hot.next_step_s + work_.prompt_tokens * hot.per_context_token_s;
  // Places and room come free as sequences of the expected length end.
  const double life_s = work_.expected_output_tokens * side.step_s;
  const double life_tokens = hot.life_tokens + work_.prompt_tokens + work_.expected_output_tokens;
  side.wait_s = life_s * std::max(hot.lives_to_wait, life_tokens * hot.per_capacity_token - 1);
  // While it computes prompts as well, its steps come as far apart as the objective allows.
  if (hot.takes_prefill) {
    const double prefill_s = hot.reported_ahead_s + hot.assigned_ahead_s;
    if (prefill_s > 0) {
      side.step_s +=
          std::min(1.0, prefill_s / life_s) * std::max(0.0, tpot_objective_s_ - side.step_s);
    }
  }
  return side;
}

void Dispatcher::Choice::ScoreDecodes() {
  for (WorkerIndex i = 0; i < d_.hot_.size(); ++i) {
    if (!d_.hot_[i].takes_decode) continue;
    DecodeSide& side = s_.decodes.emplace_back(PredictDecode(i));
    side.least_score = Term(TpotSeconds(side, 0), tpot_objective_s_) + side.penalty;
  }
}

/// How long the KV is on its way after the prompt was computed: it moves while that goes on, but
/// its last piece cannot.
double Dispatcher::Choice::HandoffSeconds(double compute_s, const Link& link) const {
  const double token_s = work_.kv_bytes_per_token / link.bytes_per_s;
  const double last_s = std::min(work_.prompt_tokens, d_.options_.chunk_tokens) * token_s;
  return link.rtt_s + std::max(last_s, work_.prompt_tokens * token_s - compute_s);
}

double Dispatcher::Choice::TpotSeconds(const DecodeSide& decode, double handoff_s) const {
  return decode.step_s + (decode.wait_s + handoff_s) * per_further_token_;
}

double Dispatcher::Choice::PairScore(const Side& prefill, double compute_s,
                                     const DecodeSide& decode) const {
  const double handoff_s = HandoffSeconds(compute_s, d_.LinkBetween(prefill.worker, decode.worker));
  return prefill.score + Term(TpotSeconds(decode, handoff_s), tpot_objective_s_) + decode.penalty +
         PairPenalty(prefill.worker, decode.worker);
}

void Dispatcher::Choice::ScorePairs() {
  if (!work_.needs_decode) {
    for (const Side& side : s_.prefills) {
      s_.pairs.push_back({.prefill = side.worker, .score = side.score});
    }
    return;
  }
  // A pair that cannot come among the best, nor equal the best one, need not be looked at: its link
  // would only make it worse.
  Lowest<kCandidates> least;
  double limit = least.worst();
  auto add = [&](const Side& prefill, double compute_s, const DecodeSide& decode) {
    if (prefill.score + decode.least_score > limit) return;
    const double score = PairScore(prefill, compute_s, decode);
    s_.pairs.push_back({.prefill = prefill.worker, .decode = decode.worker, .score = score});
    least.Insert(score);
    limit = std::max(least.worst(), Limit(least.best(), 0));
  };
  for (const Side& prefill : s_.prefills) {
    const double compute_s = work_.fixed_prefill ? 0 : PredictTtft(prefill.worker).compute_s;
    for (const DecodeSide& decode : s_.decodes) add(prefill, compute_s, decode);
  }
  // Each with itself; both are in order of index.
  auto decode = s_.decodes.begin();
  for (const Side& own : s_.alone) {
    while (decode->worker != own.worker) ++decode;
    if (own.score + decode->least_score > limit) continue;
    const Side side = {.worker = own.worker, .score = ScoreOf(own.worker)};
    add(side, PredictTtft(own.worker).compute_s, *decode);
  }
}

Decision Dispatcher::Choice::Decide() {
  std::vector<Pair> best;  // by rising score
  for (const Pair& pair : s_.pairs) {
    if (best.size() == kCandidates && pair.score >= best.back().score) continue;
    if (best.size() == kCandidates) best.pop_back();
    best.insert(std::upper_bound(best.begin(), best.end(), pair,
                                 [](const Pair& a, const Pair& b) { return a.score < b.score; }),
                pair);
  }
  const double limit = Limit(best[0].score, PenaltyOf(best[0]));
  // Two of the equals by lot (Mitzenmacher, "The Power of Two Choices", 2001).
  const auto n_equal = static_cast<size_t>(std::count_if(
      s_.pairs.begin(), s_.pairs.end(), [&](const Pair& pair) { return pair.score <= limit; }));
  const std::array<size_t, 2> at = {absl::Uniform<size_t>(random_, 0, n_equal),
                                    absl::Uniform<size_t>(random_, 0, n_equal)};
  std::array<const Pair*, 2> lots = {};
  size_t n = 0;
  for (const Pair& pair : s_.pairs) {
    if (pair.score > limit) continue;
    if (n == at[0]) lots[0] = &pair;
    if (n == at[1]) lots[1] = &pair;
    ++n;
  }
  auto load = [&](const Pair& pair) {
    return (pair.prefill == kNoWorker ? 0 : d_.assigned(pair.prefill)) +
           (pair.decode == kNoWorker ? 0 : d_.assigned(pair.decode));
  };
  Decision decision = {.choice = Describe(load(*lots[1]) < load(*lots[0]) ? *lots[1] : *lots[0])};
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
  const Ttft ttft = work_.fixed_prefill ? Ttft() : PredictTtft(pair.prefill);
  Candidate candidate = {.prefill = pair.prefill,
                         .decode = pair.decode,
                         .score = pair.score,
                         .ttft_s = work_.waited_s + ttft.queue_s + ttft.compute_s + ttft.load_s,
                         .queue_s = ttft.queue_s,
                         .compute_s = ttft.compute_s,
                         .load_s = ttft.load_s,
                         .cached_tokens = ttft.cached_tokens,
                         .steps_ahead = ttft.steps_ahead};
  if (!work_.needs_decode) return candidate;
  const DecodeSide decode = PredictDecode(pair.decode);
  candidate.step_s = decode.step_s;
  candidate.decode_wait_s = decode.wait_s;
  candidate.handoff_s = HandoffSeconds(ttft.compute_s, d_.LinkBetween(pair.prefill, pair.decode));
  candidate.tpot_s = TpotSeconds(decode, candidate.handoff_s);
  return candidate;
}

}  // namespace tandem::scheduler
