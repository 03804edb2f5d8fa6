// Tokens per second over the last few seconds, as reported to routers and operators.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>

namespace tandem::workers {

/// Not thread-safe. Memory is bounded: one entry for each `kSlot` of the window.
class RateMeter {
 public:
  using TimePoint = std::chrono::steady_clock::time_point;

  /// Counts `n` at `now`; times must not decrease.
  void Add(uint64_t n, TimePoint now) {
    if (slots_.empty() || now - slots_.back().start >= kSlot) slots_.push_back({now, 0});
    slots_.back().count += n;
    Expire(now);
  }

  /// The mean over the window that ends at `now`.
  double PerSecond(TimePoint now) {
    Expire(now);
    uint64_t sum = 0;
    for (const Slot& slot : slots_) sum += slot.count;
    return static_cast<double>(sum) / std::chrono::duration<double>(kWindow).count();
  }

 private:
  static constexpr std::chrono::milliseconds kWindow{5000}, kSlot{250};
  struct Slot {
    TimePoint start;
    uint64_t count;
  };
  void Expire(TimePoint now) {
    while (!slots_.empty() && now - slots_.front().start > kWindow) slots_.pop_front();
  }
  std::deque<Slot> slots_;
};

}  // namespace tandem::workers
