// Puts a profile together from steps and from how often each integer occurs. For the profile
// builder.
#pragma once

#include <span>
#include <vector>

#include "kvstore/codec/profile.h"
#include "workers/calibration/component_histograms.h"

namespace tandem::workers {

/// What a level's coding of one block is made from: the integers' counts, of the coded components
/// only, as they are after prediction.
struct BlockCounts {
  kvstore::codec::Prediction prediction = kvstore::codec::Prediction::kNone;
  std::vector<IntegerCounts> components;
};
struct LevelCounts {
  /// A plane each.
  std::vector<double> steps;
  /// [plane][block].
  std::vector<std::vector<BlockCounts>> blocks;
};

/// The counts that histograms predict for these steps; components that (nearly) always become 0
/// are left out. REQUIRES: a step a plane.
LevelCounts PredictCounts(std::span<const std::vector<ComponentHistograms>> planes,
                          std::vector<double> steps);

/// `base` (model, geometry, sinks, blocks) with levels q1 … for `levels`, and the tables that all
/// of them share, at most `max_tables`. Its id is set. REQUIRES: 1 … kLossyLevels levels of base's
/// shape; max_tables as BuildTables.
kvstore::codec::Profile Assemble(const kvstore::codec::Profile& base,
                                 std::span<const LevelCounts> levels, size_t max_tables);

}  // namespace tandem::workers
