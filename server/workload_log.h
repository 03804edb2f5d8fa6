// The requests that this router has had lately, for the planner and for `tandem plan workload`.
#pragma once

#include <mutex>

#include "absl/time/time.h"
#include "scheduler/planner/workload_window.h"

namespace tandem::server {

/// A WorkloadWindow with the wall clock. Thread-safe.
class WorkloadLog {
 public:
  /// As WorkloadWindow's.
  uint64_t Arrived(uint32_t prompt_tokens, absl::Time now) {
    std::lock_guard lock(mutex_);
    return window_.Arrived(prompt_tokens, Seconds(now));
  }
  void Ended(uint64_t number, uint32_t output_tokens, uint32_t cached_tokens) {
    std::lock_guard lock(mutex_);
    window_.Ended(number, output_tokens, cached_tokens);
  }
  planner::Workload Recent(size_t most, absl::Time now) const {
    std::lock_guard lock(mutex_);
    return window_.Recent(most, Seconds(now));
  }
  planner::Workload Finished(absl::Time now) const {
    std::lock_guard lock(mutex_);
    return window_.Finished(Seconds(now));
  }
  /// The planner's clock.
  static double Seconds(absl::Time time) { return absl::ToDoubleSeconds(time - absl::UnixEpoch()); }

 private:
  mutable std::mutex mutex_;
  planner::WorkloadWindow window_;  // guarded by mutex_
};

}  // namespace tandem::server
