#include "tests/support/plot.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace tandem::bench {
namespace {

constexpr double kWidth = 720, kHeight = 440, kLeft = 76, kRight = 150, kTop = 48, kBottom = 60;
constexpr std::array kColours = {"#888888", "#c44e52", "#dd8452", "#55a868", "#1f6fb4", "#8172b3"};

/// From values to places.
struct Axis {
  Scale scale;
  double begin, end;
  double low = scale == Scale::kLinear ? 0 : HUGE_VAL, high = 0;
  void Cover(double value) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
  double At(double value) const {
    const double share = scale == Scale::kLinear ? (value - low) / (high - low)
                                                 : std::log(value / low) / std::log(high / low);
    return begin + share * (end - begin);
  }
  std::vector<double> Ticks() const {
    std::vector<double> ticks;
    if (scale == Scale::kLinear) {
      const double decade = std::pow(10, std::floor(std::log10(high)));
      const double step = high < 2 * decade ? decade / 5 : high < 5 * decade ? decade / 2 : decade;
      for (int i = 0; i * step <= high * (1 + 1e-9); ++i) ticks.push_back(i * step);
      return ticks;
    }
    for (double decade = std::pow(10, std::floor(std::log10(low))); decade <= high; decade *= 10) {
      for (const double tick : {decade, 2 * decade, 5 * decade}) {
        if (tick >= low && tick <= high) ticks.push_back(tick);
      }
    }
    return ticks;
  }
};

std::string Line(double x1, double y1, double x2, double y2) {
  return absl::StrFormat("<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n", x1, y1, x2,
                         y2);
}

std::string Label(double x, double y, const char* anchor, const std::string& text) {
  return absl::StrFormat("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">%s</text>\n", x, y, anchor,
                         text);
}

std::string Frame(const Plot& plot, const Axis& x, const Axis& y) {
  std::string svg = Label(kLeft, kTop - 20, "start", plot.title);
  for (const double tick : x.Ticks()) {
    absl::StrAppend(&svg, Line(x.At(tick), kTop, x.At(tick), kHeight - kBottom),
                    Label(x.At(tick), kHeight - kBottom + 18, "middle", absl::StrCat(tick)));
  }
  for (const double tick : y.Ticks()) {
    absl::StrAppend(&svg, Line(kLeft, y.At(tick), kWidth - kRight, y.At(tick)),
                    Label(kLeft - 8, y.At(tick) + 4, "end", absl::StrCat(tick)));
  }
  absl::StrAppend(&svg, Label((kLeft + kWidth - kRight) / 2, kHeight - 16, "middle", plot.x_label),
                  absl::StrFormat("<text transform=\"translate(18 %.0f) rotate(-90)\" "
                                  "text-anchor=\"middle\">%s</text>\n",
                                  kHeight / 2, plot.y_label));
  return svg;
}

std::string Draw(const Plot& plot) {
  Axis x{.scale = plot.x_scale, .begin = kLeft, .end = kWidth - kRight};
  Axis y{.scale = plot.y_scale, .begin = kHeight - kBottom, .end = kTop};
  const double margin = plot.y_scale == Scale::kLogarithmic ? 1.2 : 1;
  for (const Curve& curve : plot.curves) {
    for (const auto& [at, value] : curve.points) {
      x.Cover(at);
      y.Cover(value / margin);
      y.Cover(value * margin);
    }
  }
  // A single value would be an axis without length.
  for (Axis* axis : {&x, &y}) axis->Cover(std::max(axis->high, axis->low * 1.01 + 1e-12));
  std::string svg = Frame(plot, x, y);
  for (const double mark : plot.marks) {
    absl::StrAppendFormat(&svg,
                          "<polyline points=\"%.1f,%.1f %.1f,%.1f\" stroke=\"#888\" "
                          "stroke-dasharray=\"5 4\"/>\n",
                          kLeft, y.At(mark), kWidth - kRight, y.At(mark));
  }
  for (size_t i = 0; i < plot.curves.size(); ++i) {
    const char* colour = kColours[i % kColours.size()];
    std::string path;
    for (const auto& [at, value] : plot.curves[i].points) {
      absl::StrAppendFormat(&path, " %.1f,%.1f", x.At(at), y.At(value));
      absl::StrAppendFormat(&svg, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" fill=\"%s\"/>\n",
                            x.At(at), y.At(value), colour);
    }
    const double legend = kTop + 20 + 22 * static_cast<double>(i);
    absl::StrAppendFormat(&svg, "<polyline points=\"%s\" stroke=\"%s\"/>\n", path, colour);
    absl::StrAppendFormat(&svg, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"4\" fill=\"%s\"/>\n",
                          kWidth - kRight + 18, legend - 4, colour);
    absl::StrAppend(&svg, Label(kWidth - kRight + 28, legend, "start", plot.curves[i].name));
  }
  return svg;
}

}  // namespace

std::string Svg(std::span<const Plot> plots) {
  std::string svg = absl::StrFormat(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" height=\"%.0f\">\n"
      "<style>text{font:13px sans-serif;fill:#222}line{stroke:#ddd}"
      "polyline{fill:none;stroke-width:2}</style>\n"
      "<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n",
      kWidth, kHeight * static_cast<double>(plots.size()));
  for (size_t i = 0; i < plots.size(); ++i) {
    absl::StrAppend(
        &svg,
        absl::StrFormat("<g transform=\"translate(0 %.0f)\">\n", kHeight * static_cast<double>(i)),
        Draw(plots[i]), "</g>\n");
  }
  return svg + "</svg>\n";
}

}  // namespace tandem::bench
