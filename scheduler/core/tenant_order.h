// In which order a worker computes prompts of several tenants: fairly, so that one that floods does
// not hold up another. Used by the worker's prefill loop. No threads: one caller at a time.
#pragma once

#include <cstddef>
#include <limits>
#include <string>

#include "absl/container/flat_hash_map.h"

namespace tandem::scheduler {

/// Start-time fair queueing (Goyal, Vin, Cheng, SIGCOMM '96): prompts are computed by rising tag,
/// of equal ones the first that came. A tenant's own keep their order. One that is *about*, that
/// has sent something in the last seconds, and has asked for less than others is ahead of them by a
/// small credit, so that its bursts go before prompts of one that floods. Times are seconds of any
/// one clock.
class TenantOrder {
 public:
  /// Tokens, for a weight of 1.
  static constexpr double kCredit = 2048;

  /// For how long after its last prompt a tenant is about.
  static constexpr double kAboutS = 10;

  struct Place {
    double tag = 0;
    /// Its tenant has had its share and another one is about, whose next prompt goes before this
    /// one's rest: this one should not take a step longer than it must.
    bool yields = false;
  };
  /// Of a prompt of `tokens` tokens that has come. REQUIRES: weight > 0.
  Place Enter(const std::string& tenant, double tokens, double weight, double now_s);
  /// A prompt with this tag is being computed.
  void Begin(double tag);
  /// Nothing is left to compute: who has had more than others need not wait for them any more, and
  /// one that nobody else has been about beside has its credit, since it needs less than all.
  void Idle(double now_s);

  /// Tenants of which something is known.
  size_t remembered() const { return tenants_.size(); }

 private:
  static constexpr double kLongAgo = -std::numeric_limits<double>::infinity();
  struct Tenant {
    double next_tag = 0;
    double last_s = kLongAgo;
  };

  void Forget(double now_s);

  double virtual_time_ = 0;
  double last_tag_ = 0;  // the highest that a prompt to come would get
  std::string last_tenant_;
  double last_s_ = kLongAgo, other_s_ = kLongAgo;  // when it came last, and when another did
  absl::flat_hash_map<std::string, Tenant> tenants_;
};

}  // namespace tandem::scheduler
