// Passes over a text's KV that need no scoring: the moments that transforms are designed from, the
// histograms that steps are searched with, and the integers that symbol tables are made of. For the
// profile builder.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kvstore/codec/analysis.h"
#include "workers/calibration/component_histograms.h"
#include "workers/calibration/journal.h"
#include "workers/calibration/moments.h"
#include "workers/calibration/profile_assembly.h"
#include "workers/calibration/replay.h"
#include "workers/calibration/trials.h"

namespace tandem::workers {

using BlockMoments = std::vector<std::vector<Moments>>;                 // [plane][block]
using BlockHistograms = std::vector<std::vector<ComponentHistograms>>;  // [plane][block]

/// Takes all windows of the replayer. Not thread-safe. Statistics go to the journal, also what
/// there is when the meter stops them; then the status is CANCELLED. Other errors are Replayer's
/// and the codec's.
class TextStatistics {
 public:
  /// All must outlive this object.
  TextStatistics(Replayer& replayer, const kvstore::KvGeometry& geometry, Journal& journal,
                 const WorkMeter& meter)
      : replayer_(replayer), geometry_(geometry), journal_(journal), meter_(meter) {}

  absl::StatusOr<BlockMoments> MeasureMoments();
  /// Of the components that `blocks` make of the values that `moments` are of.
  absl::StatusOr<BlockHistograms> MeasureHistograms(
      const std::vector<std::vector<kvstore::codec::Block>>& blocks, const BlockMoments& moments);
  /// Of every level of `profile`, with the prediction that saves most for each block, or with
  /// `prediction` for all. Not journalled.
  absl::StatusOr<std::vector<LevelCounts>> CountIntegers(
      std::shared_ptr<const kvstore::codec::Profile> profile,
      std::optional<kvstore::codec::Prediction> prediction);

 private:
  absl::StatusOr<kvstore::codec::ChunkAnalyser> NewAnalyser(
      std::shared_ptr<const kvstore::codec::Profile> profile) const;
  /// Calls `visit` with `analyser` open at each chunk of the windows from `first` on; `done` tells
  /// how many windows are complete when it returns, whatever the status.
  absl::Status ForChunks(std::string_view stage, kvstore::codec::ChunkAnalyser& analyser,
                         uint32_t& done, const std::function<void(const kvstore::KvChunk&)>& visit);

  Replayer& replayer_;
  const kvstore::KvGeometry& geometry_;
  Journal& journal_;
  const WorkMeter& meter_;
};

}  // namespace tandem::workers
