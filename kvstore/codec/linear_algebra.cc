#include "kvstore/codec/linear_algebra.h"

#include <algorithm>
#include <cmath>

namespace tandem::kvstore::codec {

std::vector<double> Invert(std::vector<double> matrix, size_t n) {
  constexpr double kTiny = 1e-9;
  std::vector<double> inverse(n * n, 0.0);
  for (size_t i = 0; i < n; ++i) inverse[i * n + i] = 1;
  for (size_t column = 0; column < n; ++column) {
    size_t pivot = column;
    for (size_t r = column + 1; r < n; ++r) {
      if (std::abs(matrix[r * n + column]) > std::abs(matrix[pivot * n + column])) pivot = r;
    }
    const double value = matrix[pivot * n + column];
    if (std::abs(value) < kTiny) return {};
    if (pivot != column) {
      std::swap_ranges(&matrix[pivot * n], &matrix[pivot * n] + n, &matrix[column * n]);
      std::swap_ranges(&inverse[pivot * n], &inverse[pivot * n] + n, &inverse[column * n]);
    }
    for (size_t i = 0; i < n; ++i) {
      matrix[column * n + i] /= value;
      inverse[column * n + i] /= value;
    }
    for (size_t r = 0; r < n; ++r) {
      const double factor = matrix[r * n + column];
      if (r == column || factor == 0) continue;
      for (size_t i = 0; i < n; ++i) {
        matrix[r * n + i] -= factor * matrix[column * n + i];
        inverse[r * n + i] -= factor * inverse[column * n + i];
      }
    }
  }
  return inverse;
}

}  // namespace tandem::kvstore::codec
