// Intervals by the process's monotonic clock.
#pragma once

#include <chrono>

namespace tandem {

/// Measures from its construction. Copyable; thread-safe to read.
class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace tandem
