#include "workers/calibration/text_statistics.h"

#include <algorithm>
#include <cmath>

#include "base/status.h"
#include "kvstore/codec/lossy.h"
#include "workers/calibration/transform_design.h"

namespace tandem::workers {
namespace {

using kvstore::KvChunk;
using kvstore::codec::Block;
using kvstore::codec::BlockLayout;
using kvstore::codec::ByteReader;
using kvstore::codec::ByteWriter;
using kvstore::codec::ChunkAnalyser;
using kvstore::codec::Level;
using kvstore::codec::Prediction;
using kvstore::codec::Profile;

/// Attention sinks are unlike all other tokens; levels keep them exact or pay for them.
constexpr uint32_t kLeftOutTokens = 4;
/// Of a block's bits; less is not worth a slower decoder.
constexpr double kWorthPredicting = 0.01;

/// Which tokens do not count: those before position `first_used`, and those that are not finite.
std::vector<uint8_t> Skipped(std::span<const float> values, const ChunkAnalyser& analyser,
                             const KvChunk& chunk, uint32_t first_used) {
  std::vector<uint8_t> skip(chunk.n_tokens);
  for (uint32_t t = 0; t < chunk.n_tokens; ++t) skip[t] = chunk.first_position + t < first_used;
  for (size_t row = 0; row < values.size(); row += analyser.stride()) {
    for (uint32_t t = 0; t < chunk.n_tokens; ++t) skip[t] |= !std::isfinite(values[row + t]);
  }
  return skip;
}

/// Sums over whole windows, with how many these are, as bytes.
template <typename Sums>
std::vector<uint8_t> WriteSums(uint32_t windows, const std::vector<std::vector<Sums>>& planes) {
  std::vector<uint8_t> record;
  record.reserve(1 << 20);  // also keeps g++ 12 from a false warning
  ByteWriter out(record);
  out.Write(windows);
  for (const auto& blocks : planes) {
    for (const Sums& sums : blocks) sums.Write(out);
  }
  return record;
}

/// Replaces `planes`, whose shape is known, by what was written; returns the number of windows.
template <typename Sums>
uint32_t ReadSums(const std::vector<uint8_t>* record, std::vector<std::vector<Sums>>& planes) {
  if (record == nullptr) return 0;
  ByteReader in(*record);
  const uint32_t windows = in.Read<uint32_t>();
  auto read = planes;
  for (auto& blocks : read) {
    for (Sums& sums : blocks) sums = Sums::Read(in);
  }
  if (!in.done()) return 0;
  planes = std::move(read);
  return windows;
}

void Count(std::span<const int16_t> integers, std::span<const uint32_t> from,
           IntegerCounts& counts) {
  for (size_t t = 0; t < from.size(); ++t) {
    const int value = from[t] == t ? integers[t] : integers[t] - integers[from[t]];
    ++counts[static_cast<size_t>(std::clamp(value, -kMaxInteger, kMaxInteger) + kMaxInteger)];
  }
}

/// The token that each token is predicted from.
std::vector<uint32_t> Sources(Prediction prediction, uint32_t n_tokens) {
  std::vector<uint32_t> from(n_tokens);
  for (uint32_t t = 0; t < n_tokens; ++t) from[t] = kvstore::codec::PredictedFrom(prediction, t);
  return from;
}

/// A block's counts with each prediction.
struct Alternatives {
  std::array<BlockCounts, 3> counts = {
      {{Prediction::kNone, {}}, {Prediction::kPrevious, {}}, {Prediction::kAnchor, {}}}};

  const BlockCounts& Best() const {
    const BlockCounts* best = &counts[0];
    double fewest = Bits(counts[0]) * (1 - kWorthPredicting);
    for (const BlockCounts& other : counts) {
      if (other.prediction != Prediction::kNone && Bits(other) < fewest) {
        fewest = Bits(other);
        best = &other;
      }
    }
    return *best;
  }

 private:
  static double Bits(const BlockCounts& counts) {
    double bits = 0;
    for (const IntegerCounts& component : counts.components) bits += EntropyBits(component);
    return bits;
  }
};

}  // namespace

absl::StatusOr<ChunkAnalyser> TextStatistics::NewAnalyser(
    std::shared_ptr<const Profile> profile) const {
  return ChunkAnalyser::Create(replayer_.layout(), geometry_,
                               replayer_.engine().model().fingerprint(), std::move(profile));
}

absl::Status TextStatistics::ForChunks(std::string_view stage, ChunkAnalyser& analyser,
                                       uint32_t& done,
                                       const std::function<void(const KvChunk&)>& visit) {
  if (!meter_(stage, done)) return absl::CancelledError("interrupted");
  for (; done < replayer_.n_windows(); ++done) {
    if (!meter_(stage, 1)) return absl::CancelledError("interrupted");
    RETURN_IF_ERROR(replayer_.LoadWindow(done));
    for (const KvChunk& chunk : replayer_.chunks()) {
      analyser.Open(chunk);
      visit(chunk);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<BlockMoments> TextStatistics::MeasureMoments() {
  ASSIGN_OR_RETURN(ChunkAnalyser analyser, NewAnalyser(nullptr));
  BlockMoments moments;
  for (const auto& plane : analyser.planes()) {
    moments.emplace_back(BlockLayout(plane.n_heads, plane.head_dim).size());
  }
  uint32_t done = ReadSums(journal_.Find("moments"), moments);
  const absl::Status status = ForChunks("statistics", analyser, done, [&](const KvChunk& chunk) {
    for (size_t p = 0; p < moments.size(); ++p) {
      const auto layout = BlockLayout(analyser.planes()[p].n_heads, analyser.planes()[p].head_dim);
      for (size_t b = 0; b < layout.size(); ++b) {
        const auto values = analyser.Values(p, layout[b].first, layout[b].second);
        const auto skip = Skipped(values, analyser, chunk, kLeftOutTokens);
        moments[p][b].Add(UsedColumns(values, layout[b].second, analyser.stride(), skip));
      }
    }
  });
  RETURN_IF_ERROR(journal_.Put("moments", WriteSums(done, moments)));
  RETURN_IF_ERROR(status);
  for (const auto& blocks : moments) {
    for (const Moments& block : blocks) {
      if (block.count() == 0) return absl::FailedPreconditionError("the model's KV is not finite");
    }
  }
  return moments;
}

absl::StatusOr<BlockHistograms> TextStatistics::MeasureHistograms(
    const std::vector<std::vector<Block>>& blocks, const BlockMoments& moments) {
  ASSIGN_OR_RETURN(ChunkAnalyser analyser, NewAnalyser(nullptr));
  BlockHistograms histograms;
  std::vector<std::vector<Eigen::MatrixXf>> forward;
  std::vector<std::vector<Eigen::VectorXf>> means;
  for (size_t p = 0; p < blocks.size(); ++p) {
    histograms.emplace_back();
    forward.emplace_back();
    means.emplace_back();
    for (size_t b = 0; b < blocks[p].size(); ++b) {
      const Eigen::MatrixXd matrix = ForwardMatrix(blocks[p][b]);
      const Eigen::MatrixXd covariance = matrix * moments[p][b].Covariance() * matrix.transpose();
      histograms[p].emplace_back(covariance.diagonal().cwiseMax(0).cwiseSqrt());
      forward[p].push_back(matrix.cast<float>());
      means[p].push_back(Eigen::Map<const Eigen::VectorXf>(
          blocks[p][b].mean.data(), static_cast<Eigen::Index>(blocks[p][b].mean.size())));
    }
  }
  uint32_t done = ReadSums(journal_.Find("histograms"), histograms);
  const absl::Status status = ForChunks("distributions", analyser, done, [&](const KvChunk& chunk) {
    for (size_t p = 0; p < blocks.size(); ++p) {
      for (size_t b = 0; b < blocks[p].size(); ++b) {
        const Block& block = blocks[p][b];
        const auto values = analyser.Values(p, block.first_channel, block.n_channels);
        const auto skip = Skipped(values, analyser, chunk, kLeftOutTokens);
        const auto columns = UsedColumns(values, block.n_channels, analyser.stride(), skip);
        histograms[p][b].Add(forward[p][b] * (columns.colwise() - means[p][b]));
      }
    }
  });
  RETURN_IF_ERROR(journal_.Put("histograms", WriteSums(done, histograms)));
  RETURN_IF_ERROR(status);
  return histograms;
}

absl::StatusOr<std::vector<LevelCounts>> TextStatistics::CountIntegers(
    std::shared_ptr<const Profile> profile, std::optional<Prediction> prediction) {
  ASSIGN_OR_RETURN(ChunkAnalyser analyser, NewAnalyser(profile));
  // [level][plane][block].
  std::vector<std::vector<std::vector<Alternatives>>> alternatives(kvstore::codec::kLossyLevels);
  for (auto& level : alternatives) {
    for (const auto& blocks : profile->planes) level.emplace_back(blocks.size());
  }
  uint32_t done = 0;
  RETURN_IF_ERROR(ForChunks("symbols", analyser, done, [&](const KvChunk& chunk) {
    std::array<std::vector<uint32_t>, 3> sources;
    for (size_t i = 0; i < sources.size(); ++i) {
      sources[i] = Sources(static_cast<Prediction>(i), chunk.n_tokens);
    }
    for (size_t p = 0; p < profile->planes.size(); ++p) {
      for (size_t b = 0; b < profile->planes[p].size(); ++b) {
        const Block& block = profile->planes[p][b];
        const auto values = analyser.Values(p, block.first_channel, block.n_channels);
        const auto skip = Skipped(values, analyser, chunk, profile->sink_tokens);
        for (size_t l = 0; l < alternatives.size(); ++l) {
          const auto integers = analyser.Integers(static_cast<Level>(l + 1), p, b, skip);
          const size_t n = profile->levels[l]->planes[p].blocks[b].tables.size();
          for (size_t i = 0; i < sources.size(); ++i) {
            auto& components = alternatives[l][p][b].counts[i].components;
            components.resize(n, IntegerCounts{});
            for (size_t j = 0; j < n; ++j) {
              Count(integers.subspan(j * analyser.stride()), sources[i], components[j]);
            }
          }
        }
      }
    }
  }));
  std::vector<LevelCounts> levels(alternatives.size());
  for (size_t l = 0; l < levels.size(); ++l) {
    for (size_t p = 0; p < alternatives[l].size(); ++p) {
      levels[l].steps.push_back(profile->levels[l]->planes[p].step);
      auto& blocks = levels[l].blocks.emplace_back();
      for (const Alternatives& block : alternatives[l][p]) {
        blocks.push_back(prediction ? block.counts[static_cast<size_t>(*prediction)]
                                    : block.Best());
      }
    }
  }
  return levels;
}

}  // namespace tandem::workers
