// The HTTP listener that Prometheus scrapes: /metrics, over all registries of the process.
// Started by main when metrics_listen is set.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace prometheus {
class Exposer;
class Registry;
}  // namespace prometheus

namespace tandem::server {

/// Not thread-safe; scraping happens on threads of its own, which end with the object.
class MetricsServer {
 public:
  /// Listens on `address`, "host:port"; port 0 takes a free one. INVALID_ARGUMENT for a malformed
  /// address, UNAVAILABLE with the system's reason when it cannot be bound.
  static absl::StatusOr<std::unique_ptr<MetricsServer>> Start(std::string_view address);
  ~MetricsServer();

  /// Exposes `registry` from now on. No family may be in two registries: let workers and router
  /// share one.
  void Add(std::shared_ptr<prometheus::Registry> registry);

  uint16_t port() const { return port_; }

 private:
  MetricsServer() = default;
  std::vector<std::shared_ptr<prometheus::Registry>> registries_;
  std::unique_ptr<prometheus::Exposer> exposer_;
  std::string host_;
  uint16_t port_ = 0;
};

}  // namespace tandem::server
