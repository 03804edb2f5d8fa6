#include "scheduler/planner/workload_window.h"

#include <algorithm>

namespace tandem::planner {

uint64_t WorkloadWindow::Arrived(uint32_t prompt_tokens, double now_s) {
  const double last_s = requests_.empty() ? now_s : requests_.back().arrival_s;
  requests_.push_back({.arrival_s = std::max(now_s, last_s),
                       .prompt_tokens = std::max(1u, prompt_tokens),
                       .output_tokens = kUnknownTokens});
  while (requests_.size() > options_.max_requests ||
         requests_.front().arrival_s < now_s - options_.max_age_s) {
    requests_.pop_front();
    ++first_;
  }
  return first_ + requests_.size() - 1;
}

void WorkloadWindow::Ended(uint64_t number, uint32_t output_tokens, uint32_t cached_tokens) {
  if (number < first_ || number >= arrivals()) return;
  WorkloadRequest& request = requests_[number - first_];
  request.output_tokens = output_tokens;
  request.cached_tokens = std::min(cached_tokens, request.prompt_tokens);
}

Workload WorkloadWindow::Recent(size_t most, double now_s) const {
  const auto young =
      std::find_if(requests_.begin(), requests_.end(), [&](const WorkloadRequest& request) {
        return request.arrival_s >= now_s - options_.max_age_s;
      });
  const auto n = static_cast<size_t>(requests_.end() - young);
  return Workload(requests_.end() - static_cast<ptrdiff_t>(std::min(most, n)), requests_.end());
}

Workload WorkloadWindow::Finished(double now_s) const {
  Workload finished;
  double begin_s = 0;
  for (const WorkloadRequest& request : Recent(requests_.size(), now_s)) {
    if (request.output_tokens == kUnknownTokens) continue;
    if (finished.empty()) begin_s = request.arrival_s;
    finished.push_back(request);
    finished.back().arrival_s -= begin_s;
  }
  return finished;
}

}  // namespace tandem::planner
