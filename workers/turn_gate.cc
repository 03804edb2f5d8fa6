#include "workers/turn_gate.h"

#include "scheduler/core/decode_policy.h"

namespace tandem::workers {

TurnGate::Turn TurnGate::Enter(Side side) {
  std::unique_lock lock(mutex_);
  waiting_[static_cast<size_t>(side)] = true;
  wake_.wait(lock, [&] { return MayEnter(side); });
  waiting_[static_cast<size_t>(side)] = false;
  taken_ = true;
  return Turn(this, side);
}

bool TurnGate::MayEnter(Side side) const {
  if (taken_) return false;
  if (last_ != side) return true;
  const Side other = side == Side::kPrefill ? Side::kDecode : Side::kPrefill;
  // A decode loop between two steps hands out tokens; it need not be waiting here already.
  const bool other_next =
      waiting_[static_cast<size_t>(other)] || (other == Side::kDecode && decoding_ > 0);
  return !other_next;
}

void TurnGate::Leave(Side side) {
  std::lock_guard lock(mutex_);
  taken_ = false;
  last_ = side;
  wake_.notify_all();
}

void TurnGate::SetDecoding(uint32_t sequences, double step_s) {
  std::lock_guard lock(mutex_);
  decoding_ = sequences;
  decode_step_s_ = step_s;
  if (sequences == 0) wake_.notify_all();
}

double TurnGate::PrefillSeconds() const {
  std::lock_guard lock(mutex_);
  return scheduler::PrefillBudgetSeconds(decoding_ > 0 ? decode_step_s_ : 0, tpot_objective_s_);
}

}  // namespace tandem::workers
