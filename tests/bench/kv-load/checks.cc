#include "tests/bench/kv-load/checks.h"

#include <algorithm>
#include <cmath>

namespace tandem::bench {
namespace {

double Advantage(const LinkRow& row) {
  return std::min(row.ttft_s.at("recompute"), row.ttft_s.at("raw")) / row.ttft_s.at("adapter");
}

}  // namespace

Crossing FindCrossing(const ContextTable& table) {
  const auto raw_loses_by = [](const LinkRow& row) {
    return std::log(row.ttft_s.at("raw") / row.ttft_s.at("recompute"));
  };
  for (size_t i = 0; i + 1 < table.rows.size(); ++i) {
    const LinkRow &left = table.rows[i], &right = table.rows[i + 1];
    const double before = raw_loses_by(left), after = raw_loses_by(right);
    if (before < 0 || after > 0 || before == after) continue;
    const double share = before / (before - after);
    const auto between = [&](double a, double b) {
      return std::exp(std::log(a) + share * std::log(b / a));
    };
    const auto way = [&](const char* name) {
      return between(left.ttft_s.at(name), right.ttft_s.at(name));
    };
    return {.mbit_per_s = between(left.mbit_per_s, right.mbit_per_s),
            .advantage = way("raw") / way("adapter"),
            .left_advantage = Advantage(left),
            .right_advantage = Advantage(right)};
  }
  return {};
}

WorstLink FindWorst(const ContextTable& table) {
  WorstLink worst;
  for (const LinkRow& row : table.rows) {
    for (const auto& [way, seconds] : row.ttft_s) {
      if (way == "adapter") continue;
      const double ratio = row.ttft_s.at("adapter") / seconds;
      const bool best = std::all_of(row.ttft_s.begin(), row.ttft_s.end(), [&](const auto& other) {
        return other.first == "adapter" || other.second >= seconds;
      });
      if (best && ratio > worst.ratio) worst = {row.mbit_per_s, ratio, way};
    }
  }
  return worst;
}

}  // namespace tandem::bench
