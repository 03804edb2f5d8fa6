// The adapter: for each chunk of a context on its way, at which level it is sent, or whether it is
// computed from its text instead (CacheGen, §5.3, Algorithm 1). Pure arithmetic on what was
// measured; used by loads of cached context and by handoffs.
#pragma once

#include <array>
#include <cstdint>
#include <deque>

#include "kvstore/codec/level.h"

namespace tandem::kvstore {

/// How fast bytes come in, from the bytes that have: over a sliding window, so that a change of the
/// link shows within that window. Until the window is full an earlier figure counts as well. Not
/// thread-safe; seconds are of any one steady clock.
class RateEstimator {
 public:
  static constexpr double kLeastWindowS = 0.02, kMostWindowS = 0.5;
  /// `prior_bytes_per_s`: what is believed before anything was measured.
  explicit RateEstimator(double prior_bytes_per_s) : prior_(prior_bytes_per_s) {}

  /// TCP sends in bursts, one a round trip or so: the window spans several of them.
  void SetRoundTrip(double seconds);
  double window_s() const { return window_s_; }

  /// The sender has something to send from now on. Time without is not counted.
  void Resume(double now_s, uint64_t total_bytes);
  void Pause(double now_s, uint64_t total_bytes);
  /// `total_bytes`: received so far, all in all.
  void Observe(double now_s, uint64_t total_bytes);
  double bytes_per_s() const;
  /// Busy seconds observed so far.
  double observed_s() const { return busy_s_; }

 private:
  struct Sample {
    double busy_s;
    uint64_t bytes;
  };
  const double prior_;
  double window_s_ = kLeastWindowS;
  bool running_ = false;
  double resumed_s_ = 0, busy_before_s_ = 0, busy_s_ = 0;
  uint64_t not_counted_ = 0, paused_at_ = 0;
  std::deque<Sample> samples_;
};

/// What is left of one context's load.
struct LoadState {
  /// Chunks that nobody has asked for yet, and the mean bytes of such a chunk by level (0: that
  /// level is held nowhere).
  uint32_t n_chunks = 0;
  std::array<double, 5> chunk_bytes{};
  /// Bytes asked for and not yet here.
  double in_flight_bytes = 0;
  /// This context's share of the link.
  double bytes_per_s = 0;
  /// Seconds to decode a chunk, by level.
  std::array<double, 5> decode_s{};
  /// Seconds to compute, from its text, the first chunk that the engine lacks; 0: the engine has no
  /// time for that.
  double text_s = 0;
  /// Seconds to compute all that are not here yet, those on their way included.
  double text_all_s = 0;
  /// Until the context should be ready.
  double left_s = 0;
};

/// Seconds until all is here when the rest comes at `level`, while the engine computes from the
/// front what has not been asked for. Infinity when nothing holds that level.
double PredictSeconds(const LoadState& state, codec::Level level);

/// Seconds until all is here if the link becomes ten times slower as soon as one more chunk, at
/// `level`, has been asked for: all that comes after that one comes at the smallest level not
/// coarser than `floor`, or the engine computes everything.
double WorstSeconds(const LoadState& state, codec::Level level, codec::Level floor);

/// The finest level, not coarser than `floor`, with which the context is ready in time even if the
/// link gets slower meanwhile (WorstSeconds); when there is none, the one with which it is ready
/// first. CacheGen's Algorithm 1 asks only whether it is ready in time if nothing changes, so that
/// whatever changes for the worse makes it late. `floor` when no level is held.
codec::Level ChooseLevel(const LoadState& state, codec::Level floor);

/// Whether the first chunk that the engine lacks should be computed rather than waited for: when
/// that is done sooner than the load would be. `asked_for`: it is on its way already, as the last.
bool PreferText(const LoadState& state, codec::Level level, bool asked_for);

}  // namespace tandem::kvstore
