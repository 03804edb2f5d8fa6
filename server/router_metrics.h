// Everything a router tells Prometheus. Called by the router's services; scraped through
// server/metrics_server.h. Families: docs/metrics.md.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"

namespace prometheus {
class Registry;
}

namespace tandem::server {

/// One request, as it ended.
struct EndedRequest {
  std::string_view tenant;
  absl::StatusCode code = absl::StatusCode::kOk;
  /// "stop" or "length"; anything else counts as "none".
  std::string_view finish;
  /// Arrival to first token sent; absent when none was.
  std::optional<double> ttft_s;
  /// Mean time per token after the first; absent below two tokens.
  std::optional<double> tpot_s;
  /// Arrival to end.
  double e2e_s = 0;
  uint32_t prompt_tokens = 0;
  uint32_t generated_tokens = 0;
};

enum class Stage { kRouterQueue, kPrefillQueue, kPrefill, kHandoff, kDecodeQueue, kDecode };

/// Thread-safe and cheap, as WorkerMetrics. Tenants that were not named at construction count as
/// "other", so that clients cannot make series.
class RouterMetrics {
 public:
  RouterMetrics(std::shared_ptr<prometheus::Registry> registry, std::string model_name,
                const std::vector<std::string>& tenants);
  ~RouterMetrics();
  RouterMetrics(const RouterMetrics&) = delete;
  RouterMetrics& operator=(const RouterMetrics&) = delete;

  const std::shared_ptr<prometheus::Registry>& registry() const { return registry_; }

  /// A request was admitted.
  void RequestStarted(std::string_view tenant);
  /// An admitted request ended; once each.
  void RequestEnded(const EndedRequest& request);
  /// A request was refused before it ran: "queue_full", "draining", "no_worker", "invalid",
  /// "tenant", "model", "rate", "concurrency", "too_late", "displaced"; other words count as
  /// "other".
  void Rejected(std::string_view reason);
  /// A request goes on elsewhere: "lost", "broken", "handoff", "refused", "given_back", "moved".
  void Resumed(std::string_view cause);
  /// A request should have, and did not: "budget", "poisoned", "no_worker".
  void ResumptionRefused(std::string_view reason);
  /// Requests that wait in the router now.
  void Queued(uint32_t n);
  /// Requests in flight now, and the most there may be.
  void InFlight(uint32_t n, uint32_t limit);
  /// Workers of a phase ("prefill", "decode", "mixed"), or stores ("store"), that this router can
  /// use now.
  void Workers(std::string_view phase, uint32_t n);
  /// The planner has decided: "kept", "changed", "dry_run", "rescued", "joined", "failed".
  void Planned(std::string_view outcome);
  /// The planner's state: whether this router decides; the predicted goodput, 0 without any; when
  /// phases were last changed, in seconds since 1970, 0 for never.
  void Plan(bool leads, double goodput_rps, double changed_s);
  /// Chunks that it knows somebody to hold.
  void DirectoryChunks(uint64_t n);
  /// Where a finished request's time went.
  void StageSeconds(Stage stage, double seconds);
  /// What the router itself added to a request's first token: tokenising, choice, forwarding.
  void RouterOverheadSeconds(double seconds);

 private:
  struct Families;
  const std::shared_ptr<prometheus::Registry> registry_;
  const std::unique_ptr<Families> families_;
};

}  // namespace tandem::server
