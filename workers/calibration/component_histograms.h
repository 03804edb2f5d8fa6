// How a block's components are distributed, finely enough to tell for any step which integers occur
// how often: so that steps can be searched without another look at the text. For the profile
// builder.
#pragma once

#include <Eigen/Core>
#include <array>
#include <cstdint>
#include <vector>

#include "kvstore/codec/byte_io.h"

namespace tandem::workers {

/// Counts of the integers -kMaxInteger … kMaxInteger; the outermost also stand for all beyond.
inline constexpr int kMaxInteger = 127;
using IntegerCounts = std::array<float, 2 * kMaxInteger + 1>;

/// Bits for one integer, on average, by an ideal code for these counts.
double EntropyBits(const IntegerCounts& counts);

/// The components of one block. Not thread-safe.
class ComponentHistograms {
 public:
  ComponentHistograms() = default;
  /// `sigmas`: of each component, in units of the step 1.
  explicit ComponentHistograms(const Eigen::VectorXd& sigmas);

  /// Adds tokens, a column each, in the same units.
  void Add(const Eigen::MatrixXf& columns);

  size_t n_components() const { return sigmas_.size(); }
  /// The integers of component `j` at a step, as the encoder rounds (deadzone included); their sum
  /// is the number of tokens.
  IntegerCounts CountsAt(size_t j, double step) const;
  /// Bits a token of all components together, by ideal codes within ± kMaxInteger and escapes
  /// beyond.
  double BitsAt(double step) const;

  void Write(kvstore::codec::ByteWriter& out) const;
  /// REQUIRES: written by Write; otherwise the reader's ok() is false.
  static ComponentHistograms Read(kvstore::codec::ByteReader& in);

 private:
  /// Of one component, over ± kReach standard deviations.
  static constexpr int kBins = 512;
  static constexpr double kReach = 12;

  std::vector<float> sigmas_;
  std::vector<uint32_t> bins_;  // [component][kBins]
};

}  // namespace tandem::workers
