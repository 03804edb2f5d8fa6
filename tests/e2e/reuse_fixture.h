// Prompts whose beginning the cluster may know already, and what came of asking: for the tests of
// the KV store with real processes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tests/e2e/harness.h"

namespace tandem::e2e {

/// The daemon's defaults.
inline constexpr uint32_t kChunkTokens = 256, kStepTokens = 512;

/// `n` tokens that no other seed's text begins with.
std::vector<int32_t> Text(uint32_t seed, size_t n);

/// A greedy request for these tokens.
v1::GenerateRequest RequestFor(const std::vector<int32_t>& prompt, uint32_t max_tokens);

/// Tokens that were not computed.
uint32_t Cached(const v1::PromptCache& cache);

/// Runs the request, which must succeed, and whose figures must add up.
Generated Ask(Client& client, const v1::GenerateRequest& request);

/// Waits until the router knows of `n` chunks.
bool WaitChunks(DaemonProcess& router, double n);

/// Flags of a worker that keeps nothing in the engine, so that chunks come from the store; `more`
/// besides.
std::vector<std::string> StoreOnly(const std::vector<std::string>& more = {});

/// The answer is what the bare engine takes for likeliest, but for rounding: what that can do is
/// measured on a long text, once, and only when an answer is not the very same. Not thread-safe.
void ExpectFaithful(const std::vector<int32_t>& prompt, const std::vector<int32_t>& answer);

}  // namespace tandem::e2e
