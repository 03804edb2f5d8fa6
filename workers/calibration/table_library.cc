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
    sum += counts[static_cast<size_t>(kMaxInteger + value)] +
           counts[static_cast<size_t>(kMaxInteger - value)];
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

/// Bits of each integer, those that the table lacks included.
std::vector<float> CostsOf(const SymbolTable& table) {
  const auto frequencies = table.frequencies.frequencies();
  const int n_values = static_cast<int>(table.escape());
  std::vector<float> costs;
  for (int value = -kMaxInteger; value <= kMaxInteger; ++value) {
    const int symbol = value - table.lowest;
    const bool escapes = symbol < 0 || symbol >= n_values;
    const size_t at = escapes ? table.escape() : static_cast<size_t>(symbol);
    costs.push_back(static_cast<float>(kvstore::codec::kSymbolBits - std::log2(frequencies[at]) +
                                       (escapes ? kEscapedBits : 0)));
  }
  return costs;
}

/// The tables of one class of distributions.
class Cluster {
 public:
  explicit Cluster(int reach) : reach_(reach) {}

  const std::vector<SymbolTable>& tables() const { return tables_; }

  /// `members`: indices into `all`.
  void Fit(std::span<const IntegerCounts> all, std::vector<size_t> members, size_t n_tables) {
    std::vector<double> bits(all.size());
    for (const size_t i : members) bits[i] = EntropyBits(all[i]);
    std::stable_sort(members.begin(), members.end(),
                     [&bits](size_t a, size_t b) { return bits[a] < bits[b]; });
    // A sample says as much as all: neighbours are alike.
    const size_t n = std::min(members.size(), kSample);
    for (size_t i = 0; i < n; ++i) members[i] = members[i * members.size() / n];
    members.resize(n);
    n_tables = std::min(n_tables, n);
    std::vector<size_t> group(n);
    for (size_t i = 0; i < n; ++i) group[i] = i * n_tables / n;
    SetCentres(all, members, group, n_tables);
    for (int round = 0; round < kRounds; ++round) {
      for (size_t i = 0; i < n; ++i) group[i] = Cheapest(all[members[i]]);
      SetCentres(all, members, group, tables_.size());
    }
  }

  size_t Cheapest(const IntegerCounts& counts) const {
    const auto low = static_cast<size_t>(kMaxInteger - reach_),
               high = static_cast<size_t>(kMaxInteger + reach_);
    const double beyond = Beyond(counts, reach_);
    size_t best = 0;
    double lowest = HUGE_VAL;
    for (size_t i = 0; i < costs_.size(); ++i) {
      const float* const costs = costs_[i].data();
      double bits = reach_ < kMaxInteger ? beyond * costs[0] : 0;
      for (size_t v = low; v <= high; ++v) bits += double{counts[v]} * costs[v];
      if (bits < lowest) lowest = bits, best = i;
    }
    return best;
  }

 private:
  static constexpr size_t kSample = 2048;

  void SetCentres(std::span<const IntegerCounts> all, std::span<const size_t> members,
                  std::span<const size_t> group, size_t n_tables) {
    std::vector<IntegerCounts> sums(n_tables, IntegerCounts{});
    for (size_t i = 0; i < group.size(); ++i) {
      const IntegerCounts& counts = all[members[i]];
      const auto total = static_cast<float>(Total(counts));
      for (size_t v = 0; v < counts.size(); ++v) sums[group[i]][v] += counts[v] / total;
    }
    tables_.clear();
    costs_.clear();
    for (const IntegerCounts& sum : sums) {
      if (Total(sum) == 0) continue;
      tables_.push_back(MakeTable(sum, reach_));
      costs_.push_back(CostsOf(tables_.back()));
    }
  }

  const int reach_;
  std::vector<SymbolTable> tables_;
  std::vector<std::vector<float>> costs_;  // of each table
};

}  // namespace

double CostBits(const SymbolTable& table, const IntegerCounts& counts) {
  const std::vector<float> costs = CostsOf(table);
  return std::inner_product(counts.begin(), counts.end(), costs.begin(), 0.0);
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
    Cluster cluster(kReaches[c]);
    cluster.Fit(distributions, classes[c], n_tables);
    const size_t first = library.tables.size();
    library.tables.insert(library.tables.end(), cluster.tables().begin(), cluster.tables().end());
    for (const size_t i : classes[c]) {
      library.assigned[i] = static_cast<uint8_t>(first + cluster.Cheapest(distributions[i]));
    }
  }
  return library;
}

}  // namespace tandem::workers
