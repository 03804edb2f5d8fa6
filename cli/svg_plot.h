// Draws rate against loss as a self-contained SVG. For `tandem kv eval --plot`.
#pragma once

#include <span>
#include <string>

namespace tandem::cli {

struct RateLossPoint {
  std::string name;
  /// Of the encoded cache.
  double bits_per_element = 0;
  /// Change of perplexity as a fraction, and its standard error (drawn as a bar of ± 1).
  double loss = 0, loss_se = 0;
};

/// Bits (logarithmic) to the right, loss in per cent upwards (linear near 0, logarithmic far from
/// it, so that all levels can be told apart). Points are joined in the order given.
/// REQUIRES: not empty; bits > 0, all finite.
std::string RateLossSvg(const std::string& title, std::span<const RateLossPoint> points);

}  // namespace tandem::cli
