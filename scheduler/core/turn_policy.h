// Whose turn it is on a worker that prefills and decodes: how much time its sequences have saved,
// whether a prefill step may come between two decode steps, and by when it must. Used by the
// worker's TurnGate and by the simulator. Pure functions.
//
// A sequence that is being decoded saves time with every token that comes sooner than its objective
// asks. A prefill step is let in when all of them have saved as much as it takes, so that their
// mean time per token stays within the objective; or when its prompt's first token would come too
// late otherwise: then the two sides' steps alternate.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "scheduler/core/latency_model.h"

namespace tandem::scheduler {

/// Tokens of a prefill step between decode steps, 128 at least: of shorter pieces too much would be
/// what every step costs, whatever is in it.
uint32_t UsefulPieceTokens(const PrefillCost& cost);

/// Seconds that a sequence has saved which got `tokens` tokens in `seconds`. It may use up only a
/// part of its objective: the rest is for what nobody foresees.
double SavedSeconds(double tokens, double seconds, double tpot_objective_s);

/// What is known when a turn is given away.
struct TurnState {
  /// Sequences that wait for their next token, and the least that one of them has saved.
  uint32_t decoding = 0;
  double saved_s = 0;
  /// Whether the last step was a prefill step.
  bool prefilled_last = false;
};

/// Whether a prefill step of `step_s` seconds may begin now. `late`: its prompt's first token would
/// come too late otherwise. TPOT objective 0: steps alternate always.
bool PrefillMayEnter(const TurnState& state, double step_s, bool late, double tpot_objective_s);

/// How long a prefill step may take: what is saved; infinite when nothing is being decoded.
inline double PrefillSeconds(const TurnState& state) {
  return state.decoding == 0 ? std::numeric_limits<double>::infinity() : state.saved_s;
}

/// When the next prefill step must begin at the latest, given the prompts in the order in which
/// they are computed: each begins so that twice the predicted work up to its end fits before its
/// first token is due.
class LatestBegin {
 public:
  /// The next prompt: tokens left after `computed_tokens`, and when its first token is due, in
  /// seconds of any one clock.
  void Add(const PrefillCost& cost, uint32_t tokens_left, uint32_t computed_tokens, double due_s) {
    ahead_s_ += cost.Seconds(tokens_left, computed_tokens);
    begin_by_s_ = std::min(begin_by_s_, due_s - kTimesAhead * ahead_s_);
  }
  /// On the same clock; infinity without a prompt.
  double seconds() const { return begin_by_s_; }

 private:
  static constexpr double kTimesAhead = 2;
  double ahead_s_ = 0;
  double begin_by_s_ = std::numeric_limits<double>::infinity();
};

}  // namespace tandem::scheduler
