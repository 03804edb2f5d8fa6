// A worker's phase in words, for every sub-command that shows or sets one.
#pragma once

#include <string>
#include <string_view>

#include "tandem/v1/cluster.pb.h"

namespace tandem::cli {

/// "prefill", "decode", "mixed", "store", or "?".
std::string PhaseName(v1::Phase phase);
/// What an engine can be told to do, "auto" included; PHASE_UNSPECIFIED for every other word.
v1::Phase ParsePhase(std::string_view name);

}  // namespace tandem::cli
