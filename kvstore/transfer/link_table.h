// What is known of the links from other nodes to this one: bandwidth, round trip, how sure that is,
// and what is odd about them. Filled by pulls (HandoffClient) and probes (LinkProber), read by
// whoever reports it.
#pragma once

#include <cmath>
#include <cstdint>
#include <deque>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "kvstore/transfer/arrivals.h"

namespace tandem::kvstore {

/// One directed link.
struct LinkEstimate {
  /// The other node's data address, as it was given to Pull.
  std::string address;
  /// 0: not measured yet.
  double bytes_per_s = 0;
  double rtt_s = 0;
  /// 0 to 1: the share of the last samples that agree within 10 %, the newest counting most, and
  /// one alone for less; halved for each minute since the last.
  double confidence = 0;
  /// What the bandwidth has been in the long run; 0: not known.
  double usual_bytes_per_s = 0;
  /// Of the other direction, as the other node told it lately; 0: not known.
  double reverse_bytes_per_s = 0;
  /// When anything was measured last.
  absl::Time measured;
  uint64_t samples = 0;
  /// Bytes that probes have taken.
  uint64_t probe_bytes = 0;
  /// The two ends do not agree on each other's address: a NAT, a proxy or a relay lies between.
  bool relayed = false;

  /// Samples agree that differ by a tenth at most.
  bool agrees(double sample_bytes_per_s) const {
    return std::abs(sample_bytes_per_s - bytes_per_s) <= 0.1 * bytes_per_s;
  }
  /// Less than half of what it usually is.
  bool degraded() const { return bytes_per_s > 0 && 2 * bytes_per_s < usual_bytes_per_s; }
  /// One direction has at least twice the other's bandwidth.
  bool asymmetric() const {
    return bytes_per_s > 0 && reverse_bytes_per_s > 0 &&
           (bytes_per_s >= 2 * reverse_bytes_per_s || reverse_bytes_per_s >= 2 * bytes_per_s);
  }
};

/// Thread-safe. Bounded: the links that were not used for longest are forgotten.
class LinkTable {
 public:
  /// A transfer that took less says more of buffers than of the link; and one that took less than
  /// two round trips, of TCP's start: while that doubles its pace, the last third takes less.
  static constexpr double kLeastSeconds = 0.0025;
  static bool PastStart(const Timed& tail, double rtt_s) { return tail.seconds >= 2 * rtt_s; }

  /// What arrived in so much time while the link was busy. False when it does not tell enough.
  bool AddRate(const std::string& address, Timed arrived, absl::Time now);
  /// The same of one chunk of a pull: on a fast link it takes several, also of several pulls, to
  /// tell enough.
  bool AddPart(const std::string& address, Timed arrived, absl::Time now);
  /// A round trip of just now.
  void AddRtt(const std::string& address, double rtt_s, absl::Time now);
  /// The least round trip of the last minutes, for when there is no better one.
  void OfferRtt(const std::string& address, double rtt_s, absl::Time now);
  /// How the other end is reached, and what probing has taken.
  void AddProbe(const std::string& address, uint64_t bytes, bool relayed, absl::Time now);
  /// What the other node has measured in the other direction. Ignored for links that are not here.
  void SetReverse(const std::string& address, double bytes_per_s, absl::Time now);

  /// The present estimate; 0s where nothing is known.
  LinkEstimate Get(const std::string& address, absl::Time now) const;
  /// When the bandwidth was last measured; InfinitePast for never.
  absl::Time RateMeasured(const std::string& address) const;
  std::vector<LinkEstimate> List(absl::Time now) const;

 private:
  struct Sample {
    double value;
    absl::Time at;
  };
  struct Link {
    std::deque<Sample> rates, rtts;
    /// Of pulls, and not among the rates yet; since when.
    Timed parts;
    absl::Time parts_since;
    double usual_bytes_per_s = 0, reverse_bytes_per_s = 0;
    absl::Time measured, reverse_told = absl::InfinitePast();
    uint64_t samples = 0, probe_bytes = 0;
    bool relayed = false;
  };
  void TakeRate(const std::string& address, Link& link, Timed arrived, absl::Time now);
  Link& Touch(const std::string& address, absl::Time now);
  static double RttOf(const Link& link);
  static LinkEstimate Estimate(const std::string& address, const Link& link, absl::Time now);

  mutable std::mutex mutex_;
  std::map<std::string, Link> links_;  // guarded by mutex_
};

}  // namespace tandem::kvstore
