#include "kvstore/codec/builtin_tables.h"

#include <algorithm>
#include <cmath>

namespace tandem::kvstore::codec {
namespace {

/// exp(-1 / (2 σ²)) × 2^32 for σ = 2^(i/3 - 2), rounded. Written out because a table must be the
/// same on every machine, and exp() is not.
constexpr uint64_t kRatios[kBuiltinTables] = {
    1440801,    27813319,   179539837,  581260615,  1218380955, 1942048638, 2605029347, 3134481214,
    3521964074, 3790295335, 3969733148, 4087108117, 4162825044, 4211242246, 4242031875, 4261543595,
    4273881259, 4281671832, 4286586875, 4289686054, 4291639565, 4292870656, 4293646376, 4294135121};
constexpr int32_t kMaxReach = 127;

uint64_t Times(uint64_t a, uint64_t b) { return (a * b) >> 32; }

/// A bell in integers: weight(k) = weight(k-1) × ratio^(2k-1), and at least 2^-12 of the peak's, to
/// where that floor is reached.
PreparedTable MakeTable(uint64_t ratio) {
  std::vector<uint32_t> half = {uint32_t{1} << 20};
  uint64_t weight = uint64_t{1} << 32, step = ratio;
  const uint64_t square = Times(ratio, ratio);
  for (int32_t k = 1; k <= kMaxReach; ++k) {
    weight = Times(weight, step);
    step = Times(step, square);
    half.push_back(static_cast<uint32_t>(std::max<uint64_t>(weight >> 12, 1 << 8)));
    if (weight >> 12 <= 1 << 6) break;
  }
  std::vector<uint32_t> counts(half.rbegin(), half.rend());
  counts.insert(counts.end(), half.begin() + 1, half.end());
  counts.push_back(1 << 6);  // the escape
  uint64_t sum = 0;
  for (const uint32_t count : counts) sum += count;
  constexpr uint64_t kAll = 1 << kSymbolBits;
  std::vector<uint16_t> frequencies;
  for (const uint32_t count : counts) {
    frequencies.push_back(static_cast<uint16_t>(1 + count * (kAll - counts.size()) / sum));
  }
  uint64_t given = 0;
  for (const uint16_t frequency : frequencies) given += frequency;
  frequencies[half.size() - 1] += static_cast<uint16_t>(kAll - given);
  const FrequencyTable table = FrequencyTable::FromFrequencies(frequencies, kSymbolBits).value();
  return {.lowest = 1 - static_cast<int32_t>(half.size()),
          .escape = static_cast<uint8_t>(counts.size() - 1),
          .decode = DecodeTable(table),
          .encode = EncodeTable(table)};
}

}  // namespace

const std::vector<PreparedTable>& BuiltinTables() {
  static const std::vector<PreparedTable> tables = [] {
    std::vector<PreparedTable> made;
    made.reserve(kBuiltinTables);
    for (const uint64_t ratio : kRatios) made.push_back(MakeTable(ratio));
    return made;
  }();
  return tables;
}

}  // namespace tandem::kvstore::codec
