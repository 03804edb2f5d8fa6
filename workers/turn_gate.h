// Whose turn it is: the prefill loop and the decode loop of one worker have the same cores, so only
// one of them computes at a time. Owned by Worker.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>

#include "absl/container/flat_hash_set.h"
#include "absl/time/time.h"
#include "scheduler/core/turn_policy.h"

namespace tandem::workers {

/// Thread-safe. Applies the rule of scheduler/core/turn_policy.h.
///
///   free ── Enter(x) ──> taken by x ── Turn's end ──> free
class TurnGate {
 public:
  enum class Side { kPrefill, kDecode };
  using Time = std::chrono::steady_clock::time_point;
  /// From a handoff's end to its sequence's first step: loopback and the engine's memory, 2 ms
  /// mostly.
  static constexpr std::chrono::milliseconds kJoinWait{20};
  /// `tpot_objective`: a decoding sequence's mean time per token; 0: steps alternate always.
  explicit TurnGate(absl::Duration tpot_objective, std::chrono::milliseconds join_wait = kJoinWait)
      : tpot_objective_s_(absl::ToDoubleSeconds(tpot_objective)), join_wait_(join_wait) {}

  /// Ends the turn with its object.
  class Turn {
   public:
    Turn(TurnGate* gate, Side side) : gate_(gate), side_(side) {}
    ~Turn() { gate_->Leave(side_); }
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;

   private:
    TurnGate* const gate_;
    const Side side_;
  };
  /// Waits for the decode side's turn. A side has one thread.
  [[nodiscard]] Turn EnterDecode();
  /// Waits for the prefill side's turn: for a step of `step_s` seconds, which is to begin by
  /// `begin_by` at the latest. False, and no turn, when that is still to come after `patience`;
  /// true: the caller makes the Turn.
  [[nodiscard]] bool AwaitPrefill(double step_s, Time begin_by, std::chrono::milliseconds patience);

  /// The decode loop's word, before every step and when it has no more: how many sequences wait for
  /// their next token, and the least that one of them has saved, in seconds.
  void SetDecoding(uint32_t sequences, double saved_s);
  /// What a sequence has saved that got `tokens` tokens in so many seconds.
  double SavedSeconds(uint32_t tokens, double seconds) const {
    return scheduler::SavedSeconds(tokens, seconds, tpot_objective_s_);
  }
  /// The decode loop's word: it pulls this handoff's KV, which may be of a prompt computed here.
  void Pulls(const std::string& handoff_id);
  /// The prefill loop's word: a handoff's KV is complete. If it is pulled here, the next prefill
  /// step waits for its sequence to join, `join_wait` at most: a moment later it would wait for
  /// that whole step.
  void Completed(const std::string& handoff_id);
  /// The decode loop's word: the sequence has made its first step here, or makes none.
  void Joined(const std::string& handoff_id);

  /// How long a prefill step may take now: what is saved; infinite when nothing is being decoded.
  double PrefillSeconds() const;

 private:
  void Leave(Side side);
  bool PrefillMayEnter(double step_s, bool late) const {
    return !taken_ && scheduler::PrefillMayEnter(state_, step_s, late, tpot_objective_s_);
  }

  const double tpot_objective_s_;
  const std::chrono::milliseconds join_wait_;
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  // Guarded by mutex_.
  bool taken_ = false;
  bool prefill_is_late_ = false;
  scheduler::TurnState state_;
  absl::flat_hash_set<std::string> pulled_;
  absl::flat_hash_set<std::string> joining_;  // of pulled_, those that are complete
  Time await_joining_until_;
};

}  // namespace tandem::workers
