// The small library of symbol tables that all components of all levels share. For the profile
// builder.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kvstore/codec/profile.h"
#include "workers/calibration/component_histograms.h"

namespace tandem::workers {

struct TableLibrary {
  std::vector<kvstore::codec::SymbolTable> tables;
  /// For each of the distributions, the table that codes it in the fewest bits.
  std::vector<uint8_t> assigned;
};

/// At most `max_tables` tables for these distributions, by k-means in which the distance is the
/// code length. A distribution that (nearly) fits the narrow tables that decoders are fastest with
/// gets one. Deterministic. REQUIRES: 8 <= max_tables <= kMaxTables; no distribution is empty.
TableLibrary BuildTables(std::span<const IntegerCounts> distributions, size_t max_tables);

/// Bits that the counts cost with a table: what it lacks costs the escape and 16 bits.
double CostBits(const kvstore::codec::SymbolTable& table, const IntegerCounts& counts);

}  // namespace tandem::workers
