// Mean and covariance of a block's channels over text: what its transform is designed from. For the
// profile builder.
#pragma once

#include <Eigen/Core>
#include <cstdint>
#include <span>
#include <vector>

#include "kvstore/codec/byte_io.h"

namespace tandem::workers {

/// Copies the columns t of `values` (n_channels rows of `stride`) for which skip[t] == 0.
Eigen::MatrixXf UsedColumns(std::span<const float> values, size_t n_channels, size_t stride,
                            std::span<const uint8_t> skip);

/// Sums over tokens. Single precision within a chunk, around the first chunk's mean, because keys
/// have means far larger than their spread; double precision over chunks. Not thread-safe.
class Moments {
 public:
  /// Adds tokens, a column each. REQUIRES: always the same number of rows, finite values.
  void Add(const Eigen::MatrixXf& columns);

  double count() const { return count_; }
  /// REQUIRES: count() > 0.
  Eigen::VectorXd Mean() const;
  Eigen::MatrixXd Covariance() const;

  void Write(kvstore::codec::ByteWriter& out) const;
  /// REQUIRES: written by Write; otherwise the reader's ok() is false.
  static Moments Read(kvstore::codec::ByteReader& in);

 private:
  double count_ = 0;
  Eigen::VectorXf shift_;
  Eigen::VectorXd sums_;      // of value - shift
  Eigen::MatrixXd products_;  // of the same; the lower triangle
};

}  // namespace tandem::workers
