#include "scheduler/core/decode_policy.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace tandem::scheduler {
namespace {

/// An observation counts half after 350 more.
constexpr double kForget = 0.998;
/// Of the TPOT objective that a step may take: the rest is for what comes before the second token.
constexpr double kStepShare = 0.9;
/// Before anything was observed: a request in each of these lengths.
constexpr uint32_t kPriorLengths[] = {64, 128, 256, 512};

/// Six buckets to a doubling.
uint32_t BucketOf(uint32_t tokens, uint32_t n_buckets) {
  const double bucket = 6 * std::log2(std::max(1.0, static_cast<double>(tokens)));
  return std::min(n_buckets - 1, static_cast<uint32_t>(bucket));
}

}  // namespace

OutputLengthEstimate::OutputLengthEstimate() {
  for (const uint32_t length : kPriorLengths) Observe(length);
}

void OutputLengthEstimate::Observe(uint32_t generated) {
  for (uint32_t i = 0; i < kBuckets; ++i) {
    weight_[i] *= kForget;
    tokens_[i] *= kForget;
  }
  const uint32_t bucket = BucketOf(generated, kBuckets);
  weight_[bucket] += 1;
  tokens_[bucket] += generated;
}

uint32_t OutputLengthEstimate::Expected(uint32_t generated, uint32_t max_tokens) const {
  if (generated >= max_tokens) return max_tokens;
  double weight = 0, tokens = 0;
  for (uint32_t i = BucketOf(generated, kBuckets); i < kBuckets; ++i) {
    // Of the bucket that it is in itself, those that are longer are not known: its mean decides.
    if (tokens_[i] <= weight_[i] * generated) continue;
    weight += weight_[i];
    tokens += tokens_[i];
  }
  // Longer than what was ever seen: as long again as a half of what it has.
  const double expected = weight > 0.01 ? tokens / weight : 1.5 * generated;
  return std::clamp(static_cast<uint32_t>(std::min(expected, 4e9)), generated + 1, max_tokens);
}

uint64_t LifeTokens(const DecodeSequence& sequence, const OutputLengthEstimate& lengths) {
  const uint32_t expected = lengths.Expected(sequence.generated, sequence.max_tokens);
  const uint32_t left = expected > sequence.generated ? expected - sequence.generated : 0;
  return uint64_t{sequence.context_tokens} + left;
}

void DecodeBatch::Add(const DecodeSequence& sequence, const OutputLengthEstimate& lengths) {
  ++n_sequences;
  context_tokens += sequence.context_tokens;
  life_tokens += LifeTokens(sequence, lengths);
}

bool CanAdmit(const DecodeRoom& room, const DecodeBatch& batch, const DecodeSequence& sequence,
              const OutputLengthEstimate& lengths, const DecodeCost& cost) {
  if (batch.n_sequences == 0) return true;
  if (batch.n_sequences >= room.max_sequences) return false;
  DecodeBatch with = batch;
  with.Add(sequence, lengths);
  if (with.life_tokens > room.kv_capacity_tokens) return false;
  if (room.tpot_objective_s <= 0) return true;
  return cost.StepSeconds(with.n_sequences, with.context_tokens) <=
             kStepShare * room.tpot_objective_s ||
         cost.StepSeconds(1, sequence.context_tokens) > room.tpot_objective_s;
}

bool Overflows(const DecodeRoom& room, uint64_t kv_used_tokens, uint32_t n_sequences) {
  return kv_used_tokens + n_sequences > room.kv_capacity_tokens;
}

std::optional<size_t> ChooseToPark(std::span<const DecodeSequence> running) {
  if (running.size() < 2) return std::nullopt;
  const auto youngest = std::max_element(running.begin(), running.end(),
                                         [](const DecodeSequence& a, const DecodeSequence& b) {
                                           if (a.arrival_s != b.arrival_s)
                                             return a.arrival_s < b.arrival_s;
                                           return a.context_tokens > b.context_tokens;
                                         });
  return static_cast<size_t>(youngest - running.begin());
}

std::optional<size_t> ChooseToReturn(std::span<const DecodeSequence> parked) {
  if (parked.empty()) return std::nullopt;
  const auto oldest = std::min_element(
      parked.begin(), parked.end(),
      [](const DecodeSequence& a, const DecodeSequence& b) { return a.arrival_s < b.arrival_s; });
  return static_cast<size_t>(oldest - parked.begin());
}

uint32_t StepLimit(const DecodeRoom& room, const DecodeCost& cost, uint32_t context_tokens) {
  if (room.tpot_objective_s <= 0 || cost.StepSeconds(1, context_tokens) > room.tpot_objective_s) {
    return std::max(1u, room.max_sequences);
  }
  // A larger batch may be within the objective where a smaller one is not (see DecodeCost::factor).
  for (uint32_t n = room.max_sequences; n > 1; --n) {
    if (cost.StepSeconds(n, uint64_t{n} * context_tokens) <= kStepShare * room.tpot_objective_s) {
      return n;
    }
  }
  return 1;
}

}  // namespace tandem::scheduler
