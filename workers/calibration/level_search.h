// Finds the steps of every plane at every level: as coarse as the level's loss allows, finer where
// an error does more harm. For the profile builder.
#pragma once

#include <array>
#include <vector>

#include "absl/status/statusor.h"
#include "workers/calibration/ablation.h"
#include "workers/calibration/profile_assembly.h"
#include "workers/calibration/step_allocation.h"
#include "workers/calibration/text_statistics.h"
#include "workers/calibration/trials.h"

namespace tandem::workers {

/// Pieces of work that a search of `n_windows` windows over `n_planes` planes takes, for the
/// progress.
uint64_t SearchWork(uint32_t n_windows, size_t n_planes);

/// Not thread-safe.
class LevelSearch {
 public:
  /// `base`: a profile without levels. All must outlive this object.
  LevelSearch(Trials& trials, const kvstore::codec::Profile& base,
              const BlockHistograms& histograms, uint32_t n_windows, const Ablation& ablation);

  /// The profile with sinks, q1 … q4, and tables as the histograms predict them. `kl_targets`:
  /// see ProfileOptions. Errors of Trials.
  absl::StatusOr<kvstore::codec::Profile> Run(
      const std::array<double, kvstore::codec::kLossyLevels>& kl_targets);

 private:
  /// A one-parameter family of ways to choose the groups' steps; the larger the coarser.
  struct Family {
    std::vector<Harm> harms;  // empty: the same step for all
    std::vector<double> StepsAt(const LevelSearch& search, double coarseness) const;
  };
  struct Point {
    double coarseness = 0, bits_per_element = 0, kl = 0;
  };

  double BitsPerElement(std::span<const double> group_steps) const;
  /// The coarseness at which the histograms predict so many bits.
  double CoarsenessFor(const Family& family, double bits_per_element) const;
  kvstore::codec::Profile ProfileOf(std::span<const std::vector<double>> levels,
                                    uint32_t sink_tokens) const;

  absl::Status MeasureHarms(Family& weighted);
  absl::Status ChooseSinks(const Family& family);
  absl::StatusOr<std::vector<Point>> MeasureFamilies(std::span<const Family> families);
  absl::StatusOr<kvstore::codec::Profile> Refine(
      const Family& family, std::span<const Point> points,
      const std::array<double, kvstore::codec::kLossyLevels>& kl_targets);

  Trials& trials_;
  const kvstore::codec::Profile& base_;
  const BlockHistograms& histograms_;
  const Ablation& ablation_;
  uint32_t sink_tokens_;
  std::vector<uint32_t> all_windows_, some_windows_, few_windows_;
  /// Planes that share a step; K and V apart.
  std::vector<std::vector<size_t>> groups_;
  std::vector<RateCurve> curves_;
  double elements_ = 0;  // of a token
};

}  // namespace tandem::workers
