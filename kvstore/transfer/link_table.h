// What pulls have shown of the links from other nodes to this one. Filled by HandoffClient, read by
// whoever reports it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace tandem::kvstore {

/// One directed link.
struct LinkEstimate {
  /// The other node's data address, as it was given to Pull.
  std::string address;
  /// 0: not measured yet.
  double bytes_per_s = 0;
  double rtt_s = 0;
  /// When it was measured last.
  absl::Time measured;
  uint64_t samples = 0;
};

/// Thread-safe. Bounded: the links that were not used for longest are forgotten.
class LinkTable {
 public:
  /// Less than this says more of buffers than of the link.
  static constexpr uint64_t kLeastBytes = 64 << 10;

  /// A pull received so many bytes in the time that it spent receiving; `rtt_s`: 0 for unknown.
  void Add(const std::string& address, uint64_t bytes, double seconds, double rtt_s,
           absl::Time now) {
    const bool tells = bytes >= kLeastBytes && seconds > 0;
    if (!tells && rtt_s <= 0) return;
    std::lock_guard lock(mutex_);
    Link& link = links_[address];
    link.measured = now;
    ++link.samples;
    if (rtt_s > 0) link.rtt_s = link.rtt_s == 0 ? rtt_s : 0.7 * link.rtt_s + 0.3 * rtt_s;
    if (tells) {
      link.rates.push_back(static_cast<double>(bytes) / seconds);
      if (link.rates.size() > kRates) link.rates.pop_front();
    }
    if (links_.size() <= kLinks) return;
    links_.erase(std::min_element(links_.begin(), links_.end(), [](const auto& a, const auto& b) {
      return a.second.measured < b.second.measured;
    }));
  }

  std::vector<LinkEstimate> List() const {
    std::lock_guard lock(mutex_);
    std::vector<LinkEstimate> list;
    for (const auto& [address, link] : links_) {
      list.push_back({.address = address,
                      .bytes_per_s = Median(link.rates),
                      .rtt_s = link.rtt_s,
                      .measured = link.measured,
                      .samples = link.samples});
    }
    return list;
  }

 private:
  static constexpr size_t kRates = 9, kLinks = 1024;
  struct Link {
    std::deque<double> rates;
    double rtt_s = 0;
    absl::Time measured;
    uint64_t samples = 0;
  };
  /// One slow or lucky pull does not move it.
  static double Median(const std::deque<double>& rates) {
    if (rates.empty()) return 0;
    std::vector<double> sorted(rates.begin(), rates.end());
    const auto middle = sorted.begin() + static_cast<ptrdiff_t>(sorted.size() / 2);
    std::nth_element(sorted.begin(), middle, sorted.end());
    return *middle;
  }

  mutable std::mutex mutex_;
  std::map<std::string, Link> links_;  // guarded by mutex_
};

}  // namespace tandem::kvstore
