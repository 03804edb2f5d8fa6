// What tells one running node from every other, an earlier run of the same included.
#pragma once

#include <random>
#include <string>

#include "absl/strings/str_cat.h"

namespace tandem::workers {

/// `name`, for people, and 64 random bits.
inline std::string MakeNodeId(const std::string& name) {
  std::random_device random;
  return absl::StrCat(name, "-", absl::Hex(random(), absl::kZeroPad8),
                      absl::Hex(random(), absl::kZeroPad8));
}

}  // namespace tandem::workers
