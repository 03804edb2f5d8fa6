#include "server/decision_log.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace tandem::server {
namespace {

/// Of one request; a request that goes on and on must not fill the memory.
constexpr size_t kMaxDecisions = 16;

}  // namespace

void DecisionLog::Add(const std::string& request_id, v1::Decision decision, absl::Time now) {
  std::lock_guard lock(mutex_);
  auto [found, is_new] = decisions_.try_emplace(request_id);
  std::vector<Entry>& entries = found->second;
  if (entries.size() == kMaxDecisions) entries.erase(entries.begin() + 1);
  entries.push_back({.decision = std::move(decision), .when = now});
  if (!is_new) return;
  order_.push_back(request_id);
  if (order_.size() <= max_requests_) return;
  decisions_.erase(order_.front());
  order_.pop_front();
}

absl::StatusOr<v1::ExplainResponse> DecisionLog::Find(const std::string& request_id,
                                                      absl::Time now) const {
  std::lock_guard lock(mutex_);
  const auto found = decisions_.find(request_id);
  if (found == decisions_.end()) {
    return absl::NotFoundError(absl::StrCat("request_id: '", request_id,
                                            "' was not dispatched by this router, or is not "
                                            "among its last ",
                                            max_requests_, " requests"));
  }
  v1::ExplainResponse response;
  for (const Entry& entry : found->second) {
    v1::Decision& decision = *response.add_decisions();
    decision = entry.decision;
    decision.set_age_s(absl::ToDoubleSeconds(now - entry.when));
  }
  return response;
}

}  // namespace tandem::server
