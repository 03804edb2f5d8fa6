// Whose turn it is: the prefill loop and the decode loop of one worker have the same cores, so only
// one of them computes at a time. Owned by Worker.
#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <mutex>

#include "absl/time/time.h"

namespace tandem::workers {

/// Thread-safe. When both loops have work their steps alternate, and the prefill loop keeps its
/// steps short enough for the sequences that are being decoded:
///
///   free ── Enter(x) ──> taken by x ── Turn's end ──> free, the other side first if it waits or,
///   for the prefill side, has sequences that wait for their next token
class TurnGate {
 public:
  enum class Side { kPrefill, kDecode };
  /// `tpot_objective`: how long a decoding sequence may have to wait for its next token.
  explicit TurnGate(absl::Duration tpot_objective)
      : tpot_objective_s_(absl::ToDoubleSeconds(tpot_objective)) {}

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
  /// Waits for the side's turn. A side has one thread.
  [[nodiscard]] Turn Enter(Side side);

  /// The decode loop's word, before every step and when it has no more: how many sequences wait for
  /// their next token, and how long the step that gives it to them will take.
  void SetDecoding(uint32_t sequences, double step_s);
  /// How long a prefill step may take now so that a decode step after it is in time; infinite when
  /// nothing is being decoded.
  double PrefillSeconds() const;

 private:
  void Leave(Side side);
  bool MayEnter(Side side) const;

  const double tpot_objective_s_;
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  // Guarded by mutex_.
  bool taken_ = false;
  std::array<bool, 2> waiting_{};
  Side last_ = Side::kDecode;
  uint32_t decoding_ = 0;
  double decode_step_s_ = 0;
};

}  // namespace tandem::workers
