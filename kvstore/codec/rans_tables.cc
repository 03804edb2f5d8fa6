// Normalises counts, deals the slots out to the symbols, and fills in what the kernels look up.
#include "kvstore/codec/rans_tables.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "kvstore/codec/rans_kernels.h"

namespace tandem::kvstore::codec {
namespace {

constexpr int kMinBits = 10;
constexpr int kMaxBits = 12;
constexpr int kAliasBits = 12;

absl::Status CheckShape(size_t n_symbols, int bits) {
  if (n_symbols == 0 || n_symbols > FrequencyTable::kMaxSymbols) {
    return absl::InvalidArgumentError(
        absl::StrCat("a table has 1 to 256 symbols, not ", n_symbols));
  }
  if (bits < kMinBits || bits > kMaxBits) {
    return absl::InvalidArgumentError(absl::StrCat("a table has 10 to 12 bits, not ", bits));
  }
  return absl::OkStatus();
}

// What a step from frequency f to f + 1 saves: count * log((f + 1) / f), nearly count * 2 /
// (2 f + 1); kept as a fraction, so that comparisons are exact.
struct Gain {
  uint64_t count;
  uint64_t divisor;
  bool operator<(const Gain& other) const { return count * other.divisor < other.count * divisor; }
};
Gain GainAbove(uint32_t count, uint32_t frequency) { return {count, 2 * uint64_t{frequency} + 1}; }

// Gives `missing` units where they bring most (takes them, when negative, where they cost least),
// then moves units as long as that helps.
void Level(std::span<const uint32_t> counts, int64_t missing, std::vector<uint16_t>& frequencies) {
  for (;;) {
    size_t to = 0;
    size_t from = counts.size();
    const auto gain = [&](size_t s) { return GainAbove(counts[s], frequencies[s]); };
    const auto loss = [&](size_t s) { return GainAbove(counts[s], frequencies[s] - 1); };
    for (size_t s = 0; s < counts.size(); ++s) {
      if (gain(to) < gain(s)) to = s;
      if (frequencies[s] > 1 && (from == counts.size() || loss(s) < loss(from))) from = s;
    }
    if (missing == 0 && (from == counts.size() || !(loss(from) < gain(to)))) return;
    if (missing >= 0) ++frequencies[to];
    if (missing <= 0) --frequencies[from];
    missing -= (missing > 0) - (missing < 0);
  }
}

// Where the symbols' slots are in an alias order.
struct Alias {
  std::array<uint32_t, DecodeTable::kMaxBuckets> own = {};    // slots of the bucket's own symbol
  std::array<uint32_t, DecodeTable::kMaxBuckets> other = {};  // who has the rest
  std::array<int32_t, DecodeTable::kMaxBuckets> base = {};    // rank - offset there
};

uint32_t Buckets(SlotOrder order) { return order == SlotOrder::kAlias16 ? 16 : 32; }

uint32_t FirstSlot(uint32_t bucket) { return (bucket & 15) << 8 | (bucket >> 4) << 7; }

// Walker's alias method: the lowest bucket that its own symbol does not fill is filled up by the
// lowest symbol that has more than a bucket left, until every bucket is full. A symbol's ranks go
// to its own bucket first, then to the buckets that it fills up, in the order of filling.
Alias DealSlots(std::span<const uint16_t> frequencies, SlotOrder order) {
  const uint32_t n = Buckets(order);
  const uint32_t capacity = (1u << kAliasBits) / n;
  Alias alias;
  std::array<uint32_t, DecodeTable::kMaxBuckets> left = {};
  std::array<bool, DecodeTable::kMaxBuckets> full = {};
  std::copy(frequencies.begin(), frequencies.end(), left.begin());
  std::array<std::vector<uint32_t>, DecodeTable::kMaxBuckets> filled;
  for (;;) {
    uint32_t poor = 0;
    while (poor < n && (full[poor] || left[poor] >= capacity)) ++poor;
    if (poor == n) break;
    const uint32_t rich =
        std::find_if(left.begin(), left.end(), [&](uint32_t f) { return f > capacity; }) -
        left.begin();
    alias.own[poor] = left[poor];
    alias.other[poor] = rich;
    full[poor] = true;
    filled[rich].push_back(poor);
    left[rich] -= capacity - left[poor];
    left[poor] = 0;
  }
  for (uint32_t s = 0; s < n; ++s) {
    if (!full[s]) {
      // A whole bucket would need a divider of `capacity`, which may not fit into 8 bits: all of
      // it is the "other" part instead.
      alias.own[s] = 0;
      alias.other[s] = s;
      alias.base[s] = 0;
    }
    uint32_t rank = full[s] ? alias.own[s] : capacity;
    for (uint32_t bucket : filled[s]) {
      alias.base[bucket] = static_cast<int32_t>(rank) - static_cast<int32_t>(alias.own[bucket]);
      rank += capacity - alias.own[bucket];
    }
  }
  return alias;
}

// (2 * x * value) >> (32 + shift) is x / frequency. With S = 31 + shift, value = 2^S / f rounded up
// is too large by e / f < 1: the quotient is exact while x * e < 2^S. The encoder divides states
// x < f * 2^(31 - bits), so x * e < f * f * 2^(31 - bits) <= 2^S, as f <= 2^bits and f <= 2^shift.
struct Reciprocal {
  uint32_t value, shift;
};
Reciprocal ReciprocalOf(uint32_t frequency) {
  const uint32_t shift = std::bit_width(frequency - 1);
  const uint64_t unit = 1ull << (kRansStateBits + shift);
  return {static_cast<uint32_t>((unit + frequency - 1) / frequency), shift};
}

}  // namespace

FrequencyTable::FrequencyTable(std::vector<uint16_t> frequencies, int bits)
    : frequencies_(std::move(frequencies)), bits_(bits) {
  symbol_bits_.reserve(frequencies_.size());
  for (uint16_t f : frequencies_) symbol_bits_.push_back(bits - std::log2(static_cast<double>(f)));
}

absl::StatusOr<FrequencyTable> FrequencyTable::FromCounts(std::span<const uint32_t> counts,
                                                          int bits) {
  RETURN_IF_ERROR(CheckShape(counts.size(), bits));
  const uint64_t total = std::accumulate(counts.begin(), counts.end(), uint64_t{0});
  if (total == 0) return absl::InvalidArgumentError("a table needs a symbol that occurs");
  std::vector<uint16_t> frequencies(counts.size());
  int64_t missing = int64_t{1} << bits;
  for (size_t s = 0; s < counts.size(); ++s) {
    // Rounded to the nearest, so that Level has little left to do.
    const uint64_t share = ((static_cast<uint64_t>(counts[s]) << (bits + 1)) + total) / (2 * total);
    frequencies[s] = static_cast<uint16_t>(std::max<uint64_t>(share, counts[s] > 0 ? 1 : 0));
    missing -= frequencies[s];
  }
  Level(counts, missing, frequencies);
  return FrequencyTable(std::move(frequencies), bits);
}

absl::StatusOr<FrequencyTable> FrequencyTable::FromFrequencies(
    std::span<const uint16_t> frequencies, int bits) {
  RETURN_IF_ERROR(CheckShape(frequencies.size(), bits));
  const uint64_t sum = std::accumulate(frequencies.begin(), frequencies.end(), uint64_t{0});
  if (sum != uint64_t{1} << bits) {
    return absl::InvalidArgumentError(
        absl::StrCat("a table's frequencies sum up to ", sum, ", not ", uint64_t{1} << bits));
  }
  return FrequencyTable({frequencies.begin(), frequencies.end()}, bits);
}

double FrequencyTable::CostBits(std::span<const uint32_t> counts) const {
  double bits = 0;
  for (size_t s = 0; s < counts.size(); ++s) {
    if (counts[s] > 0) bits += counts[s] * symbol_bits_[s];
  }
  return bits;
}

SlotOrder SlotOrderOf(const FrequencyTable& table) {
  for (uint16_t frequency : table.frequencies()) {
    if (frequency == 1u << table.bits()) return SlotOrder::kSingle;
  }
  if (table.bits() != kAliasBits || table.size() > 32) return SlotOrder::kPlain;
  return table.size() <= 16 ? SlotOrder::kAlias16 : SlotOrder::kAlias32;
}

DecodeTable::DecodeTable(const FrequencyTable& table)
    : order(SlotOrderOf(table)), bits(static_cast<uint8_t>(table.bits())) {
  const std::span<const uint16_t> frequencies = table.frequencies();
  if (order == SlotOrder::kSingle) {
    single_symbol = std::max_element(frequencies.begin(), frequencies.end()) - frequencies.begin();
  } else if (order == SlotOrder::kPlain) {
    slots.resize(size_t{1} << bits);
    uint32_t* slot = slots.data();
    for (uint32_t s = 0; s < frequencies.size(); ++s) {
      for (uint32_t rank = 0; rank < frequencies[s]; ++rank) {
        *slot++ = frequencies[s] | rank << 12 | s << 24;
      }
    }
  } else {
    const Alias alias = DealSlots(frequencies, order);
    for (uint32_t b = 0; b < Buckets(order); ++b) {
      divider[b] = static_cast<uint8_t>(alias.own[b] + (b >> 4 << 7));
      other[b] = static_cast<uint8_t>(alias.other[b]);
      base_low[b] = static_cast<uint8_t>(alias.base[b]);
      base_high[b] = static_cast<uint8_t>(alias.base[b] >> 8);
      divider32[b] = divider[b];
      parts32[0][b] = (b < frequencies.size() ? frequencies[b] : 0) | b << 24;
      parts32[1][b] =
          frequencies[alias.other[b]] | (alias.base[b] & 0xfff) << 12 | alias.other[b] << 24;
    }
    for (size_t s = 0; s < frequencies.size(); ++s) {
      frequency_low[s] = static_cast<uint8_t>(frequencies[s]);
      frequency_high[s] = static_cast<uint8_t>(frequencies[s] >> 8);
    }
  }
}

EncodeTable::EncodeTable(const FrequencyTable& table)
    : order(SlotOrderOf(table)), bits(static_cast<uint8_t>(table.bits())) {
  const std::span<const uint16_t> frequencies = table.frequencies();
  std::array<uint32_t, FrequencyTable::kMaxSymbols> firsts = {};
  uint32_t first = 0;
  for (size_t s = 0; order != SlotOrder::kSingle && s < frequencies.size(); ++s) {
    firsts[s] = first;
    if (frequencies[s] > 0) {
      const Reciprocal r = ReciprocalOf(frequencies[s]);
      reciprocal[s] = r.value;
      packed[s] = frequencies[s] | first << 12 | r.shift << 28;
    }
    first += frequencies[s];
  }
  if (order != SlotOrder::kAlias16 && order != SlotOrder::kAlias32) return;
  slot_of.resize(size_t{1} << bits);
  const Alias alias = DealSlots(frequencies, order);
  const uint32_t capacity = (1u << bits) / Buckets(order);
  for (uint32_t b = 0; b < Buckets(order); ++b) {
    for (uint32_t offset = 0; offset < capacity; ++offset) {
      const bool own = offset < alias.own[b];
      const uint32_t rank = own ? offset : offset + alias.base[b];
      const uint32_t symbol = own ? b : alias.other[b];
      slot_of[firsts[symbol] + rank] = static_cast<uint16_t>(FirstSlot(b) + offset);
    }
  }
}

}  // namespace tandem::kvstore::codec
