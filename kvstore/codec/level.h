// How a chunk is encoded. The words of configuration, API and metrics.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "absl/status/statusor.h"

namespace tandem::kvstore::codec {

/// From exact to coarse. What a lossy level costs is measured for each model (see Profile); the
/// numbers are part of the bitstream.
enum class Level : uint8_t { kLossless = 0, kQ1 = 1, kQ2 = 2, kQ3 = 3, kQ4 = 4 };

inline constexpr std::array kAllLevels = {Level::kLossless, Level::kQ1, Level::kQ2, Level::kQ3,
                                          Level::kQ4};
inline constexpr size_t kLossyLevels = 4;

/// Index of a lossy level in arrays of kLossyLevels. REQUIRES: level != kLossless.
constexpr size_t LossyIndex(Level level) { return static_cast<size_t>(level) - 1; }

/// "lossless", "q1" … "q4".
std::string_view LevelName(Level level);

/// INVALID_ARGUMENT that lists the names.
absl::StatusOr<Level> ParseLevel(std::string_view name);

}  // namespace tandem::kvstore::codec
