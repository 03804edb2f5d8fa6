// In which order a worker computes prompts of several tenants: fairly, so that one that floods does
// not hold up another. Used by the worker's prefill loop. No threads: one caller at a time.
#pragma once

#include <cstdint>
#include <string>

#include "absl/container/flat_hash_map.h"

namespace tandem::scheduler {

/// Start-time fair queueing (Goyal, Vin, Cheng, SIGCOMM '96): prompts are computed by rising tag,
/// of equal ones the first that came. A tenant's own keep their order. One that has asked for less
/// than its share may be ahead by a small credit, so that a few prompts at once of a tenant that is
/// seldom here go before those of one that always has some.
class TenantOrder {
 public:
  /// Tokens, for a weight of 1.
  static constexpr double kCredit = 2048;

  /// Prompts in a row of one tenant after which no other is expected.
  static constexpr uint32_t kExpected = 100;

  struct Place {
    double tag = 0;
    /// Its tenant has had its share and another one is about, whose next prompt goes before this
    /// one's rest: this one should not take a step longer than it must.
    bool yields = false;
  };
  /// Of a prompt of `tokens` tokens that has come. REQUIRES: weight > 0.
  Place Enter(const std::string& tenant, double tokens, double weight);
  /// A prompt with this tag is being computed.
  void Begin(double tag);
  /// Nothing is left to compute: nobody has had more than another any more.
  void Idle() { next_tag_.clear(); }

  /// Tenants of which something is known.
  size_t remembered() const { return next_tag_.size(); }

 private:
  void Forget();

  double virtual_time_ = 0;
  std::string last_tenant_;
  uint32_t in_a_row_ = kExpected;  // of the last tenant, since another's
  absl::flat_hash_map<std::string, double> next_tag_;
};

}  // namespace tandem::scheduler
