#include "workers/turn_gate.h"

#include <algorithm>
#include <limits>

namespace tandem::workers {
namespace {

/// A sequence may use up so much of its objective; the rest is for what nobody foresees.
constexpr double kUsableShare = 0.7;

}  // namespace

TurnGate::Turn TurnGate::EnterDecode() {
  std::unique_lock lock(mutex_);
  wake_.wait(lock, [&] { return !taken_ && !(last_ == Side::kDecode && prefill_is_late_); });
  taken_ = true;
  return Turn(this, Side::kDecode);
}

bool TurnGate::AwaitPrefill(double step_s, Time begin_by, std::chrono::milliseconds patience) {
  const Time limit = std::min(begin_by, std::chrono::steady_clock::now() + patience);
  std::unique_lock lock(mutex_);
  if (!wake_.wait_until(lock, limit, [&] { return PrefillMayEnter(step_s, false); })) {
    if (std::chrono::steady_clock::now() < begin_by) return false;
    prefill_is_late_ = true;
    wake_.wait(lock, [&] { return PrefillMayEnter(step_s, true); });
    prefill_is_late_ = false;
  }
  taken_ = true;
  return true;
}

bool TurnGate::PrefillMayEnter(double step_s, bool late) const {
  if (taken_) return false;
  if (decoding_ == 0) return true;
  // A decode loop between two steps hands out tokens; it need not be waiting here already.
  if (last_ == Side::kPrefill) return false;
  return late || tpot_objective_s_ == 0 || step_s <= saved_s_;
}

void TurnGate::Leave(Side side) {
  std::lock_guard lock(mutex_);
  taken_ = false;
  last_ = side;
  wake_.notify_all();
}

void TurnGate::SetDecoding(uint32_t sequences, double saved_s) {
  std::lock_guard lock(mutex_);
  decoding_ = sequences;
  saved_s_ = saved_s;
  wake_.notify_all();
}

double TurnGate::SavedSeconds(uint32_t tokens, double seconds) const {
  return tokens * kUsableShare * tpot_objective_s_ - seconds;
}

double TurnGate::PrefillSeconds() const {
  std::lock_guard lock(mutex_);
  return decoding_ == 0 ? std::numeric_limits<double>::infinity() : saved_s_;
}

}  // namespace tandem::workers
