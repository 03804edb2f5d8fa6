#include "cli/svg_plot.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/svg.h"

namespace tandem::cli {
namespace {

constexpr double kWidth = 720, kHeight = 440, kLeft = 76, kRight = 24, kTop = 48, kBottom = 60;
/// Losses well below this, per cent, are drawn to scale; above, by their logarithm.
constexpr double kLinearPercent = 0.1;

double Folded(double percent) { return std::asinh(percent / kLinearPercent); }

std::string Label(double x, double y, const char* anchor, const std::string& text) {
  return absl::StrFormat("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">%s</text>\n", x, y, anchor,
                         EscapeXml(text));
}

SvgAxis BitsAxis(std::span<const RateLossPoint> points) {
  double low = HUGE_VAL, high = 0;
  for (const auto& point : points) {
    low = std::min(low, point.bits_per_element);
    high = std::max(high, point.bits_per_element);
  }
  return {std::log(low / 1.3), std::log(high * 1.3), kLeft, kWidth - kRight};
}

SvgAxis LossAxis(std::span<const RateLossPoint> points) {
  double low = 0, high = kLinearPercent;
  for (const auto& point : points) {
    low = std::min(low, 100 * (point.loss - point.loss_se));
    high = std::max(high, 100 * (point.loss + point.loss_se));
  }
  return {Folded(low * 1.2 - 0.02), Folded(high * 1.2), kHeight - kBottom, kTop};
}

std::string Frame(const std::string& title, const SvgAxis& bits, const SvgAxis& loss) {
  std::string svg = Label(kLeft, kTop - 20, "start", title);
  for (const double tick : {0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0}) {
    const double at = std::log(tick);
    if (at < bits.low || at > bits.high) continue;
    absl::StrAppend(&svg, SvgLine(bits.At(at), kTop, bits.At(at), kHeight - kBottom, "grid"),
                    Label(bits.At(at), kHeight - kBottom + 18, "middle", absl::StrCat(tick)));
  }
  for (const double tick : {-10.0, -1.0, -0.1, 0.0, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 100.0}) {
    const double at = Folded(tick);
    if (at < loss.low || at > loss.high) continue;
    absl::StrAppend(
        &svg,
        SvgLine(kLeft, loss.At(at), kWidth - kRight, loss.At(at), tick == 0 ? "zero" : "grid"),
        Label(kLeft - 8, loss.At(at) + 4, "end", absl::StrCat(tick, " %")));
  }
  absl::StrAppend(&svg,
                  Label((kLeft + kWidth) / 2, kHeight - 16, "middle",
                        "bits per element of KV, side information included"),
                  absl::StrFormat("<text transform=\"translate(18 %.0f) rotate(-90)\" "
                                  "text-anchor=\"middle\">change of perplexity</text>\n",
                                  kHeight / 2));
  return svg;
}

}  // namespace

std::string RateLossSvg(const std::string& title, std::span<const RateLossPoint> points) {
  const SvgAxis bits = BitsAxis(points), loss = LossAxis(points);
  std::string path, marks;
  for (const RateLossPoint& point : points) {
    const double x = bits.At(std::log(point.bits_per_element));
    const double y = loss.At(Folded(100 * point.loss));
    absl::StrAppendFormat(&path, "%s%.1f,%.1f", path.empty() ? "" : " ", x, y);
    absl::StrAppend(&marks,
                    SvgLine(x, loss.At(Folded(100 * (point.loss - point.loss_se))), x,
                            loss.At(Folded(100 * (point.loss + point.loss_se))), "error"),
                    absl::StrFormat("<circle cx=\"%.1f\" cy=\"%.1f\" r=\"4\"/>\n", x, y),
                    Label(x + 8, y - 8, "start", point.name));
  }
  return absl::StrCat(
      absl::StrFormat("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" height=\"%.0f\" "
                      "viewBox=\"0 0 %.0f %.0f\">\n",
                      kWidth, kHeight, kWidth, kHeight),
      "<style>text{font:13px sans-serif;fill:#222}line.grid{stroke:#ddd}line.zero{stroke:#888}"
      "line.error{stroke:#1f6fb4;stroke-width:1.5}circle{fill:#1f6fb4}"
      "polyline{fill:none;stroke:#1f6fb4;stroke-opacity:.5}</style>\n"
      "<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n",
      Frame(title, bits, loss), "<polyline points=\"", path, "\"/>\n", marks, "</svg>\n");
}

}  // namespace tandem::cli
