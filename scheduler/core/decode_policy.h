// Which sequences decode together: how long outputs get, who is let in, who is put aside when
// memory runs out, and how large steps may be for the TPOT objective. Used by the worker's decode
// loop and by the simulator. No clocks, no threads.
//
// A sequence on a decode worker:
//
//   waiting ── CanAdmit ──> pulling ── KV here ──> running ── last token ──> ended
//   running ── Overflows, ChooseToPark ──> parked ── CanAdmit, before any waiting ──> running
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>

#include "scheduler/core/latency_model.h"

namespace tandem::scheduler {

/// How many tokens requests generate: a histogram that forgets, asked for the mean of those that
/// have got as far. Not thread-safe.
class OutputLengthEstimate {
 public:
  OutputLengthEstimate();
  /// A request ended by itself (not cancelled) after so many tokens.
  void Observe(uint32_t generated);
  /// Tokens expected in all of one that has `generated` and may have `max_tokens`; more than
  /// `generated`, unless that is the limit.
  uint32_t Expected(uint32_t generated, uint32_t max_tokens) const;

 private:
  static constexpr uint32_t kBuckets = 96;
  std::array<double, kBuckets> weight_{};
  std::array<double, kBuckets> tokens_{};  // weight × length
};

/// One sequence, as the policy sees it.
struct DecodeSequence {
  /// When its request came to this worker, seconds of any one clock; moves and parking keep it.
  double arrival_s = 0;
  /// Tokens whose KV it has, or will have when it arrives.
  uint32_t context_tokens = 0;
  uint32_t generated = 0;
  uint32_t max_tokens = 0;
};

/// Tokens of KV that the sequence needs in its whole expected life.
uint64_t LifeTokens(const DecodeSequence& sequence, const OutputLengthEstimate& lengths);

/// What the worker has, and what it has promised. TPOT objective 0: none.
struct DecodeRoom {
  uint64_t kv_capacity_tokens = 0;
  uint32_t max_sequences = 0;
  double tpot_objective_s = 0;
};

/// The sequences that run or are being pulled, in all.
struct DecodeBatch {
  uint32_t n_sequences = 0;
  uint64_t context_tokens = 0;
  uint64_t life_tokens = 0;

  void Add(const DecodeSequence& sequence, const OutputLengthEstimate& lengths);
};

/// Whether one more may be let in: there is a place, its expected life fits beside the others', and
/// a step with it stays within nine tenths of the TPOT objective. An empty batch takes anything. An
/// objective that one sequence alone misses limits nothing: keeping the others out would help
/// nobody.
bool CanAdmit(const DecodeRoom& room, const DecodeBatch& batch, const DecodeSequence& sequence,
              const OutputLengthEstimate& lengths, const DecodeCost& cost);

/// Whether the next step would need more KV than fits; parking helps while more than one runs.
bool Overflows(const DecodeRoom& room, uint64_t kv_used_tokens, uint32_t n_sequences);

/// Index of the sequence to put aside: the youngest by arrival; of equals, the one with the least
/// KV. None when fewer than two run: the last one is never parked.
std::optional<size_t> ChooseToPark(std::span<const DecodeSequence> running);

/// Index of the parked sequence that comes back first: the oldest by arrival. None when none is
/// parked.
std::optional<size_t> ChooseToReturn(std::span<const DecodeSequence> parked);

/// The most sequences of `context_tokens` each that CanAdmit lets in by the TPOT objective;
/// at least 1, at most `room.max_sequences`; that many, too, when one alone misses the objective.
uint32_t StepLimit(const DecodeRoom& room, const DecodeCost& cost, uint32_t context_tokens);

}  // namespace tandem::scheduler
