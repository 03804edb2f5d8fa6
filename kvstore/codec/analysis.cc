#include "kvstore/codec/analysis.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "kvstore/codec/lossy.h"

namespace tandem::kvstore::codec {

absl::StatusOr<ChunkAnalyser> ChunkAnalyser::Create(KvLayout layout, KvGeometry geometry,
                                                    const std::string& fingerprint,
                                                    std::shared_ptr<const Profile> profile) {
  ASSIGN_OR_RETURN(auto model, Prepare(std::move(layout), std::move(geometry), fingerprint,
                                       std::move(profile), BestIsa()));
  if (!model->no_lossy.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("lossy levels are impossible for this KV cache: ", model->no_lossy));
  }
  return ChunkAnalyser(std::move(model));
}

void ChunkAnalyser::Open(const KvChunk& chunk) {
  chunk_ = &chunk;
  planes_ = PlanesOf(model_->layout, chunk);
  stride_ = PaddedTokens(chunk.n_tokens);
  angles_ = model_->rotations.At(chunk.first_position, chunk.n_tokens);
  tile_.assign((kMaxBlockChannels + 1) * kTileTokens, 0.0f);
}

void ChunkAnalyser::Load(size_t plane, uint32_t first_channel, uint32_t n_channels,
                         uint32_t first) {
  LoadTile(*model_, model_->planes[plane], planes_[plane], angles_, chunk_->n_tokens, first_channel,
           n_channels, first, tile_.data());
}

std::span<const float> ChunkAnalyser::Values(size_t plane, uint32_t first_channel,
                                             uint32_t n_channels) {
  values_.resize(n_channels * stride_);
  for (uint32_t first = 0; first < chunk_->n_tokens; first += kTileTokens) {
    Load(plane, first_channel, n_channels, first);
    for (size_t c = 0; c < n_channels; ++c) {
      std::memcpy(values_.data() + c * stride_ + first, tile_.data() + c * kTileTokens,
                  kTileTokens * sizeof(float));
    }
  }
  return values_;
}

std::span<const int16_t> ChunkAnalyser::Integers(Level level, size_t plane, size_t block_index,
                                                 std::span<const uint8_t> skip) {
  const PreparedBlock& block = model_->levels[LossyIndex(level)].planes[plane][block_index];
  const size_t coded = block.tables.size(), n = block.n_channels;
  integers_.resize(coded * stride_);
  int16_t tile[kMaxBlockChannels * kTileTokens];
  for (uint32_t first = 0; first < chunk_->n_tokens; first += kTileTokens) {
    Load(plane, block.first_channel, block.n_channels, first);
    std::fill_n(tile_.data() + n * kTileTokens, kTileTokens, 0.0f);
    for (size_t t = 0; t < kTileTokens && first + t < chunk_->n_tokens; ++t) {
      if (skip[first + t] == 0) continue;
      for (size_t c = 0; c < n; ++c) tile_[c * kTileTokens + t] = block.forward_mean[c];
    }
    model_->kernels->forward(block.forward, tile_.data(), tile);
    for (size_t j = 0; j < coded; ++j) {
      std::memcpy(integers_.data() + j * stride_ + first, tile + j * kTileTokens,
                  sizeof(tile[0]) * kTileTokens);
    }
  }
  return integers_;
}

}  // namespace tandem::kvstore::codec
