#include "server/open_streams.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace tandem::server {
namespace {

/// Calls that break within so long of the first one broke for the same reason.
constexpr absl::Duration kSameLoss = absl::Seconds(5);

}  // namespace

OpenStreams::Id OpenStreams::Add(const std::string& worker_id,
                                 std::function<void(const std::string&)> on_lost) {
  std::lock_guard lock(mutex_);
  streams_[worker_id].emplace(++last_id_, std::move(on_lost));
  return last_id_;
}

void OpenStreams::Remove(const std::string& worker_id, Id id) {
  std::function<void(const std::string&)> dropped;  // may own the last reference to its call
  std::lock_guard lock(mutex_);
  const auto found = streams_.find(worker_id);
  if (found == streams_.end()) return;
  const auto stream = found->second.find(id);
  if (stream == found->second.end()) return;
  dropped = std::move(stream->second);
  found->second.erase(stream);
  if (found->second.empty()) streams_.erase(found);
}

void OpenStreams::Lose(const std::string& worker_id, const std::string& reason) {
  std::vector<std::function<void(const std::string&)>> told;
  {
    std::lock_guard lock(mutex_);
    const auto found = streams_.find(worker_id);
    if (found == streams_.end()) return;
    for (const auto& [id, on_lost] : found->second) told.push_back(on_lost);
  }
  for (const auto& on_lost : told) on_lost(reason);
}

double OpenStreams::ShareOfLoss(const std::string& worker_id, absl::Time now) {
  std::lock_guard lock(mutex_);
  absl::erase_if(broken_, [&](const auto& each) { return now - each.second.since > kSameLoss; });
  const auto streams = streams_.find(worker_id);
  const size_t n_open = streams == streams_.end() ? 0 : streams->second.size();
  const auto [broken, is_first] =
      broken_.try_emplace(worker_id, Broken{.since = now, .n_streams = n_open});
  return 1.0 / static_cast<double>(std::max<size_t>(1, broken->second.n_streams));
}

}  // namespace tandem::server
