#include "base/request_context.h"

namespace tandem {

void RequestContext::Cancel(absl::Status reason) {
  std::vector<std::function<void()>> callbacks;
  {
    std::lock_guard lock(mutex_);
    if (!reason_.ok()) return;
    reason_ = std::move(reason);
    callbacks.swap(callbacks_);
  }
  for (auto& callback : callbacks) callback();
}

absl::Status RequestContext::Check(absl::Time now) const {
  {
    std::lock_guard lock(mutex_);
    if (!reason_.ok()) return reason_;
  }
  if (now >= deadline_) return absl::DeadlineExceededError("the request's deadline has passed");
  return absl::OkStatus();
}

void RequestContext::OnCancel(std::function<void()> callback) {
  {
    std::lock_guard lock(mutex_);
    if (reason_.ok()) {
      callbacks_.push_back(std::move(callback));
      return;
    }
  }
  callback();
}

}  // namespace tandem
