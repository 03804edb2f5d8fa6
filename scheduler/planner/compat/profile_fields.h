// Fields that profiles and cases have in common. For the readers of this folder.
#pragma once

#include <cstdint>

#include "scheduler/planner/compat/json_fields.h"
#include "scheduler/planner/compat/simulator.h"

namespace tandem::planner::compat {

/// The largest limit of a batch that is read.
inline constexpr int64_t kMaxBatchLimit = 1'000'000'000'000;

/// `prefill_abc`, `decode_small_abc`, `decode_large_abc`, and `decode_large_min_batch` if present.
inline void ReadStageCosts(Fields& fields, StageCosts& costs) {
  const auto read = [&](const char* name, Abc& abc) { fields.Three(name, abc.a, abc.b, abc.c); };
  read("prefill_abc", costs.prefill);
  read("decode_small_abc", costs.decode_small);
  read("decode_large_abc", costs.decode_large);
  if (fields.Has("decode_large_min_batch")) {
    fields.Integer("decode_large_min_batch", 0, kMaxBatchLimit, costs.decode_large_min_batch);
  }
}

}  // namespace tandem::planner::compat
