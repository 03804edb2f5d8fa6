#include "kvstore/codec/level.h"

#include <string>

namespace tandem::kvstore::codec {

std::string_view LevelName(Level level) {
  constexpr std::string_view kNames[] = {"lossless", "q1", "q2", "q3", "q4"};
  return kNames[static_cast<size_t>(level)];
}

absl::StatusOr<Level> ParseLevel(std::string_view name) {
  for (const Level level : kAllLevels) {
    if (LevelName(level) == name) return level;
  }
  return absl::InvalidArgumentError("there is no level '" + std::string(name) +
                                    "'; levels are lossless, q1, q2, q3 and q4");
}

}  // namespace tandem::kvstore::codec
