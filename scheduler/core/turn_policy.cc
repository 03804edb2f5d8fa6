#include "scheduler/core/turn_policy.h"

namespace tandem::scheduler {
namespace {

/// What a sequence may use up of its objective.
constexpr double kUsableShare = 0.7;
constexpr uint32_t kLeastPieceTokens = 128, kMostPieceTokens = 8192;
/// How much of a piece's time its tokens take, in units of what a step costs by itself.
constexpr double kTimesBase = 8;

}  // namespace

uint32_t UsefulPieceTokens(const PrefillCost& cost) {
  if (cost.per_token_s <= 0) return kLeastPieceTokens;
  const double tokens =
      std::min<double>(kTimesBase * cost.base_s / cost.per_token_s, kMostPieceTokens);
  return std::max(kLeastPieceTokens, static_cast<uint32_t>(std::max(0.0, tokens)));
}

double SavedSeconds(double tokens, double seconds, double tpot_objective_s) {
  return tokens * kUsableShare * tpot_objective_s - seconds;
}

bool PrefillMayEnter(const TurnState& state, double step_s, bool late, double tpot_objective_s) {
  if (state.decoding == 0) return true;
  if (state.prefilled_last) return false;
  return late || tpot_objective_s == 0 || step_s <= state.saved_s;
}

}  // namespace tandem::scheduler
