// One request's identity, deadline and cancellation, passed as first parameter down the whole
// call tree. Shared between the gRPC side that cancels and the loops and transfers that obey.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace tandem {

/// Thread-safe. Cancelled at most once; the first reason stays.
class RequestContext {
 public:
  RequestContext(std::string request_id, std::string tenant, uint32_t attempt, absl::Time deadline)
      : request_id_(std::move(request_id)),
        tenant_(std::move(tenant)),
        attempt_(attempt),
        deadline_(deadline) {}

  const std::string& request_id() const { return request_id_; }
  const std::string& tenant() const { return tenant_; }
  uint32_t attempt() const { return attempt_; }
  /// InfiniteFuture when there is none.
  absl::Time deadline() const { return deadline_; }

  /// Ends the request: `Check` fails from now on with `reason`, and the callbacks run, in this
  /// thread, before it returns. REQUIRES: !reason.ok(). Later calls do nothing.
  void Cancel(absl::Status reason);

  /// OK, or why the request must stop: the reason given to Cancel, or DEADLINE_EXCEEDED.
  absl::Status Check(absl::Time now = absl::Now()) const;

  /// Runs `callback` upon Cancel; at once when that has happened already. The callback must not
  /// call back into this object.
  void OnCancel(std::function<void()> callback);

 private:
  const std::string request_id_;
  const std::string tenant_;
  const uint32_t attempt_;
  const absl::Time deadline_;
  mutable std::mutex mutex_;
  absl::Status reason_;                           // guarded by mutex_
  std::vector<std::function<void()>> callbacks_;  // guarded by mutex_
};

using RequestContextPtr = std::shared_ptr<RequestContext>;

}  // namespace tandem
