// Leaves something alone that keeps failing, so that nobody waits for it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "absl/time/time.h"

namespace tandem::kvstore {

/// state   Allows           Fail                       Succeed
/// closed  true             open after max_failures    closed, count 0
/// open    once it is time  open, from now             closed, count 0
///
/// Not thread-safe. Whoever asks Allows and gets true reports Fail or Succeed before the next asks.
class CircuitBreaker {
 public:
  CircuitBreaker(uint32_t max_failures, absl::Duration retry_after)
      : max_failures_(std::max(max_failures, 1u)), retry_after_(retry_after) {}

  bool open() const { return failures_ >= max_failures_; }
  /// Failures since the last success.
  uint32_t failures() const { return failures_; }
  /// Whether something may be tried.
  bool Allows(absl::Time now) const { return !open() || now >= retry_at_; }

  /// True when this opened it.
  bool Fail(absl::Time now) {
    const bool was_open = open();
    failures_ = std::min(failures_ + 1, max_failures_);
    retry_at_ = now + retry_after_;
    return open() && !was_open;
  }
  /// True when this closed it.
  bool Succeed() {
    const bool was_open = open();
    failures_ = 0;
    return was_open;
  }

 private:
  const uint32_t max_failures_;
  const absl::Duration retry_after_;
  uint32_t failures_ = 0;
  absl::Time retry_at_ = absl::InfinitePast();
};

}  // namespace tandem::kvstore
