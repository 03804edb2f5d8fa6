// What one worker has measured of its decoder and of the links to other nodes: means that newer
// loads begin with. Used by the context loader.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>

#include "kvstore/codec/level.h"

namespace tandem::kvstore {

/// Thread-safe.
class Speeds {
 public:
  /// `initial_bytes_per_s`: what a link is taken for before anything came over it.
  explicit Speeds(double initial_bytes_per_s) : initial_bytes_per_s_(initial_bytes_per_s) {}

  /// A chunk of `raw_bytes` of KV took `seconds` to decode.
  void Decoded(codec::Level level, uint64_t raw_bytes, double seconds) {
    std::lock_guard lock(mutex_);
    double& rate = decode_[static_cast<size_t>(level)];
    const double now = static_cast<double>(raw_bytes) / std::max(seconds, 1e-9);
    rate = rate == 0 ? now : 0.8 * rate + 0.2 * now;
  }
  /// Seconds that such a chunk will take.
  double DecodeSeconds(codec::Level level, uint64_t raw_bytes) const {
    std::lock_guard lock(mutex_);
    const double rate = decode_[static_cast<size_t>(level)];
    return static_cast<double>(raw_bytes) / (rate > 0 ? rate : kInitialDecodeBytesPerS);
  }

  /// A load begins to use a link. Returns its share, bytes/s, of what was measured last.
  double Join(const std::string& address) {
    std::lock_guard lock(mutex_);
    Link& link = links_[address];
    ++link.users;
    return (link.bytes_per_s > 0 ? link.bytes_per_s : initial_bytes_per_s_) / link.users;
  }
  /// It ends; `share`: what it measured, 0 for nothing. Returns the whole link's bytes/s.
  double Leave(const std::string& address, double share) {
    std::lock_guard lock(mutex_);
    Link& link = links_[address];
    if (share > 0) link.bytes_per_s = share * link.users;
    --link.users;
    return link.bytes_per_s;
  }

 private:
  static constexpr double kInitialDecodeBytesPerS = 1e9;
  struct Link {
    double bytes_per_s = 0;
    uint32_t users = 0;
  };
  const double initial_bytes_per_s_;
  mutable std::mutex mutex_;
  std::array<double, codec::kAllLevels.size()> decode_{};
  std::map<std::string, Link> links_;
};

}  // namespace tandem::kvstore
