#include "workers/calibration/moments.h"

namespace tandem::workers {

Eigen::MatrixXf UsedColumns(std::span<const float> values, size_t n_channels, size_t stride,
                            std::span<const uint8_t> skip) {
  using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const Eigen::Map<const RowMajor> all(values.data(), static_cast<Eigen::Index>(n_channels),
                                       static_cast<Eigen::Index>(stride));
  std::vector<Eigen::Index> used;
  for (size_t t = 0; t < skip.size(); ++t) {
    if (skip[t] == 0) used.push_back(static_cast<Eigen::Index>(t));
  }
  return all(Eigen::all, used);
}

void Moments::Add(const Eigen::MatrixXf& columns) {
  if (columns.cols() == 0) return;
  const Eigen::Index n = columns.rows();
  if (count_ == 0) {
    shift_ = columns.rowwise().mean();
    sums_ = Eigen::VectorXd::Zero(n);
    products_ = Eigen::MatrixXd::Zero(n, n);
  }
  const Eigen::MatrixXf centred = columns.colwise() - shift_;
  Eigen::MatrixXf products = Eigen::MatrixXf::Zero(n, n);
  products.selfadjointView<Eigen::Lower>().rankUpdate(centred);
  products_ += products.cast<double>();
  sums_ += centred.rowwise().sum().cast<double>();
  count_ += static_cast<double>(columns.cols());
}

Eigen::VectorXd Moments::Mean() const { return shift_.cast<double>() + sums_ / count_; }

Eigen::MatrixXd Moments::Covariance() const {
  const Eigen::VectorXd mean = sums_ / count_;
  const Eigen::MatrixXd full = products_.selfadjointView<Eigen::Lower>();
  return full / count_ - mean * mean.transpose();
}

void Moments::Write(kvstore::codec::ByteWriter& out) const {
  out.Write(count_);
  out.Write(static_cast<uint32_t>(shift_.size()));
  out.WriteMany(std::span(shift_.data(), static_cast<size_t>(shift_.size())));
  out.WriteMany(std::span(sums_.data(), static_cast<size_t>(sums_.size())));
  out.WriteMany(std::span(products_.data(), static_cast<size_t>(products_.size())));
}

Moments Moments::Read(kvstore::codec::ByteReader& in) {
  Moments moments;
  moments.count_ = in.Read<double>();
  const size_t n = in.Read<uint32_t>();
  const auto shift = in.ReadMany<float>(n);
  const auto sums = in.ReadMany<double>(n);
  const auto products = in.ReadMany<double>(n * n);
  if (!in.ok()) return moments;
  const auto rows = static_cast<Eigen::Index>(n);
  moments.shift_ = Eigen::Map<const Eigen::VectorXf>(shift.data(), rows);
  moments.sums_ = Eigen::Map<const Eigen::VectorXd>(sums.data(), rows);
  moments.products_ = Eigen::Map<const Eigen::MatrixXd>(products.data(), rows, rows);
  return moments;
}

}  // namespace tandem::workers
