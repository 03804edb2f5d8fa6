// Moments against their definition, and what the designed transform must do to them.
#include "workers/calibration/transform_design.h"

#include <gtest/gtest.h>

#include <Eigen/LU>
#include <random>

namespace tandem::workers {
namespace {

using kvstore::Rope;
using kvstore::codec::Block;

/// Correlated channels with means far from 0.
Eigen::MatrixXf Samples(Eigen::Index n, Eigen::Index tokens) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  Eigen::MatrixXf mixing(n, n), columns(n, tokens);
  for (float& x : mixing.reshaped()) x = 0.2f * normal(random);
  mixing += Eigen::MatrixXf::Identity(n, n);
  for (float& x : columns.reshaped()) x = normal(random);
  return ((mixing * columns).array() + 300).matrix();
}

Moments MomentsOf(const Eigen::MatrixXf& columns) {
  Moments moments;
  moments.Add(columns.leftCols(100));
  moments.Add(columns.middleCols(100, 0));
  moments.Add(columns.rightCols(columns.cols() - 100));
  return moments;
}

TEST(MomentsTest, AreMeanAndCovariance) {
  const Eigen::MatrixXf columns = Samples(6, 1000);
  const Moments moments = MomentsOf(columns);
  EXPECT_EQ(moments.count(), 1000);
  const Eigen::MatrixXd exact = columns.cast<double>();
  const Eigen::VectorXd mean = exact.rowwise().mean();
  const Eigen::MatrixXd centred = exact.colwise() - mean;
  EXPECT_LT((moments.Mean() - mean).norm(), 1e-3);
  EXPECT_LT((moments.Covariance() - centred * centred.transpose() / 1000).norm(), 1e-2);
  std::vector<uint8_t> bytes;
  kvstore::codec::ByteWriter out(bytes);
  moments.Write(out);
  kvstore::codec::ByteReader in(bytes);
  EXPECT_EQ(Moments::Read(in).Covariance(), moments.Covariance());
  EXPECT_TRUE(in.done());
}

TEST(UsedColumnsTest, LeavesOut) {
  const float values[] = {1, 2, 3, 0, 4, 5, 6, 0};
  const uint8_t skip[] = {0, 1, 0};
  const Eigen::MatrixXf used = UsedColumns(values, 2, 4, skip);
  ASSERT_EQ(used.cols(), 2);
  EXPECT_EQ(used(0, 1), 3);
  EXPECT_EQ(used(1, 0), 4);
}

TEST(DesignBlockTest, DecorrelatesWithEqualHarm) {
  constexpr Eigen::Index kSize = 16;
  const Eigen::MatrixXf columns = Samples(kSize, 4000);
  const Moments moments = MomentsOf(columns);
  const Eigen::MatrixXf root = Samples(kSize, kSize).array() / 300 - 1;
  const Eigen::MatrixXd metric =
      (root * root.transpose()).cast<double>() + 0.1 * Eigen::MatrixXd::Identity(kSize, kSize);
  const Block block = DesignBlock(moments, metric, 32, 128);
  EXPECT_EQ(block.first_channel, 32u);
  ASSERT_EQ(block.basis.size(), size_t{kSize * kSize});
  const Eigen::MatrixXd forward = ForwardMatrix(block);
  const Eigen::MatrixXd covariance = forward * moments.Covariance() * forward.transpose();
  const Eigen::VectorXd sigmas = covariance.diagonal().cwiseSqrt();
  const Eigen::MatrixXd correlation =
      sigmas.cwiseInverse().asDiagonal() * covariance * sigmas.cwiseInverse().asDiagonal();
  // The basis has 7 bits.
  EXPECT_LT((correlation - Eigen::MatrixXd::Identity(kSize, kSize)).cwiseAbs().maxCoeff(), 0.1);
  for (Eigen::Index j = 1; j < kSize; ++j) EXPECT_LT(sigmas[j], 1.3 * sigmas[j - 1]);
  const Eigen::MatrixXd inverse = forward.inverse();
  const Eigen::MatrixXd harm = inverse.transpose() * metric * inverse;
  for (Eigen::Index j = 0; j < kSize; ++j) EXPECT_NEAR(harm(j, j), 1, 0.1);
}

TEST(BlockMetricTest, AveragesRotatedPairsAndKeepsHeadsApart) {
  const Sensitivity sensitivity{.k = {{1, 3, 5, 7, 2, 2, 2, 2}},
                                .v_gram = {{4, 1, 1, 4, 2, 0, 0, 2}}};
  const kvstore::codec::PlaneInfo keys{
      .n_heads = 2, .head_dim = 4, .n_channels = 8, .rotated = true};
  const Rope interleaved{.style = Rope::Style::kInterleaved, .n_rot = 4};
  const Eigen::MatrixXd k = BlockMetric(sensitivity, interleaved, keys, 0, true, 0, 8);
  EXPECT_NEAR(k.trace(), 8, 1e-9);
  EXPECT_NEAR(k(0, 0), k(1, 1), 1e-9);
  EXPECT_NEAR(k(2, 2) / k(0, 0), 3, 1e-9);
  EXPECT_EQ(k(0, 1), 0);
  const Rope halves{.style = Rope::Style::kHalves, .n_rot = 4};
  const Eigen::MatrixXd other = BlockMetric(sensitivity, halves, keys, 0, true, 0, 4);
  EXPECT_NEAR(other(1, 1) / other(0, 0), 5.0 / 3, 1e-9);
  EXPECT_NEAR(other(2, 2), other(0, 0), 1e-9);
  const kvstore::codec::PlaneInfo values{.n_heads = 2, .head_dim = 2, .n_channels = 4};
  const Eigen::MatrixXd v = BlockMetric(sensitivity, halves, values, 0, false, 0, 4);
  EXPECT_NEAR(v.trace(), 4, 1e-9);
  EXPECT_NEAR(v(0, 1) / v(0, 0), 0.25, 1e-9);
  EXPECT_EQ(v(1, 2), 0);
  EXPECT_NEAR(v(2, 2) / v(0, 0), 0.5, 1e-9);
}

}  // namespace
}  // namespace tandem::workers
