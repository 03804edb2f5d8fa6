#include "workers/calibration/transform_design.h"

#include <Eigen/Eigenvalues>
#include <Eigen/LU>
#include <algorithm>
#include <cmath>

namespace tandem::workers {
namespace {

using kvstore::Rope;
using kvstore::codec::Block;

/// A channel may count as little as this beside the one that counts most, so that roots of the
/// metric stay accurate and a channel that the text never used is not lost.
constexpr double kSmallestShare = 1e-4;
constexpr double kCovarianceFloor = 1e-6;

/// The other channel of a rotated pair, or the channel itself.
uint32_t Partner(const Rope& rope, uint32_t channel) {
  if (rope.style == Rope::Style::kNone || channel >= rope.n_rot) return channel;
  if (rope.style == Rope::Style::kInterleaved) return channel ^ 1;
  const uint32_t half = rope.n_rot / 2;
  return channel < half ? channel + half : channel - half;
}

/// metric^power, with its small eigenvalues raised.
Eigen::MatrixXd Power(const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd>& solved, double power) {
  const double floor = std::max(solved.eigenvalues().maxCoeff() * kSmallestShare, 1e-30);
  const Eigen::ArrayXd raised = solved.eigenvalues().array().max(floor);
  return solved.eigenvectors() * raised.pow(power).matrix().asDiagonal() *
         solved.eigenvectors().transpose();
}

Block Quantise(const Eigen::VectorXd& mean, const Eigen::MatrixXd& matrix, uint32_t first_channel) {
  const Eigen::Index n = matrix.rows();
  Block block{.first_channel = first_channel, .n_channels = static_cast<uint32_t>(n)};
  block.basis.resize(static_cast<size_t>(n * n));
  for (Eigen::Index c = 0; c < n; ++c) {
    const double scale =
        std::max(matrix.row(c).cwiseAbs().maxCoeff() / kvstore::codec::kMaxBasis, 1e-30);
    block.mean.push_back(static_cast<float>(mean[c]));
    block.scale.push_back(static_cast<float>(scale));
    for (Eigen::Index j = 0; j < n; ++j) {
      block.basis[static_cast<size_t>(c * n + j)] =
          static_cast<int8_t>(std::lround(matrix(c, j) / scale));
    }
  }
  return block;
}

}  // namespace

Eigen::MatrixXd BlockMetric(const Sensitivity& sensitivity, const Rope& rope,
                            const kvstore::codec::PlaneInfo& plane, size_t layer, bool is_key,
                            uint32_t first_channel, uint32_t n_channels) {
  const size_t dim = plane.head_dim;
  const std::vector<float>& squares = sensitivity.k[layer];
  const std::vector<float>& grams = sensitivity.v_gram[layer];
  const auto entry = [&](size_t a, size_t b) -> double {
    if (!is_key) return a / dim == b / dim ? grams[a * dim + b % dim] : 0;
    if (a != b) return 0;
    const uint32_t in_head = static_cast<uint32_t>(a % dim);
    const size_t partner = plane.rotated ? a - in_head + Partner(rope, in_head) : a;
    return (squares[a] + squares[partner]) / 2;
  };
  double trace = 0;
  for (size_t c = 0; c < plane.n_channels; ++c) trace += entry(c, c);
  if (!(trace > 0)) return Eigen::MatrixXd::Identity(n_channels, n_channels);
  Eigen::MatrixXd metric(n_channels, n_channels);
  for (uint32_t a = 0; a < n_channels; ++a) {
    for (uint32_t b = 0; b < n_channels; ++b) {
      metric(a, b) = entry(first_channel + a, first_channel + b) * plane.n_channels / trace;
    }
  }
  return metric;
}

Block DesignBlock(const Moments& moments, const Eigen::MatrixXd& full_metric,
                  uint32_t first_channel, uint32_t mixed) {
  const Eigen::Index n = full_metric.rows();
  const auto within = [mixed](const Eigen::MatrixXd& matrix) {
    return Eigen::MatrixXd::NullaryExpr(matrix.rows(), matrix.cols(), [&](auto a, auto b) {
      return a / mixed == b / mixed ? matrix(a, b) : 0;
    });
  };
  const Eigen::MatrixXd metric = within(full_metric);
  Eigen::MatrixXd covariance = within(moments.Covariance());
  const double spread = std::max(covariance.trace() / static_cast<double>(n), 1e-30);
  covariance += kCovarianceFloor * spread * Eigen::MatrixXd::Identity(n, n);
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solved(metric);
  const Eigen::MatrixXd root = Power(solved, 0.5), inverse_root = Power(solved, -0.5);
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> components(root * covariance * root);
  // Eigen's eigenvalues ascend.
  const Eigen::MatrixXd matrix = inverse_root * components.eigenvectors().rowwise().reverse();
  return Quantise(moments.Mean(), matrix, first_channel);
}

Eigen::MatrixXd ForwardMatrix(const Block& block) {
  const Eigen::Index n = block.n_channels;
  Eigen::MatrixXd matrix(n, n);
  for (Eigen::Index c = 0; c < n; ++c) {
    const auto row = static_cast<size_t>(c);
    for (Eigen::Index j = 0; j < n; ++j) {
      matrix(c, j) =
          double{block.scale[row]} * block.basis[row * block.n_channels + static_cast<size_t>(j)];
    }
  }
  return matrix.inverse();
}

}  // namespace tandem::workers
