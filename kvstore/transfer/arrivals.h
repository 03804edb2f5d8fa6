// When the bytes of one transfer arrived: how fast the link was once buffers on the way were full
// and TCP had found its pace. Filled by FrameSocket, used by pulls and probes.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

namespace tandem::kvstore {

/// Bytes and the time that they took.
struct Timed {
  uint64_t bytes = 0;
  double seconds = 0;
};

/// Not thread-safe.
class Arrivals {
 public:
  using Clock = std::chrono::steady_clock;

  /// A read has taken `bytes`; `all`: there was no more to take, so that what was taken so far is
  /// what had arrived by now. Only such moments tell of the link and not of the reader.
  void Add(uint64_t bytes, bool all, Clock::time_point now) {
    bytes_ += bytes;
    if (!all || ++passed_ < stride_) return;
    passed_ = 0;
    if (moments_.size() == kMoments) Thin();
    moments_.push_back({now, bytes_});
  }

  /// All has come. Of many moments this one is left out: the reader may have been woken late.
  void End(Clock::time_point now) {
    if (moments_.size() < kFewMoments) moments_.push_back({now, bytes_});
  }

  /// The last third: a token bucket's burst and TCP's slow start are before it. Nothing when too
  /// little is known: so when most of that third had come together with what was before it. What
  /// came then came after a pause of the sender's, which had no core, or nothing to send.
  Timed Tail() const {
    if (moments_.size() < 2) return {};
    const Moment& last = Last();
    const auto first = std::find_if(moments_.begin(), moments_.end(), [&](const Moment& moment) {
      return moment.bytes * 3 >= last.bytes * 2;
    });
    if ((last.bytes - first->bytes) * kLeastPart < last.bytes) return {};
    return {last.bytes - first->bytes, std::chrono::duration<double>(last.at - first->at).count()};
  }

 private:
  static constexpr size_t kMoments = 512, kFewMoments = 16, kEnough = 6;
  /// A tail is one part of so many of all bytes, at least.
  static constexpr uint64_t kLeastPart = 6;
  struct Moment {
    Clock::time_point at;
    uint64_t bytes;
  };
  /// A token bucket lets a packet go when the time of the one before it has passed: a shorter one
  /// at the end, as late as a whole one, is left out where enough others came.
  const Moment& Last() const {
    size_t end = moments_.size();
    if (end > kEnough && moments_[end - 1].bytes == moments_[end - 2].bytes) --end;
    if (end <= kEnough) return moments_.back();
    const uint64_t piece = moments_[end - 1].bytes - moments_[end - 2].bytes;
    const uint64_t before = moments_[end - 2].bytes - moments_[end - 3].bytes;
    return moments_[piece < before ? end - 2 : end - 1];
  }
  /// However much comes, little is kept: every second one goes, of those to come as well.
  void Thin() {
    stride_ *= 2;
    for (size_t i = 0; i < kMoments / 2; ++i) moments_[i] = moments_[2 * i];
    moments_.resize(kMoments / 2);
  }

  uint64_t bytes_ = 0, stride_ = 1, passed_ = 0;
  std::vector<Moment> moments_;
};

}  // namespace tandem::kvstore
