// Keeps probes within a share of a node's port: counted as the time that the link is theirs, so
// that fast and slow links can share one budget. Used by both ends of a probe.
#pragma once

#include <algorithm>

#include "absl/time/time.h"

namespace tandem::kvstore {

/// Not thread-safe.
class ProbeBudget {
 public:
  /// `share` of the time, from now on.
  ProbeBudget(double share, absl::Time now)
      : share_(share), saved_s_(share > 0 ? kFirstS : 0), then_(now) {}

  /// How long until something that takes the link for `seconds` may begin; 0: for nobody knows how
  /// long.
  absl::Duration Until(double seconds, absl::Time now) {
    Earn(now);
    const double missing_s = std::clamp(seconds, kLeastS, kMostS) - saved_s_;
    if (missing_s <= 0) return absl::ZeroDuration();
    return share_ > 0 ? absl::Seconds(missing_s / share_) : absl::InfiniteDuration();
  }
  /// The link was taken for so long. More than was saved is a debt: nothing begins until it is
  /// paid.
  void Spend(double seconds, absl::Time now) {
    Earn(now);
    saved_s_ -= seconds;
  }

 private:
  /// No more is saved up, so that there is no long burst.
  static constexpr double kLeastS = 1e-4, kMostS = 0.1;
  /// What a new node may spend at once: enough to find out the order of magnitude.
  static constexpr double kFirstS = 0.01;
  void Earn(absl::Time now) {
    const double passed_s = std::max(0.0, absl::ToDoubleSeconds(now - then_));
    saved_s_ = std::min(kMostS, saved_s_ + share_ * passed_s);
    then_ = now;
  }

  const double share_;
  double saved_s_;
  absl::Time then_;
};

}  // namespace tandem::kvstore
