#include "workers/calibration/table_library.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

namespace tandem::workers {
namespace {

using kvstore::codec::FrequencyTable;
using kvstore::codec::SymbolTable;

constexpr double kEscapedBits = 16;
/// A narrow table may escape this share of the values.
constexpr double kRareEscapes = 1e-3;
constexpr int kRounds = 12;
/// Tables by the largest magnitude that they hold: with the escape, 16, 32 and 256 symbols. These
/// are the decoder's fast, less fast and slow kinds.
constexpr std::array kReaches = {7, 15, kMaxInteger};

double Total(const IntegerCounts& counts) {
  return std::accumulate(counts.begin(), counts.end(), 0.0);
}

double Beyond(const IntegerCounts& counts, int reach) {
  double sum = 0;
  for (int value = reach + 1; value <= kMaxInteger; ++value) {
    sum += counts[static_cast<size_t>(kMaxInteger + value)] + counts[static_cast<size_t>(kMaxInteger - value)];
  }
  return sum;
}

size_t ClassOf(const IntegerCounts& counts) {
  for (size_t i = 0; i + 1 < kReaches.size(); ++i) {
    if (Beyond(counts, kReaches[i]) <= kRareEscapes * Total(counts)) return i;
  }
  return kReaches.size() - 1;
}

/// A table for the sum of some distributions.
SymbolTable MakeTable(const IntegerCounts& sum, int reach) {
  const double unit = static_cast<double>(1 << 30) / Total(sum);
  const auto count = [&](int value) {
    return static_cast<uint32_t>(sum[static_cast<size_t>(kMaxInteger + value)] * unit);
  };
  int lowest = -reach, highest = reach;
  while (lowest < 0 && count(lowest) == 0) ++lowest;
  while (highest > 0 && count(highest) == 0) --highest;
  std::vector<uint32_t> counts;
  for (int value = lowest; value <= highest; ++value) counts.push_back(std::max(1u, count(value)));
  // The distribution's own outermost values may stand for more of them beyond: they escape in part.
  const double escapes = Beyond(sum, reach) * unit;
  counts.push_back(std::max(1u, static_cast<uint32_t>(escapes)));
  return {static_cast<int16_t>(lowest),
          FrequencyTable::FromCounts(counts, kvstore::codec::kSymbolBits).value()};
}

/// The distributions of one class, and their tables.
class Cluster {
 public:
  Cluster(std::span<const IntegerCounts> all, std::vector<size_t> members, int reach)
      : all_(all), members_(std::move(members)), reach_(reach) {}

  std::vector<SymbolTable> Fit(size_t n_tables) {
    std::vector<double> bits(all_.size());
    for (const size_t i : members_) bits[i] = EntropyBits(all_[i]);
    std::stable_sort(members_.begin(), members_.end(),
                     [&bits](size_t a, size_t b) { return bits[a] < bits[b]; });
    n_tables = std::min(n_tables, members_.size());
    std::vector<size_t> group(members_.size());
    for (size_t i = 0; i < group.size(); ++i) group[i] = i * n_tables / group.size();
    std::vector<SymbolTable> tables = Centres(group, n_tables);
    for (int round = 0; round < kRounds; ++round) {
      for (size_t i = 0; i < group.size(); ++i) group[i] = Cheapest(tables, all_[members_[i]]);
      tables = Centres(group, tables.size());
    }
    return tables;
  }

  static size_t Cheapest(std::span<const SymbolTable> tables, const IntegerCounts& counts) {
    size_t best = 0;
    double lowest = HUGE_VAL;
    for (size_t i = 0; i < tables.size(); ++i) {
      const double cost = CostBits(tables[i], counts);
      if (cost < lowest) lowest = cost, best = i;
    }
    return best;
  }

 private:
  std::vector<SymbolTable> Centres(std::span<const size_t> group, size_t n_tables) const {
    std::vector<IntegerCounts> sums(n_tables, IntegerCounts{});
    for (size_t i = 0; i < group.size(); ++i) {
      const IntegerCounts& counts = all_[members_[i]];
      const double total = Total(counts);
      for (size_t v = 0; v < counts.size(); ++v) sums[group[i]][v] += static_cast<float>(counts[v] / total);
    }
    std::vector<SymbolTable> tables;
    for (const IntegerCounts& sum : sums) {
      if (Total(sum) > 0) tables.push_back(MakeTable(sum, reach_));
    }
    return tables;
  }

  std::span<const IntegerCounts> all_;
  std::vector<size_t> members_;
  const int reach_;
};

}  // namespace

double CostBits(const SymbolTable& table, const IntegerCounts& counts) {
  const auto frequencies = table.frequencies.frequencies();
  const int n_values = static_cast<int>(table.escape());
  double bits = 0;
  for (int value = -kMaxInteger; value <= kMaxInteger; ++value) {
    const double count = counts[static_cast<size_t>(kMaxInteger + value)];
    if (count == 0) continue;
    const int symbol = value - table.lowest;
    const bool escapes = symbol < 0 || symbol >= n_values;
    const uint16_t frequency = frequencies[escapes ? table.escape() : static_cast<size_t>(symbol)];
    bits += count * (kvstore::codec::kSymbolBits - std::log2(static_cast<double>(frequency)) +
                     (escapes ? kEscapedBits : 0));
  }
  return bits;
}

TableLibrary BuildTables(std::span<const IntegerCounts> distributions, size_t max_tables) {
  std::array<std::vector<size_t>, kReaches.size()> classes;
  for (size_t i = 0; i < distributions.size(); ++i) classes[ClassOf(distributions[i])].push_back(i);
  TableLibrary library;
  library.assigned.resize(distributions.size());
  for (size_t c = 0; c < classes.size(); ++c) {
    if (classes[c].empty()) continue;
    // Each class has two tables for certain, and shares the rest by its size.
    const size_t spare = max_tables - 2 * classes.size();
    const size_t n_tables = 2 + spare * classes[c].size() / distributions.size();
    const auto tables = Cluster(distributions, classes[c], kReaches[c]).Fit(n_tables);
    const size_t first = library.tables.size();
    library.tables.insert(library.tables.end(), tables.begin(), tables.end());
    for (const size_t i : classes[c]) {
      library.assigned[i] = static_cast<uint8_t>(first + Cluster::Cheapest(tables, distributions[i]));
    }
  }
  return library;
}

}  // namespace tandem::workers
