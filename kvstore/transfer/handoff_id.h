// What names a handoff, and permits to pull it.
#pragma once

#include <string>

#include "base/random_bytes.h"

namespace tandem::kvstore {

inline constexpr size_t kHandoffIdBytes = 16;

/// Thread-safe.
inline std::string NewHandoffId() { return RandomBytes(kHandoffIdBytes); }

}  // namespace tandem::kvstore
