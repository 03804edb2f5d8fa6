#include "kvstore/loading/adapter.h"

#include <algorithm>
#include <limits>

namespace tandem::kvstore {
namespace {

using codec::Level;

/// The prior counts as much as so many seconds of measurement.
constexpr double kPriorWeightS = 0.01;
/// Of a window.
constexpr double kRoundTrips = 4;
/// How much slower a link may suddenly become.
constexpr double kSlowdown = 10;
/// Computing must win by this much: estimates err, and it costs energy that loading does not.
constexpr double kTextMargin = 1.1;
constexpr double kNever = std::numeric_limits<double>::infinity();

size_t Index(Level level) { return static_cast<size_t>(level); }

/// Seconds until what is on its way is here.
double InFlightSeconds(const LoadState& state) {
  return state.in_flight_bytes / std::max(1.0, state.bytes_per_s);
}

/// Seconds that one more chunk takes: transfer and decoding go on side by side.
double ChunkSeconds(const LoadState& state, Level level) {
  return std::max(state.chunk_bytes[Index(level)] / std::max(1.0, state.bytes_per_s),
                  state.decode_s[Index(level)]);
}

}  // namespace

void RateEstimator::SetRoundTrip(double seconds) {
  window_s_ = std::clamp(kRoundTrips * seconds, kLeastWindowS, kMostWindowS);
}

void RateEstimator::Resume(double now_s, uint64_t total_bytes) {
  if (running_) return Observe(now_s, total_bytes);
  running_ = true;
  resumed_s_ = now_s;
  busy_before_s_ = busy_s_;
  not_counted_ += total_bytes - paused_at_;
  if (samples_.empty()) samples_.push_back({0, 0});
}

void RateEstimator::Pause(double now_s, uint64_t total_bytes) {
  if (!running_) return;
  Observe(now_s, total_bytes);
  running_ = false;
  paused_at_ = total_bytes;
}

void RateEstimator::Observe(double now_s, uint64_t total_bytes) {
  if (!running_) return;
  busy_s_ = busy_before_s_ + std::max(0.0, now_s - resumed_s_);
  samples_.push_back({busy_s_, total_bytes - not_counted_});
  // One sample at or before the window's beginning stays.
  while (samples_.size() > 2 && samples_[1].busy_s <= busy_s_ - window_s_) samples_.pop_front();
}

double RateEstimator::bytes_per_s() const {
  if (samples_.size() < 2) return prior_;
  const double seconds = samples_.back().busy_s - samples_.front().busy_s;
  const double bytes = static_cast<double>(samples_.back().bytes - samples_.front().bytes);
  const double prior_s = kPriorWeightS * std::max(0.0, 1 - busy_s_ / window_s_);
  if (seconds + prior_s <= 0) return prior_;
  return (bytes + prior_ * prior_s) / (seconds + prior_s);
}

double PredictSeconds(const LoadState& state, Level level) {
  if (state.chunk_bytes[Index(level)] <= 0) return kNever;
  const double chunk_s = ChunkSeconds(state, level);
  const double last_decode_s = state.decode_s[Index(level)];
  const double in_flight_s = InFlightSeconds(state);
  const double alone_s = in_flight_s + state.n_chunks * chunk_s + last_decode_s;
  if (state.text_s <= 0) return alone_s;
  // Link and engine meet somewhere: their rates add up once the link is free.
  const double computed_meanwhile = std::min<double>(state.n_chunks, in_flight_s / state.text_s);
  const double rest = state.n_chunks - computed_meanwhile;
  const double together_s =
      in_flight_s + rest / (1 / std::max(1e-9, chunk_s) + 1 / state.text_s) + last_decode_s;
  return std::min(alone_s, together_s);
}

double WorstSeconds(const LoadState& state, Level level, Level floor) {
  double smallest = state.chunk_bytes[Index(level)];
  for (const Level other : codec::kAllLevels) {
    const double bytes = state.chunk_bytes[Index(other)];
    if (other <= floor && bytes > 0) smallest = std::min(smallest, bytes);
  }
  const double bytes = state.in_flight_bytes + state.chunk_bytes[Index(level)] +
                       smallest * (std::max(1u, state.n_chunks) - 1);
  const double link_s =
      kSlowdown * bytes / std::max(1.0, state.bytes_per_s) + state.decode_s[Index(level)];
  // It takes a window until it is noticed.
  const double text_s = state.text_s > 0 ? RateEstimator::kLeastWindowS + state.text_all_s : kNever;
  return std::min(link_s, text_s);
}

Level ChooseLevel(const LoadState& state, Level floor) {
  Level fastest = floor;
  double fastest_s = kNever;
  for (const Level level : codec::kAllLevels) {
    if (level > floor) break;
    const double seconds = PredictSeconds(state, level);
    if (seconds <= state.left_s && WorstSeconds(state, level, floor) <= state.left_s) return level;
    if (seconds < fastest_s) {
      fastest = level;
      fastest_s = seconds;
    }
  }
  return fastest;
}

bool PreferText(const LoadState& state, Level level, bool asked_for) {
  if (state.text_s <= 0) return false;
  const double decode_s = state.decode_s[Index(level)];
  const double load_s = InFlightSeconds(state) + decode_s +
                        (asked_for ? 0 : state.n_chunks * ChunkSeconds(state, level));
  return state.text_s * kTextMargin < load_s;
}

}  // namespace tandem::kvstore
