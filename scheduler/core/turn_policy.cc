#include "scheduler/core/turn_policy.h"

namespace tandem::scheduler {
namespace {

/// What a sequence may use up of its objective.
constexpr double kUsableShare = 0.7;

}  // namespace

double SavedSeconds(double tokens, double seconds, double tpot_objective_s) {
  return tokens * kUsableShare * tpot_objective_s - seconds;
}

bool PrefillMayEnter(const TurnState& state, double step_s, bool late, double tpot_objective_s) {
  if (state.decoding == 0) return true;
  if (state.prefilled_last) return false;
  return late || tpot_objective_s == 0 || step_s <= state.saved_s;
}

}  // namespace tandem::scheduler
