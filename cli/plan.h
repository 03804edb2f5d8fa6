// The sub-commands of `tandem plan`.
#pragma once

#include <span>

#include "cli/client.h"

namespace tandem::cli {

/// As those in client.h.
int RunPlanSearch(std::span<char* const> args, const Terminal& terminal);
int RunPlanCluster(std::span<char* const> args, const Terminal& terminal);
int RunPlanWorkload(std::span<char* const> args, const Terminal& terminal);
int RunPlanDecisions(std::span<char* const> args, const Terminal& terminal);
int RunPlanCompat(std::span<char* const> args, const Terminal& terminal);

}  // namespace tandem::cli
