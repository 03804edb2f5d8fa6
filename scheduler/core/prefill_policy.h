// Which prompt tokens the next prefill step takes: first come first served up to a budget
// (DistServe §4.3), long prompts in pieces, with overtaking that is bounded. Used by the worker's
// prefill loop and by the simulator. Pure functions.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "scheduler/core/latency_model.h"

namespace tandem::scheduler {

/// How many tokens of prompts that came later may be computed before one's own, unless configured.
inline constexpr uint32_t kDefaultOvertakeTokens = 1024;

/// A prompt that may be computed. The caller keeps it from arrival to last token; the policy
/// changes `overtaken_tokens` alone.
struct PromptProgress {
  uint32_t total_tokens = 0;
  /// Tokens whose KV is there: computed here, or loaded.
  uint32_t computed_tokens = 0;
  /// Tokens that may be computed now without waiting for chunks on their way; ≤ total_tokens.
  uint32_t may_compute_tokens = 0;
  /// Tokens of prompts that came later and were taken before this one's.
  uint64_t overtaken_tokens = 0;
  /// Prompts overtake their own tenant's alone.
  std::string_view tenant = {};
};

/// What a step takes of one prompt: the next `n_tokens` after those computed.
struct PrefillPiece {
  /// Index into the prompts given.
  uint32_t prompt = 0;
  uint32_t n_tokens = 0;
};

/// The next step's pieces, at most one a prompt, `step_tokens` tokens at most in all. `prompts` are
/// in order of arrival. In that order they are served, except that a prompt with fewer tokens left
/// goes before a longer one that came earlier, for as long as no prompt is overtaken by more than
/// `overtake_tokens` tokens in all and the shorter one fits that allowance whole, nor any by
/// another tenant's; 0: strictly in order of arrival. A prompt that waits for chunks on their way
/// holds nobody up. Empty: nothing can be computed now.
std::vector<PrefillPiece> PlanPrefillStep(std::span<PromptProgress* const> prompts,
                                          uint32_t step_tokens, uint64_t overtake_tokens);

/// The most tokens of a step over `n_ready` prompts of the tenant whose turn it is, for an engine
/// whose steps have room for `engine_tokens`: more than saturate it would only delay the first of
/// several prompts, or one that may come (`yields`, see TenantOrder), and cost a lone one what each
/// further step costs by itself.
inline uint32_t StepTokens(size_t n_ready, bool yields, uint32_t engine_tokens,
                           const LatencyModel& latency) {
  return n_ready > 1 || yields ? std::min(engine_tokens, latency.saturation_tokens) : engine_tokens;
}

/// The most tokens from `first_position` on that a step of `budget_s` seconds can compute; never
/// less than `min_tokens`, so that prefill always makes progress, nor more than `max_tokens`. An
/// infinite budget: `max_tokens`.
uint32_t PieceTokens(const PrefillCost& cost, uint64_t first_position, double budget_s,
                     uint32_t min_tokens, uint32_t max_tokens);

}  // namespace tandem::scheduler
