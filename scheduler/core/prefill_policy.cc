#include "scheduler/core/prefill_policy.h"

#include <algorithm>
#include <cmath>

namespace tandem::scheduler {
namespace {

uint32_t Left(const PromptProgress& prompt) { return prompt.total_tokens - prompt.computed_tokens; }

uint32_t Ready(const PromptProgress& prompt) {
  return prompt.may_compute_tokens > prompt.computed_tokens
             ? prompt.may_compute_tokens - prompt.computed_tokens
             : 0;
}

}  // namespace

std::vector<PrefillPiece> PlanPrefillStep(std::span<PromptProgress* const> prompts,
                                          uint32_t step_tokens, uint64_t overtake_tokens) {
  std::vector<uint32_t> open;  // not yet in the step, able to compute; in order of arrival
  for (uint32_t i = 0; i < prompts.size(); ++i) {
    if (Ready(*prompts[i]) > 0) open.push_back(i);
  }
  std::vector<PrefillPiece> pieces;
  while (!open.empty() && step_tokens > 0) {
    // The shortest of those that all before it let pass. Who has passed nobody may always go.
    size_t next = 0;
    uint64_t allowance = UINT64_MAX;
    for (size_t k = 0; k < open.size(); ++k) {
      const PromptProgress& prompt = *prompts[open[k]];
      if (prompt.tenant != prompts[open[0]]->tenant) break;
      if (k > 0 && Left(prompt) <= allowance && Left(prompt) < Left(*prompts[open[next]])) {
        next = k;
      }
      allowance = std::min(allowance, overtake_tokens > prompt.overtaken_tokens
                                          ? overtake_tokens - prompt.overtaken_tokens
                                          : 0);
      if (allowance == 0) break;
    }
    const uint32_t n_tokens = std::min(step_tokens, Ready(*prompts[open[next]]));
    for (size_t k = 0; k < next; ++k) prompts[open[k]]->overtaken_tokens += n_tokens;
    pieces.push_back({.prompt = open[next], .n_tokens = n_tokens});
    step_tokens -= n_tokens;
    open.erase(open.begin() + static_cast<std::ptrdiff_t>(next));
  }
  return pieces;
}

uint32_t PieceTokens(const PrefillCost& cost, uint64_t first_position, double budget_s,
                     uint32_t min_tokens, uint32_t max_tokens) {
  if (!std::isfinite(budget_s)) return budget_s > 0 ? max_tokens : std::min(min_tokens, max_tokens);
  // base + n (per_token + position × per_position) + n (n − 1) / 2 × per_position = budget
  const double a = cost.per_position_s / 2;
  const double b =
      cost.per_token_s + (static_cast<double>(first_position) - 0.5) * cost.per_position_s;
  const double c = budget_s - cost.base_s;
  double n = 0;
  if (c > 0) {
    const double root = std::sqrt(std::max(0.0, b * b + 4 * a * c));
    n = b + root > 0 ? 2 * c / (b + root) : max_tokens;
  }
  n = std::min(n, static_cast<double>(max_tokens));
  return std::min(max_tokens, std::max(min_tokens, static_cast<uint32_t>(n)));
}

}  // namespace tandem::scheduler
