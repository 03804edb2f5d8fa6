// The tables of the rANS coder (rans.h): how often each symbol occurs, and from that what encoder
// and decoder look up. Built when a profile is loaded or a chunk's statistics are known.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"

namespace tandem::kvstore::codec {

/// Frequencies of symbols 0 … size-1, in units of 2^-bits. Immutable; safe to share.
class FrequencyTable {
 public:
  static constexpr size_t kMaxSymbols = 256;

  /// The frequencies that code `counts` (one a symbol, 1 … 256 of them) in the fewest bits; every
  /// symbol that occurs gets at least 1, the others 0. Integer arithmetic: the same everywhere.
  /// INVALID_ARGUMENT when nothing occurs, `bits` is not 10 … 12, or there are too many symbols.
  static absl::StatusOr<FrequencyTable> FromCounts(std::span<const uint32_t> counts, int bits);

  /// Takes frequencies from outside. INVALID_ARGUMENT, with the reason, unless there are 1 … 256 of
  /// them, `bits` is 10 … 12 and they sum up to 2^bits.
  static absl::StatusOr<FrequencyTable> FromFrequencies(std::span<const uint16_t> frequencies,
                                                        int bits);

  size_t size() const { return frequencies_.size(); }
  int bits() const { return bits_; }
  std::span<const uint16_t> frequencies() const { return frequencies_; }

  /// Bits that a symbol costs (cross-entropy); infinite when its frequency is 0.
  double SymbolBits(size_t symbol) const { return symbol_bits_[symbol]; }

  /// Bits that symbols of these counts cost. REQUIRES: counts.size() <= size(). Infinite when a
  /// symbol occurs that has no frequency.
  double CostBits(std::span<const uint32_t> counts) const;

 private:
  FrequencyTable(std::vector<uint16_t> frequencies, int bits);

  std::vector<uint16_t> frequencies_;
  std::vector<double> symbol_bits_;
  int bits_;
};

/// How the 2^bits slots are given to symbols; see "Slots" in rans.h.
enum class SlotOrder : uint8_t {
  kSingle,   // one symbol has them all and costs nothing
  kAlias16,  // 16 buckets of 256 slots
  kAlias32,  // 32 buckets of 128 slots
  kPlain,    // each symbol's slots lie together, in order of the symbols
};
SlotOrder SlotOrderOf(const FrequencyTable& table);

/// What a decoder looks up; some 700 bytes, and 4 or 16 kilobytes more for kPlain with 10 or 12
/// bits. A plain struct: kernels compiled for other CPUs read it. Read-only once made.
struct alignas(64) DecodeTable {
  static constexpr size_t kMaxBuckets = 32;

  explicit DecodeTable(const FrequencyTable& table);

  // Alias orders, by bucket: slots below `divider` (counted from the start of the bucket; for the
  // second half of 32 buckets plus 128) are the bucket's own symbol's, the others `other`'s; there
  // the symbol's rank is the slot's offset in the bucket + base, modulo 2^16.
  uint8_t divider[kMaxBuckets] = {}, other[kMaxBuckets] = {};
  uint8_t base_low[kMaxBuckets] = {}, base_high[kMaxBuckets] = {};
  // Alias orders, by symbol.
  uint8_t frequency_low[kMaxBuckets] = {}, frequency_high[kMaxBuckets] = {};
  // Alias orders, by bucket: the same for kernels that look up 32 bits. Of the bucket's own and of
  // its other symbol: frequency | base << 12 (modulo 2^12) | symbol << 24.
  uint32_t divider32[kMaxBuckets] = {}, parts32[2][kMaxBuckets] = {};
  SlotOrder order;
  uint8_t bits;
  uint8_t single_symbol = 0;
  // kPlain, by slot: frequency | rank << 12 | symbol << 24.
  std::vector<uint32_t> slots;
};

/// What an encoder looks up; 2 kilobytes, and 8 more for alias orders. A plain struct, as above.
struct alignas(64) EncodeTable {
  explicit EncodeTable(const FrequencyTable& table);

  // By symbol. x / frequency == (2 * x * reciprocal) >> (32 + shift) for every x that is divided.
  uint32_t reciprocal[FrequencyTable::kMaxSymbols] = {};
  // frequency | first << 12 | shift << 28; `first` is the sum of the frequencies before.
  uint32_t packed[FrequencyTable::kMaxSymbols] = {};
  SlotOrder order;
  uint8_t bits;
  // Alias orders: the slot of (first + rank).
  std::vector<uint16_t> slot_of;
};

}  // namespace tandem::kvstore::codec
