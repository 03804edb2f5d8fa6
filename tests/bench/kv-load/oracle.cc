#include "tests/bench/kv-load/oracle.h"

#include <algorithm>
#include <limits>

namespace tandem::bench {
namespace {

/// When `n` chunks have been received and decoded, one after the other.
double SecondsToLoad(const LinkTrace& link, size_t n, double chunk_bytes, double decode_s) {
  double done_s = 0;
  for (size_t i = 1; i <= n; ++i) {
    const double here_s = link.SecondsToCarry(static_cast<double>(i) * chunk_bytes);
    done_s = std::max(done_s, here_s) + decode_s;
  }
  return done_s;
}

}  // namespace

double LinkTrace::SecondsToCarry(double bytes) const {
  for (size_t i = 0; i + 1 < steps_.size(); ++i) {
    const double carried = (steps_[i + 1].from_s - steps_[i].from_s) * steps_[i].bytes_per_s;
    if (carried >= bytes) return steps_[i].from_s + bytes / steps_[i].bytes_per_s;
    bytes -= carried;
  }
  return steps_.back().from_s + bytes / steps_.back().bytes_per_s;
}

OracleChoice BestChoice(const LinkTrace& link, const Costs& costs) {
  OracleChoice best{.ttft_s = std::numeric_limits<double>::infinity()};
  const size_t n = costs.text_s.size();
  double computed_s = 0;
  for (size_t text = 0; text <= n; ++text) {
    for (const auto& [level, bytes] : costs.chunk_bytes) {
      const double loaded_s = SecondsToLoad(link, n - text, bytes, costs.decode_s.at(level));
      const double ttft_s = std::max(computed_s, loaded_s) + costs.rest_s;
      if (ttft_s < best.ttft_s) best = {ttft_s, text, level};
    }
    if (text < n) computed_s += costs.text_s[text];
  }
  return best;
}

}  // namespace tandem::bench
