// The little linear algebra that loading a profile needs; making one uses Eigen
// (workers/calibration).
#pragma once

#include <cstddef>
#include <vector>

namespace tandem::kvstore::codec {

/// The inverse of a row-major n × n matrix, by Gauss-Jordan elimination with row pivots; empty when
/// the matrix is singular to working precision. About 2 n³ operations.
std::vector<double> Invert(std::vector<double> matrix, size_t n);

}  // namespace tandem::kvstore::codec
