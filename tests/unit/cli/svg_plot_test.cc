// The plot as text: every point, its error, and nothing that XML forbids.
#include "cli/svg_plot.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace tandem::cli {
namespace {

using testing::HasSubstr;
using testing::Not;

size_t Count(const std::string& text, const std::string& part) {
  size_t n = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
  return n;
}

TEST(RateLossSvgTest, ShowsAllPoints) {
  const RateLossPoint points[] = {
      {"lossless", 13.7, 0, 0}, {"q1", 1.9, -0.0004, 0.0005}, {"q4", 0.5, 0.02, 0.002}};
  const std::string svg = RateLossSvg("a <model> & more", points);
  EXPECT_TRUE(svg.starts_with("<svg xmlns="));
  EXPECT_TRUE(svg.ends_with("</svg>\n"));
  EXPECT_EQ(Count(svg, "<circle"), 3u);
  EXPECT_EQ(Count(svg, "class=\"error\""), 3u);
  for (const auto& point : points) EXPECT_THAT(svg, HasSubstr(">" + point.name + "</text>"));
  EXPECT_THAT(svg, HasSubstr("a &lt;model&gt; &amp; more"));
  EXPECT_THAT(svg, HasSubstr(">2 %</text>"));
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
}

TEST(RateLossSvgTest, OnePointWithoutLoss) {
  const RateLossPoint points[] = {{"lossless", 16, 0, 0}};
  const std::string svg = RateLossSvg("", points);
  EXPECT_EQ(Count(svg, "<circle"), 1u);
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
}

}  // namespace
}  // namespace tandem::cli
