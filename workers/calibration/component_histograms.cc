#include "workers/calibration/component_histograms.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace tandem::workers {
namespace {

/// As in the encoder (kRounding in kvstore/codec/prepared.cc): |x| >= k - 0.4 becomes k.
constexpr double kRounding = 0.4;
/// Of a standard deviation. Finer steps give the same: all integers beyond kMaxInteger.
constexpr double kFinestStep = 1e-3;
/// What an integer beyond the tables costs, about.
constexpr double kEscapedBits = 16;

/// The integer that x, in units of the step, becomes, and where the next one begins.
int ToInteger(double x) {
  const double magnitude = std::floor(std::min(std::abs(x), 1e6) + kRounding);
  return static_cast<int>(x < 0 ? -magnitude : magnitude);
}
double NextBoundary(int integer) {
  return integer >= 0 ? integer + 1 - kRounding : integer + kRounding;
}

}  // namespace

double EntropyBits(const IntegerCounts& counts) {
  double total = 0, sum = 0;
  for (const double count : counts) {
    if (count == 0) continue;
    total += count;
    sum += count * std::log2(count);
  }
  return total > 0 ? std::log2(total) - sum / total : 0;
}

ComponentHistograms::ComponentHistograms(const Eigen::VectorXd& sigmas)
    : bins_(static_cast<size_t>(sigmas.size()) * kBins, 0) {
  for (const double sigma : sigmas) sigmas_.push_back(static_cast<float>(std::max(sigma, 1e-30)));
}

void ComponentHistograms::Add(const Eigen::MatrixXf& columns) {
  constexpr float kMiddle = kBins / 2;
  for (size_t j = 0; j < sigmas_.size(); ++j) {
    const float to_bins = static_cast<float>(kBins / (2 * kReach)) / sigmas_[j];
    uint32_t* const bins = bins_.data() + j * kBins;
    for (Eigen::Index t = 0; t < columns.cols(); ++t) {
      const float at = columns(static_cast<Eigen::Index>(j), t) * to_bins + kMiddle;
      ++bins[static_cast<int>(std::clamp(at, 0.0f, kBins - 1.0f))];
    }
  }
}

IntegerCounts ComponentHistograms::CountsAt(size_t j, double step) const {
  IntegerCounts counts{};
  step = std::max(step, sigmas_[j] * kFinestStep);
  const double width = 2 * kReach * sigmas_[j] / kBins / step;  // of a bin, in steps
  for (int b = 0; b < kBins; ++b) {
    const uint32_t count = bins_[j * kBins + static_cast<size_t>(b)];
    if (count == 0) continue;
    // A bin that spans several integers is dealt out evenly.
    const double end = (b + 1 - kBins / 2) * width;
    for (double at = (b - kBins / 2) * width; at < end;) {
      int integer = ToInteger(at);
      // On a negative boundary the values above it belong to the next integer.
      if (NextBoundary(integer) <= at) ++integer;
      const double to = std::min(end, NextBoundary(integer));
      const int limited = std::clamp(integer, -kMaxInteger, kMaxInteger);
      counts[static_cast<size_t>(limited + kMaxInteger)] +=
          static_cast<float>(count * (to - at) / width);
      at = to;
    }
  }
  return counts;
}

double ComponentHistograms::BitsAt(double step) const {
  double bits = 0;
  for (size_t j = 0; j < n_components(); ++j) {
    const IntegerCounts counts = CountsAt(j, step);
    const double total = std::accumulate(counts.begin(), counts.end(), 0.0);
    bits += EntropyBits(counts);
    if (total > 0) bits += kEscapedBits * (counts.front() + counts.back()) / total;
  }
  return bits;
}

void ComponentHistograms::Write(kvstore::codec::ByteWriter& out) const {
  out.Write(static_cast<uint32_t>(sigmas_.size()));
  out.WriteMany(std::span(sigmas_));
  out.WriteMany(std::span(bins_));
}

ComponentHistograms ComponentHistograms::Read(kvstore::codec::ByteReader& in) {
  ComponentHistograms histograms;
  const size_t n = in.Read<uint32_t>();
  histograms.sigmas_ = in.ReadMany<float>(n);
  histograms.bins_ = in.ReadMany<uint32_t>(n * kBins);
  return histograms;
}

}  // namespace tandem::workers
