// What the figures of the links are to show.
#pragma once

#include <map>
#include <string>
#include <vector>

namespace tandem::bench {

/// Seconds to the first token by way, at one link.
struct LinkRow {
  double mbit_per_s = 0;
  std::map<std::string, double> ttft_s;
};

/// One context's rows, by ascending link.
struct ContextTable {
  std::string context;
  std::map<std::string, double> bytes;
  std::vector<LinkRow> rows;
};

/// At the link where computing and loading raw KV cost the same, by interpolation on logarithmic
/// axes, how many times faster the adapter is than both; and at the links measured on either side
/// of it, how many times faster than the better of the two. 0: the lines do not cross.
struct Crossing {
  double mbit_per_s = 0, advantage = 0;
  double left_advantage = 0, right_advantage = 0;
};
Crossing FindCrossing(const ContextTable& table);

/// The link at which the adapter is worst compared with the best of the other ways.
struct WorstLink {
  double mbit_per_s = 0, ratio = 0;
  std::string best_way;
};
WorstLink FindWorst(const ContextTable& table);

}  // namespace tandem::bench
