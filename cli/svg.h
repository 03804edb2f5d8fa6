// Pieces of SVG, and a line chart: text that can stand in an HTML page or in a file of its own.
// Looks come from CSS classes that the page gives. Pure functions, thread-safe.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace tandem::cli {

/// From values to places, along one axis.
struct SvgAxis {
  double low, high, begin, end;
  double At(double value) const { return begin + (value - low) / (high - low) * (end - begin); }
};

/// As text or attribute value of XML: what has a meaning there is escaped; bytes that are not
/// UTF-8, and characters that XML forbids, become U+FFFD.
std::string EscapeXml(std::string_view text);

/// `text` is escaped; `css` is a class, `anchor` one of start, middle and end.
std::string SvgText(double x, double y, const char* anchor, const char* css, std::string_view text);
std::string SvgLine(double x1, double y1, double x2, double y2, const char* css);
/// `title`, when there is one, is what a browser shows under the pointer.
std::string SvgRect(double x, double y, double width, double height, const char* css,
                    double radius = 0, std::string_view title = "");

/// Round numbers from `low` to `high`, `most` or fewer of them. REQUIRES: low < high, most ≥ 2.
std::vector<double> NiceTicks(double low, double high, int most);

struct ChartSeries {
  /// In the legend.
  std::string name;
  /// A class of the page, for the line and its marks.
  const char* css = "";
  /// The marks: 'o', 's' (square), 'd' (diamond) or 't' (triangle), so that colours do not tell
  /// alone.
  char mark = 'o';
  /// In rising order of x; y from 0 to 1.
  std::vector<std::pair<double, double>> points;
};

struct ChartMark {
  double x = 0;
  std::string label;
};

struct LineChart {
  std::string title, x_label, y_label;
  std::span<const ChartSeries> series;
  /// A horizontal line, y.
  double target = 0;
  std::string target_label;
  /// Vertical lines.
  std::vector<ChartMark> marks;
};

/// An `<svg>` of 560 × 360, y as per cent from 0 to 100. Says so where no series has a point.
std::string ChartSvg(const LineChart& chart);

}  // namespace tandem::cli
