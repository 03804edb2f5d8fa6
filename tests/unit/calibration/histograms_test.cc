// Predicted counts of integers against counting.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <random>

#include "workers/calibration/component_histograms.h"

namespace tandem::workers {
namespace {

IntegerCounts Counted(const Eigen::MatrixXf& columns, Eigen::Index row, double step) {
  IntegerCounts counts{};
  for (Eigen::Index t = 0; t < columns.cols(); ++t) {
    const double x = columns(row, t) / step;
    const int magnitude = static_cast<int>(std::floor(std::abs(x) + 0.4));
    ++counts[static_cast<size_t>((x < 0 ? -magnitude : magnitude) + kMaxInteger)];
  }
  return counts;
}

Eigen::MatrixXf Samples() {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  Eigen::MatrixXf columns(2, 20000);
  for (Eigen::Index t = 0; t < columns.cols(); ++t) {
    columns(0, t) = 5 * normal(random);
    columns(1, t) = 0.3f * normal(random) * normal(random);
  }
  return columns;
}

TEST(ComponentHistogramsTest, PredictWhatRoundingGives) {
  const Eigen::MatrixXf columns = Samples();
  ComponentHistograms histograms(Eigen::Vector2d(5, 0.3));
  histograms.Add(columns.leftCols(5000));
  histograms.Add(columns.rightCols(15000));
  for (const double step : {0.05, 0.4, 1.0, 3.0}) {
    double bits = 0;
    for (const Eigen::Index j : {0, 1}) {
      if (j == 0 && step < 0.2) continue;  // beyond kMaxInteger
      const IntegerCounts predicted = histograms.CountsAt(static_cast<size_t>(j), step);
      const IntegerCounts counted = Counted(columns, j, step);
      EXPECT_NEAR(std::accumulate(predicted.begin(), predicted.end(), 0.0), 20000, 1);
      EXPECT_NEAR(EntropyBits(predicted), EntropyBits(counted), 0.02) << j << " at " << step;
      EXPECT_NEAR(predicted[kMaxInteger], counted[kMaxInteger], 200) << j << " at " << step;
      bits += EntropyBits(counted);
    }
    if (step > 0.2) {
      EXPECT_NEAR(histograms.BitsAt(step), bits, 0.03);
    }
  }
}

TEST(ComponentHistogramsTest, TinyStepsAreAllBeyondTheCounts) {
  ComponentHistograms histograms(Eigen::Vector2d(5, 0.3));
  histograms.Add(Samples());
  const IntegerCounts counts = histograms.CountsAt(0, 1e-12);
  EXPECT_GT(counts.front() + counts.back(), 0.9 * 20000);
}

TEST(ComponentHistogramsTest, AreReadAsWritten) {
  ComponentHistograms histograms(Eigen::Vector2d(5, 0.3));
  histograms.Add(Samples());
  std::vector<uint8_t> bytes;
  kvstore::codec::ByteWriter out(bytes);
  histograms.Write(out);
  kvstore::codec::ByteReader in(bytes);
  const ComponentHistograms read = ComponentHistograms::Read(in);
  EXPECT_TRUE(in.done());
  EXPECT_EQ(read.CountsAt(1, 0.5), histograms.CountsAt(1, 0.5));
  kvstore::codec::ByteReader half({bytes.data(), bytes.size() / 2});
  ComponentHistograms::Read(half);
  EXPECT_FALSE(half.ok());
}

TEST(EntropyBitsTest, OfKnownCounts) {
  IntegerCounts counts{};
  EXPECT_EQ(EntropyBits(counts), 0);
  counts[5] = 10;
  EXPECT_NEAR(EntropyBits(counts), 0, 1e-9);
  counts[6] = counts[7] = counts[8] = 10;
  EXPECT_NEAR(EntropyBits(counts), 2, 1e-6);
}

}  // namespace
}  // namespace tandem::workers
