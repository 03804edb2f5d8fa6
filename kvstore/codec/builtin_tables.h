// What lossy coding falls back on where there is no profile: bell-shaped symbol tables of many
// widths, and steps by the spread of the very values. Part of the bitstream.
#pragma once

#include <cstddef>

#include "kvstore/codec/prepared.h"

namespace tandem::kvstore::codec {

inline constexpr size_t kBuiltinTables = 24;

/// Table i is a bell with a standard deviation of 2^(i/3 - 2) symbols. Made once, thread-safe.
const std::vector<PreparedTable>& BuiltinTables();

/// The step of q1 without a profile, in standard deviations of a plane's values around their
/// channels' means.
inline constexpr float kBuiltinKeyStep = 0.20f, kBuiltinValueStep = 0.30f;

}  // namespace tandem::kvstore::codec
