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
/// Workers that are looked at first, those that promise most: what they give rules most others out.
constexpr size_t kFirst = 8;
/// Where many are about equal, so many are enough to draw lots among: workers, and pairs of them.
/// Which ones, chance decides.
constexpr size_t kMostSides = 32, kMostPairs = 64;
/// What an objective missed by its own length adds to the score, besides the time itself.
constexpr double kMissed = 4;
/// Of a worker or a pair that is to be taken only when there is no other.
constexpr double kExcluded = 1e6;
/// Of a handoff from a worker that could decode the sequence itself; docs/scheduling.md says why.
constexpr double kLeaves = 2;
/// Of a prompt that a decode worker computes while sequences are there or on their way: as much as
/// a wait of the TTFT objective, so it is done when the prompt would about miss that elsewhere.
constexpr double kDisturbs = 1;
/// Scores that differ by less are equal, however small they are.
constexpr double kSmallestDifference = 1e-4;

/// Of a time in objectives.
double Term(double ratio) { return ratio + kMissed * (ratio > 1 ? ratio - 1 : 0); }

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
  double second_worst() const { return lowest_[N - 2]; }

 private:
  std::array<double, N> lowest_;
};

}  // namespace

struct Dispatcher::Scratch {
  struct Side {
    WorkerIndex worker = kNoWorker;
    double score = 0;
    double compute_s = 0;  // of those that were looked at closely
  };
  struct DecodeSide {
    WorkerIndex worker = kNoWorker;
    double penalty = 0, step_s = 0, wait_s = 0;
  };
  struct Pair {
    WorkerIndex prefill = kNoWorker, decode = kNoWorker;
    double score = 0;
  };
  std::vector<uint32_t> local_tokens;  // by worker: of the prompt's beginning, in its own store
  std::vector<double> loaded_s, least_ttft, step_s, wait_s, least_tpot;  // by worker
  std::vector<Side> least;     // prefill workers with their least scores
  std::vector<Side> prefills;  // of which each may go with any decode worker
  /// Decode workers that may prefill for themselves; with their least scores.
  std::vector<Side> alone;
  std::vector<WorkerIndex> first;  // decode workers that are looked at first
  std::vector<Pair> pairs;
};

class Dispatcher::Choice {
 public:
  Choice(const Dispatcher& dispatcher, const Work& work, double now_s, absl::BitGenRef random)
      : d_(dispatcher),
        work_(work),
        now_s_(now_s),
        random_(random),
        per_ttft_objective_(1 / dispatcher.options_.ttft_objective_s),
        tpot_objective_s_(dispatcher.options_.tpot_objective_s),
        per_tpot_objective_(1 / dispatcher.options_.tpot_objective_s),
        per_further_token_(1.0 / (std::max(2u, work.expected_output_tokens) - 1)),
        s_(*dispatcher.scratch_) {}

  absl::StatusOr<Decision> Make();

 private:
  using Side = Scratch::Side;
  using DecodeSide = Scratch::DecodeSide;
  using Pair = Scratch::Pair;
  struct Ttft {
    double queue_s = 0, compute_s = 0, load_s = 0, steps_ahead = 0;
    uint32_t cached_tokens = 0;
    double until_s() const { return queue_s + compute_s + load_s; }
  };

  // In the order in which they are called.
  void PickHolders();
  void ScorePrefills();
  void KeepBestPrefills();
  void PredictDecodes();
  void ScorePairs();
  Decision Decide();
  absl::Status Nobody() const;

  template <typename Visit>
  void FromAnywhere(size_t n, Visit visit);
  Ttft PredictTtft(WorkerIndex index) const;
  double AheadSeconds(const Hot& hot) const;
  void BoundLoads();
  void BoundTtfts();
  Side Scored(WorkerIndex index) const;
  DecodeSide DecodeOf(WorkerIndex index) const;
  double HandoffSeconds(double compute_s, WorkerIndex prefill, WorkerIndex decode) const;
  double TpotSeconds(const DecodeSide& decode, double handoff_s) const;
  double PairScore(const Side& prefill, const DecodeSide& decode) const;
  Candidate Describe(const Pair& pair) const;
  double Penalty(WorkerIndex worker) const;
  double PairPenalty(WorkerIndex prefill, WorkerIndex decode) const;
  double LeavingPenalty(WorkerIndex prefill, WorkerIndex decode) const;
  double DisturbingPenalty(WorkerIndex worker) const;
  double PenaltyOf(const Pair& pair) const;
  double Limit(double least, double penalty) const;

  const Dispatcher& d_;
  const Work& work_;
  const double now_s_;
  absl::BitGenRef random_;
  const double per_ttft_objective_, tpot_objective_s_, per_tpot_objective_;
  const double per_further_token_;
  Scratch& s_;
  std::array<CachedAt, kHolders> holders_;
  size_t n_holders_ = 0;
  uint32_t longest_ = 0;  // tokens of the prompt that they hold
};

Dispatcher::Dispatcher(const Options& options)
    : options_(options),
      unmeasured_(WayOf({options.default_bytes_per_s, options.default_rtt_s})),
      local_(WayOf({options.local_bytes_per_s, 0})),
      scratch_(std::make_unique<Scratch>()) {}
Dispatcher::~Dispatcher() = default;

absl::StatusOr<Decision> Dispatcher::Choose(const Work& work, double now_s,
                                            absl::BitGenRef random) {
  return Choice(*this, work, now_s, random).Make();
}

absl::StatusOr<Decision> Dispatcher::Choice::Make() {
  s_.prefills.clear();
  s_.alone.clear();
  s_.pairs.clear();
  if (work_.fixed_prefill) {
    s_.prefills.push_back({.worker = *work_.fixed_prefill});
  } else {
    PickHolders();
    ScorePrefills();
    KeepBestPrefills();
  }
  if (work_.needs_decode) PredictDecodes();
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

/// A sequence that a worker which does both gives away joins others elsewhere that have saved no
/// time for it: prompts there wait longer for their turn than the sequence would have cost at home.
double Dispatcher::Choice::LeavingPenalty(WorkerIndex prefill, WorkerIndex decode) const {
  if (work_.fixed_prefill || prefill == decode) return 0;
  return (d_.bounds_.role[prefill] & Bounds::kDecodes) != 0 ? kLeaves : 0;
}

double Dispatcher::Choice::DisturbingPenalty(WorkerIndex worker) const {
  return (d_.bounds_.role[worker] & Bounds::kServes) != 0 ? kDisturbs : 0;
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

double Dispatcher::Choice::AheadSeconds(const Hot& hot) const {
  return hot.ReportedSeconds(now_s_) + hot.assigned_ahead_s * hot.slowdown;
}

Dispatcher::Choice::Ttft Dispatcher::Choice::PredictTtft(WorkerIndex index) const {
  const Hot& hot = d_.hot_[index];
  const double slowdown = hot.slowdown;
  const double ahead_s = AheadSeconds(hot);
  Ttft ttft = {.queue_s = ahead_s, .steps_ahead = ahead_s / (slowdown * hot.full_step_s)};
  // At least the last token is computed anew.
  const uint32_t usable = work_.prompt_tokens - std::min(work_.prompt_tokens, 1u);
  auto compute = [&](uint32_t cached) {
    const uint32_t n_tokens = work_.prompt_tokens - cached;
    const double further_steps = std::floor((std::max(n_tokens, 1u) - 1) * hot.per_step_token);
    return (hot.prefill.Seconds(n_tokens, cached) + further_steps * hot.prefill.base_s) * slowdown;
  };
  double least_s = std::numeric_limits<double>::infinity();
  auto consider = [&](uint32_t cached, uint32_t moved, const Way& way) {
    cached = std::min(cached, usable);
    const double compute_s = compute(cached);
    const double arrives_s =
        moved == 0 ? 0 : way.rtt_s + moved * work_.kv_bytes_per_token * way.s_per_byte;
    const double load_s = std::max(0.0, arrives_s - ahead_s);
    if (compute_s + load_s >= least_s) return;
    least_s = compute_s + load_s;
    ttft.compute_s = compute_s;
    ttft.load_s = load_s;
    ttft.cached_tokens = cached;
  };
  const uint32_t local = s_.local_tokens[index];
  consider(0, 0, Way());
  if (local > 0) consider(local, local, d_.local_);
  for (size_t i = 0; i < n_holders_; ++i) {
    const CachedAt& holder = holders_[i];
    if (holder.tokens <= local || holder.worker == index) continue;
    consider(holder.tokens, holder.tokens - local, d_.WayBetween(holder.worker, index));
  }
  return ttft;
}

/// When what is cached can be there, by worker: from its own store, or the rest from a holder.
void Dispatcher::Choice::BoundLoads() {
  const size_t n_workers = d_.hot_.size();
  const double token_bytes = work_.kv_bytes_per_token;
  const double token_s = token_bytes / d_.options_.local_bytes_per_s;
  const uint32_t* const local_tokens = s_.local_tokens.data();
  s_.loaded_s.resize(n_workers);
  double* const loaded_s = s_.loaded_s.data();
  constexpr double kNever = std::numeric_limits<double>::infinity();
  for (size_t i = 0; i < n_workers; ++i) {
    const double tokens = static_cast<int32_t>(local_tokens[i]);
    const double seconds = tokens * token_s;
    loaded_s[i] = tokens > 0 ? seconds : kNever;
  }
  for (size_t h = 0; h < n_holders_; ++h) {
    const std::vector<Way>& ways = d_.ways_[holders_[h].worker];
    const Way* const row = ways.data();
    const auto tokens = static_cast<int32_t>(holders_[h].tokens);
    auto load = [=](size_t i, const Way& way) {
      const double moved = tokens - static_cast<int32_t>(local_tokens[i]);
      const double seconds = way.rtt_s + moved * token_bytes * way.s_per_byte;
      const double before_s = loaded_s[i];
      loaded_s[i] = (moved > 0) & (seconds < before_s) ? seconds : before_s;
    };
    const size_t n_known = std::min(ways.size(), n_workers);
    for (size_t i = 0; i < n_known; ++i) load(i, row[i]);
    for (size_t i = n_known; i < n_workers; ++i) load(i, d_.unmeasured_);
  }
}

/// No prediction comes lower: as if all that is cached anywhere were spared for the time that it
/// takes to load some of it. Plain loops over columns, which compilers turn into vector
/// instructions.
void Dispatcher::Choice::BoundTtfts() {
  BoundLoads();
  const size_t n_workers = d_.hot_.size();
  s_.least_ttft.resize(n_workers);
  const double n_cached = std::min(longest_, work_.prompt_tokens);
  const double n_computed = work_.prompt_tokens - n_cached;
  const double* const ahead_until_s = d_.bounds_.ahead_until_s.data();
  const double* const assigned_s = d_.bounds_.assigned_s.data();
  const double* const per_token_s = d_.bounds_.per_token_s.data();
  const double* const base_s = d_.bounds_.base_s.data();
  const double* const loaded_s = s_.loaded_s.data();
  double* const least = s_.least_ttft.data();
  for (size_t i = 0; i < n_workers; ++i) {
    const double work_left_s = ahead_until_s[i] - now_s_;
    const double ahead_s = (work_left_s > 0 ? work_left_s : 0) + assigned_s[i];
    const double computed_s = ahead_s + n_cached * per_token_s[i];
    const double spared_s = ahead_s > loaded_s[i] ? ahead_s : loaded_s[i];
    const double ttft_s = (computed_s < spared_s ? computed_s : spared_s) +
                          n_computed * per_token_s[i] + base_s[i] + work_.waited_s;
    least[i] = Term(ttft_s * per_ttft_objective_);
  }
}

Dispatcher::Choice::Side Dispatcher::Choice::Scored(WorkerIndex index) const {
  const Ttft ttft = PredictTtft(index);
  return {.worker = index,
          .score = Term((work_.waited_s + ttft.until_s()) * per_ttft_objective_) + Penalty(index),
          .compute_s = ttft.compute_s};
}

void Dispatcher::Choice::ScorePrefills() {
  BoundTtfts();
  // Decode workers prefill for others only when no other worker prefills.
  const std::vector<uint8_t>& roles = d_.bounds_.role;
  uint8_t all = 0;
  for (const uint8_t role : roles) all |= role;
  const uint8_t prefills =
      (all & Bounds::kPrefills) != 0 ? Bounds::kPrefills : Bounds::kPrefillsToo;
  s_.least.clear();
  Lowest<kFirst + 1> first;
  const double* const least = s_.least_ttft.data();
  for (WorkerIndex i = 0; i < roles.size(); ++i) {
    if ((roles[i] & prefills) != 0) {
      s_.least.push_back({.worker = i, .score = least[i]});
      first.Insert(least[i]);
    } else if ((roles[i] & Bounds::kPrefillsSelf) != 0 && work_.needs_decode) {
      s_.alone.push_back({.worker = i, .score = least[i]});
    }
  }
  // Who can neither come among the best nor equal the best one need not be looked at closely.
  Lowest<kPrefillSides> best;
  double limit = best.worst();
  auto look = [&](const Side& side) {
    if (side.score > limit) return;
    s_.prefills.push_back(Scored(side.worker));
    best.Insert(s_.prefills.back().score);
    limit = std::max(best.worst(), Limit(best.best(), 0));
  };
  for (const Side& side : s_.least) {
    if (side.score <= first.second_worst()) look(side);
  }
  if (first.worst() > limit) return;
  FromAnywhere(s_.least.size(), [&](size_t i) {
    if (s_.least[i].score > first.second_worst()) look(s_.least[i]);
    return s_.prefills.size() < kMostSides;
  });
}

/// Calls `visit` with 0 to n - 1, beginning anywhere and going round, until it returns false.
template <typename Visit>
void Dispatcher::Choice::FromAnywhere(size_t n, Visit visit) {
  if (n == 0) return;
  size_t at = absl::Uniform<size_t>(random_, 0, n);
  for (size_t i = 0; i < n && visit(at); ++i) at = at + 1 == n ? 0 : at + 1;
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

/// Of each worker a step with the sequence in it, how long that waits for a place, and the lowest
/// score of its TPOT, with KV that is there at once; ages for one that takes no sequence. Plain
/// loops over columns, too: with few enough columns each for compilers to see that they are apart.
void Dispatcher::Choice::PredictDecodes() {
  const size_t n_workers = d_.hot_.size();
  s_.step_s.resize(n_workers);
  s_.wait_s.resize(n_workers);
  s_.least_tpot.resize(n_workers);
  const Bounds& bounds = d_.bounds_;
  const double* const next_s = bounds.step_s.data();
  const double* const per_context_token_s = bounds.per_context_token_s.data();
  const double* const lives_to_wait = bounds.lives_to_wait.data();
  const double* const life_tokens = bounds.life_tokens.data();
  const double* const per_capacity_token = bounds.per_capacity_token.data();
  const double* const prefill_ahead_s = bounds.prefill_ahead_s.data();
  double* const steps_s = s_.step_s.data();
  double* const waits_s = s_.wait_s.data();
  double* const least = s_.least_tpot.data();
  const double prompt = work_.prompt_tokens, output = work_.expected_output_tokens;
  const double objective_s = tpot_objective_s_, per_objective = per_tpot_objective_;
  const double per_further = per_further_token_;
  for (size_t i = 0; i < n_workers; ++i) {
    const double alone_s = next_s[i] + prompt * per_context_token_s[i];
    // While it computes prompts as well, its steps come as far apart as the objective allows.
    const double spare_s = objective_s - alone_s;
    const double lives_ahead = prefill_ahead_s[i] / (output * alone_s);
    const double share = lives_ahead < 1 ? lives_ahead : 1;
    steps_s[i] = alone_s + share * (spare_s > 0 ? spare_s : 0);
  }
  for (size_t i = 0; i < n_workers; ++i) {
    // Places and room come free as sequences of the expected length end.
    const double over = (life_tokens[i] + prompt + output) * per_capacity_token[i] - 1;
    waits_s[i] = output * steps_s[i] * (lives_to_wait[i] > over ? lives_to_wait[i] : over);
    least[i] = Term((steps_s[i] + waits_s[i] * per_further) * per_objective);
  }
}

Dispatcher::Choice::DecodeSide Dispatcher::Choice::DecodeOf(WorkerIndex index) const {
  return {.worker = index,
          .penalty = Penalty(index),
          .step_s = s_.step_s[index],
          .wait_s = s_.wait_s[index]};
}

/// How long the KV is on its way after the prompt was computed: it moves while that goes on, but
/// its last piece cannot. The way in is shared with what others still have to send there.
double Dispatcher::Choice::HandoffSeconds(double compute_s, WorkerIndex prefill,
                                          WorkerIndex decode) const {
  const Way way = d_.WayBetween(prefill, decode);
  const double sharers = prefill == decode ? 1 : 1 + d_.bounds_.coming[decode];
  const double token_s = work_.kv_bytes_per_token * sharers * way.s_per_byte;
  const double last_s = std::min(work_.prompt_tokens, d_.options_.chunk_tokens) * token_s;
  return way.rtt_s + std::max(last_s, work_.prompt_tokens * token_s - compute_s);
}

double Dispatcher::Choice::TpotSeconds(const DecodeSide& decode, double handoff_s) const {
  return decode.step_s + (decode.wait_s + handoff_s) * per_further_token_;
}

double Dispatcher::Choice::PairScore(const Side& prefill, const DecodeSide& decode) const {
  const double handoff_s = HandoffSeconds(prefill.compute_s, prefill.worker, decode.worker);
  return prefill.score + Term(TpotSeconds(decode, handoff_s) * per_tpot_objective_) +
         decode.penalty + PairPenalty(prefill.worker, decode.worker) +
         LeavingPenalty(prefill.worker, decode.worker);
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
  auto add = [&](const Side& prefill, const DecodeSide& decode) {
    const double score = PairScore(prefill, decode);
    s_.pairs.push_back({.prefill = prefill.worker, .decode = decode.worker, .score = score});
    least.Insert(score);
    limit = std::max(least.worst(), Limit(least.best(), 0));
  };
  Lowest<kFirst + 1> first;
  for (const double score : s_.least_tpot) first.Insert(score);
  Lowest<1> best_prefill;
  for (const Side& side : s_.prefills) best_prefill.Insert(side.score);
  const std::vector<uint8_t>& roles = d_.bounds_.role;
  // Those that do both, each with itself: no other pair may push these out.
  const bool may_stay = !work_.fixed_prefill;  // of which the worker may have left
  for (const Side& side : s_.prefills) {
    if (!may_stay || (roles[side.worker] & Bounds::kDecodes) == 0) continue;
    add(side, DecodeOf(side.worker));
  }
  auto look = [&](WorkerIndex worker) {
    const double least_tpot = s_.least_tpot[worker];
    if (best_prefill.best() + least_tpot > limit || (roles[worker] & Bounds::kDecodes) == 0) {
      return true;
    }
    const DecodeSide decode = DecodeOf(worker);
    for (const Side& side : s_.prefills) {
      if (may_stay && side.worker == worker) continue;
      if (side.score + least_tpot <= limit) add(side, decode);
    }
    return s_.pairs.size() < kMostPairs;
  };
  s_.first.clear();
  for (WorkerIndex w = 0; w < s_.least_tpot.size(); ++w) {
    if (s_.least_tpot[w] <= first.second_worst()) s_.first.push_back(w);
  }
  FromAnywhere(s_.first.size(), [&](size_t i) { return look(s_.first[i]); });
  if (best_prefill.best() + first.worst() <= limit) {
    FromAnywhere(s_.least_tpot.size(), [&](size_t w) {
      return s_.least_tpot[w] <= first.second_worst() || look(static_cast<WorkerIndex>(w));
    });
  }
  // Decode workers that prefill, each with itself.
  const size_t n_most = s_.pairs.size() + kMostSides;
  FromAnywhere(s_.alone.size(), [&](size_t i) {
    const Side& least_own = s_.alone[i];
    const WorkerIndex worker = least_own.worker;
    if (least_own.score + s_.least_tpot[worker] > limit) return true;
    Side own = Scored(worker);
    own.score += DisturbingPenalty(worker);
    add(own, DecodeOf(worker));
    return s_.pairs.size() < n_most;
  });
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
                         .ttft_s = work_.waited_s + ttft.until_s(),
                         .queue_s = ttft.queue_s,
                         .compute_s = ttft.compute_s,
                         .load_s = ttft.load_s,
                         .cached_tokens = ttft.cached_tokens,
                         .steps_ahead = ttft.steps_ahead};
  if (!work_.needs_decode) return candidate;
  DecodeSide decode = DecodeOf(pair.decode);
  // The sequence needs its place only when the prompt is computed. Scores count the whole wait, by
  // which workers that have no place are told apart.
  decode.wait_s = std::max(0.0, decode.wait_s - ttft.until_s());
  candidate.step_s = decode.step_s;
  candidate.decode_wait_s = decode.wait_s;
  candidate.handoff_s = HandoffSeconds(ttft.compute_s, pair.prefill, pair.decode);
  candidate.tpot_s = TpotSeconds(decode, candidate.handoff_s);
  return candidate;
}

}  // namespace tandem::scheduler
