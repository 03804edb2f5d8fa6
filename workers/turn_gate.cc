#include "workers/turn_gate.h"

#include <algorithm>

namespace tandem::workers {

TurnGate::Turn TurnGate::EnterDecode() {
  std::unique_lock lock(mutex_);
  wake_.wait(lock, [&] { return !taken_ && (state_.prefilled_last || !prefill_is_late_); });
  taken_ = true;
  return Turn(this, Side::kDecode);
}

bool TurnGate::AwaitPrefill(double step_s, Time begin_by, std::chrono::milliseconds patience) {
  const Time limit = std::min(begin_by, std::chrono::steady_clock::now() + patience);
  std::unique_lock lock(mutex_);
  wake_.wait_until(lock, await_joining_until_, [&] { return joining_.empty(); });
  joining_.clear();
  if (!wake_.wait_until(lock, limit, [&] { return PrefillMayEnter(step_s, false); })) {
    if (std::chrono::steady_clock::now() < begin_by) return false;
    prefill_is_late_ = true;
    wake_.wait(lock, [&] { return PrefillMayEnter(step_s, true); });
    prefill_is_late_ = false;
  }
  taken_ = true;
  return true;
}

void TurnGate::Leave(Side side) {
  std::lock_guard lock(mutex_);
  taken_ = false;
  // A decode loop between two steps hands out tokens; it need not be waiting here already.
  state_.prefilled_last = side == Side::kPrefill;
  wake_.notify_all();
}

void TurnGate::SetDecoding(uint32_t sequences, double saved_s) {
  std::lock_guard lock(mutex_);
  state_.decoding = sequences;
  state_.saved_s = saved_s;
  wake_.notify_all();
}

void TurnGate::Pulls(const std::string& handoff_id) {
  std::lock_guard lock(mutex_);
  pulled_.insert(handoff_id);
}

void TurnGate::Completed(const std::string& handoff_id) {
  std::lock_guard lock(mutex_);
  if (!pulled_.contains(handoff_id)) return;
  joining_.insert(handoff_id);
  await_joining_until_ = std::chrono::steady_clock::now() + join_wait_;
}

void TurnGate::Joined(const std::string& handoff_id) {
  std::lock_guard lock(mutex_);
  pulled_.erase(handoff_id);
  joining_.erase(handoff_id);
  wake_.notify_all();
}

double TurnGate::PrefillSeconds() const {
  std::lock_guard lock(mutex_);
  return scheduler::PrefillSeconds(state_);
}

}  // namespace tandem::workers
