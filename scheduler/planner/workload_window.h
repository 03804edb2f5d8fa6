// What requests have been like lately: arrivals and lengths of the last ones, kept as they were.
// The router feeds it; the planner tests it for change and plans for it. Time is passed in, seconds
// of any one clock. Not thread-safe.
#pragma once

#include <cstdint>
#include <deque>

#include "scheduler/planner/workload.h"

namespace tandem::planner {

/// Tokens of a request that has not ended.
inline constexpr uint32_t kUnknownTokens = 0;

class WorkloadWindow {
 public:
  struct Options {
    /// The last so many requests are remembered, and none that is older.
    size_t max_requests = 4096;
    double max_age_s = 600;
  };
  WorkloadWindow() : WorkloadWindow(Options()) {}
  explicit WorkloadWindow(const Options& options) : options_(options) {}

  /// A request came. Its number, for Ended. Time that goes back counts as standing still.
  uint64_t Arrived(uint32_t prompt_tokens, double now_s);
  /// It ended after so many tokens; `cached_tokens` of its prompt did not have to be computed.
  /// Ignored when it is remembered no more, and for one that ended without any token.
  void Ended(uint64_t number, uint32_t output_tokens, uint32_t cached_tokens);

  /// Those that are remembered, the oldest first, at most the last `most`; `output_tokens` is
  /// kUnknownTokens for one that has not ended.
  Workload Recent(size_t most, double now_s) const;
  /// Those that have ended, from the first one's arrival on: what `tandem plan search` reads.
  Workload Finished(double now_s) const;
  /// Requests ever seen.
  uint64_t arrivals() const { return first_ + requests_.size(); }

 private:
  const Options options_;
  std::deque<WorkloadRequest> requests_;
  uint64_t first_ = 0;  // number of the first one in requests_
};

}  // namespace tandem::planner
