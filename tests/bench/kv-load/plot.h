// Draws curves over two logarithmic axes as a self-contained SVG.
#pragma once

#include <span>
#include <string>
#include <utility>
#include <vector>

namespace tandem::bench {

struct Curve {
  std::string name;
  /// In the order in which they are joined; all positive.
  std::vector<std::pair<double, double>> points;
};

struct Plot {
  std::string title, x_label, y_label;
  std::vector<Curve> curves;
};

/// The plots one below the other. REQUIRES: each has a point.
std::string LogLogSvg(std::span<const Plot> plots);

}  // namespace tandem::bench
