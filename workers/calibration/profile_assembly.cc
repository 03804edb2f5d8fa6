#include "workers/calibration/profile_assembly.h"

#include <numeric>

#include "workers/calibration/table_library.h"

namespace tandem::workers {
namespace {

using kvstore::codec::Profile;

/// Share of values that are not 0, below which a component is not worth its bits and its time.
constexpr float kCodedShare = 0.01f;

bool WorthCoding(const IntegerCounts& counts) {
  const float total = std::accumulate(counts.begin(), counts.end(), 0.0f);
  return total - counts[kMaxInteger] >= kCodedShare * total;
}

}  // namespace

LevelCounts PredictCounts(std::span<const std::vector<ComponentHistograms>> planes,
                          std::vector<double> steps) {
  LevelCounts level{.steps = std::move(steps)};
  for (size_t p = 0; p < planes.size(); ++p) {
    auto& blocks = level.blocks.emplace_back();
    for (const ComponentHistograms& histograms : planes[p]) {
      BlockCounts& block = blocks.emplace_back();
      size_t coded = 1;  // the encoder's fixed point is scaled by what is coded
      for (size_t j = 0; j < histograms.n_components(); ++j) {
        block.components.push_back(histograms.CountsAt(j, level.steps[p]));
        if (WorthCoding(block.components.back())) coded = j + 1;
      }
      block.components.resize(coded);
    }
  }
  return level;
}

Profile Assemble(const Profile& base, std::span<const LevelCounts> levels, size_t max_tables) {
  std::vector<IntegerCounts> all;
  for (const LevelCounts& level : levels) {
    for (const auto& blocks : level.blocks) {
      for (const BlockCounts& block : blocks) {
        all.insert(all.end(), block.components.begin(), block.components.end());
      }
    }
  }
  TableLibrary library = BuildTables(all, max_tables);
  Profile profile = base;
  profile.tables = std::move(library.tables);
  auto next = library.assigned.begin();
  for (size_t l = 0; l < levels.size(); ++l) {
    auto& level = profile.levels[l].emplace();
    for (size_t p = 0; p < base.planes.size(); ++p) {
      auto& plane = level.planes.emplace_back();
      plane.step = static_cast<float>(levels[l].steps[p]);
      for (const BlockCounts& block : levels[l].blocks[p]) {
        const auto end = next + static_cast<ptrdiff_t>(block.components.size());
        plane.blocks.push_back({.prediction = block.prediction, .tables = {next, end}});
        next = end;
      }
    }
  }
  // Only a profile that was read has an id; and this one must be readable.
  const std::string file = SerializeProfile(profile);
  const auto* bytes = reinterpret_cast<const uint8_t*>(file.data());
  return kvstore::codec::ParseProfile({bytes, file.size()}).value();
}

}  // namespace tandem::workers
