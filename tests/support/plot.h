// Draws curves as a self-contained SVG. For the benchmarks.
#pragma once

#include <span>
#include <string>
#include <utility>
#include <vector>

namespace tandem::bench {

struct Curve {
  std::string name;
  /// In the order in which they are joined; positive where the axis is logarithmic.
  std::vector<std::pair<double, double>> points;
};

enum class Scale {
  /// Covers what is there, with ticks at 1, 2 and 5 of every decade.
  kLogarithmic,
  /// From 0, with ticks at multiples of 1, 2 or 5.
  kLinear,
};

struct Plot {
  std::string title, x_label, y_label;
  Scale x_scale = Scale::kLogarithmic, y_scale = Scale::kLogarithmic;
  std::vector<Curve> curves;
  /// Dashed lines over the whole width at these heights.
  std::vector<double> marks = {};
};

/// The plots one below the other. REQUIRES: each has a point.
std::string Svg(std::span<const Plot> plots);

}  // namespace tandem::bench
