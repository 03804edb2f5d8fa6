// The adapter on links that change while it loads.
#pragma once

#include <nlohmann/json.hpp>

#include "tests/bench/kv-load/bench_pair.h"

namespace tandem::bench {

struct TraceOptions {
  /// Loads by each way for each trace; the change falls at another time in each.
  uint32_t contexts = 0;
  /// The time limit, in units of what the oracle would take.
  double slack = 0;
};

/// Prints how often each way misses the time limit on each trace. Returns all figures.
nlohmann::json RunTraces(BenchPair& pair, const Context& context, const TraceOptions& options);

}  // namespace tandem::bench
