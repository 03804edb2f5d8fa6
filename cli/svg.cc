#include "cli/svg.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/utf8.h"

namespace tandem::cli {
namespace {

constexpr double kWidth = 560, kHeight = 360, kLeft = 62, kRight = 16, kTop = 40, kBottom = 96;
constexpr char kReplacement[] = "\xEF\xBF\xBD";

/// The bytes of the character at the beginning of the text; 0: it is none, or one that XML forbids.
size_t CharacterBytes(std::string_view text) {
  const int n = Utf8CharacterLength(text);
  if (n == 1) return text[0] >= 0x20 || text[0] == '\t' || text[0] == '\n' ? 1 : 0;
  const bool forbidden = text.starts_with("\xEF\xBF\xBE") || text.starts_with("\xEF\xBF\xBF");
  return n <= 0 || forbidden ? 0 : static_cast<size_t>(n);
}

std::string Mark(char mark, double x, double y, const char* css) {
  const auto path = [&](const char* d) {
    return absl::StrFormat("<path transform=\"translate(%.1f %.1f)\" d=\"%s\" class=\"%s mark\"/>",
                           x, y, d, css);
  };
  if (mark == 's') return path("M-3.2-3.2h6.4v6.4h-6.4z");
  if (mark == 'd') return path("M0-4.4L4.4 0L0 4.4L-4.4 0z");
  if (mark == 't') return path("M0-4.2L4 3.2L-4 3.2z");
  return path("M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0z");
}

std::string Frame(const LineChart& chart, const SvgAxis& x, const SvgAxis& y) {
  std::string svg = SvgText(kLeft, 20, "start", "head", chart.title);
  for (int percent = 0; percent <= 100; percent += 20) {
    const double at = y.At(percent / 100.0);
    absl::StrAppend(&svg, SvgLine(kLeft, at, kWidth - kRight, at, "grid"),
                    SvgText(kLeft - 8, at + 4, "end", "tick", absl::StrCat(percent)));
  }
  for (const double tick : NiceTicks(x.low, x.high, 8)) {
    absl::StrAppend(&svg, SvgLine(x.At(tick), y.end, x.At(tick), y.begin, "grid"),
                    SvgText(x.At(tick), y.begin + 18, "middle", "tick", absl::StrCat(tick)));
  }
  absl::StrAppend(
      &svg, SvgText((x.begin + x.end) / 2, y.begin + 38, "middle", "label", chart.x_label),
      absl::StrFormat("<text transform=\"translate(16 %.0f) rotate(-90)\" text-anchor=\"middle\" "
                      "class=\"label\">%s</text>\n",
                      (y.begin + y.end) / 2, EscapeXml(chart.y_label)));
  return svg;
}

/// Two lines of at most three names, below the axis.
std::string Legend(const LineChart& chart) {
  std::string svg;
  for (size_t i = 0; i < chart.series.size(); ++i) {
    const ChartSeries& one = chart.series[i];
    const double x = kLeft - 40 + static_cast<double>(i % 3) * 180;
    const double y = kHeight - 34 + 20 * static_cast<double>(i / 3);
    absl::StrAppend(&svg, SvgLine(x, y, x + 26, y, absl::StrCat(one.css, " line").c_str()),
                    Mark(one.mark, x + 13, y, one.css),
                    SvgText(x + 32, y + 4, "start", "tick", one.name));
  }
  return svg;
}

}  // namespace

std::string EscapeXml(std::string_view text) {
  std::string escaped;
  while (!text.empty()) {
    const size_t n = CharacterBytes(text);
    switch (n == 0 ? '\0' : text[0]) {
      case '\0':
        escaped += kReplacement;
        break;
      case '<':
        escaped += "&lt;";
        break;
      case '>':
        escaped += "&gt;";
        break;
      case '&':
        escaped += "&amp;";
        break;
      case '"':
        escaped += "&quot;";
        break;
      case '\'':
        escaped += "&#39;";
        break;
      default:
        escaped += text.substr(0, n);
    }
    text.remove_prefix(std::max<size_t>(1, n));
  }
  return escaped;
}

std::string SvgText(double x, double y, const char* anchor, const char* css,
                    std::string_view text) {
  return absl::StrFormat("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" class=\"%s\">%s</text>\n",
                         x, y, anchor, css, EscapeXml(text));
}

std::string SvgLine(double x1, double y1, double x2, double y2, const char* css) {
  return absl::StrFormat("<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" class=\"%s\"/>\n",
                         x1, y1, x2, y2, css);
}

std::string SvgRect(double x, double y, double width, double height, const char* css, double radius,
                    std::string_view title) {
  const std::string rect = absl::StrFormat(
      "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" rx=\"%.1f\" "
      "class=\"%s\"",
      x, y, width, height, radius, css);
  if (title.empty()) return rect + "/>\n";
  return absl::StrCat(rect, "><title>", EscapeXml(title), "</title></rect>\n");
}

std::vector<double> NiceTicks(double low, double high, int most) {
  const double least = (high - low) / most;
  const double power = std::pow(10, std::floor(std::log10(least)));
  double step = 10 * power;
  for (const double factor : {5.0, 2.0, 1.0}) {
    if (factor * power >= least) step = factor * power;
  }
  std::vector<double> ticks;
  for (double k = std::ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; ++k) {
    ticks.push_back(k * step + 0.0);  // not -0
  }
  return ticks;
}

std::string ChartSvg(const LineChart& chart) {
  double low = HUGE_VAL, high = -HUGE_VAL;
  for (const ChartSeries& one : chart.series) {
    for (const auto& [x, y] : one.points) {
      low = std::min(low, x);
      high = std::max(high, x);
    }
  }
  std::string svg = absl::StrFormat(
      "<svg viewBox=\"0 0 %.0f %.0f\" role=\"img\" xmlns=\"http://www.w3.org/2000/svg\">"
      "<title>%s</title>\n",
      kWidth, kHeight, EscapeXml(chart.title));
  if (!(low < high)) {
    return absl::StrCat(
        svg, SvgText(kLeft, 20, "start", "head", chart.title),
        SvgText(kWidth / 2, kHeight / 2, "middle", "label", "Nothing was simulated."), "</svg>\n");
  }
  const SvgAxis x = {low, high, kLeft, kWidth - kRight}, y = {0, 1, kHeight - kBottom, kTop};
  absl::StrAppend(
      &svg, Frame(chart, x, y),
      SvgLine(x.begin, y.At(chart.target), x.end, y.At(chart.target), "target"),
      SvgText(x.begin + 4, y.At(chart.target) - 4, "start", "target-text", chart.target_label));
  for (const ChartMark& mark : chart.marks) {
    if (mark.x < low || mark.x > high) continue;
    const bool left = mark.x > (low + high) / 2;
    absl::StrAppend(&svg, SvgLine(x.At(mark.x), y.begin, x.At(mark.x), y.end, "goodput"),
                    SvgText(x.At(mark.x) + (left ? -5 : 5), y.begin - 8, left ? "end" : "start",
                            "target-text", mark.label));
  }
  for (const ChartSeries& one : chart.series) {
    std::string points, marks;
    for (const auto& [px, py] : one.points) {
      absl::StrAppendFormat(&points, "%s%.1f,%.1f", points.empty() ? "" : " ", x.At(px), y.At(py));
      marks += Mark(one.mark, x.At(px), y.At(py), one.css);
    }
    absl::StrAppend(&svg, "<polyline points=\"", points, "\" class=\"", one.css, " line\"/>\n",
                    marks, "\n");
  }
  return absl::StrCat(svg, Legend(chart), "</svg>\n");
}

}  // namespace tandem::cli
