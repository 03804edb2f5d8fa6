// What making a profile must see of the codec: a block's values as the transform gets them, and the
// integers that the encoder makes of them. For workers/calibration.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kvstore/codec/aligned.h"
#include "kvstore/codec/prepared.h"
#include "kvstore/codec/rotation.h"

namespace tandem::kvstore::codec {

/// Looks into one chunk after the other. Not thread-safe.
class ChunkAnalyser {
 public:
  /// `profile` may be null; then there are values only. FAILED_PRECONDITION when lossy levels are
  /// impossible for this layout; errors of Codec::Create.
  static absl::StatusOr<ChunkAnalyser> Create(KvLayout layout, KvGeometry geometry,
                                              const std::string& fingerprint,
                                              std::shared_ptr<const Profile> profile);

  /// Planes of the layout: heads and their widths.
  const std::vector<PlaneInfo>& planes() const { return model_->planes; }

  /// Looks at `chunk` from here on; it must outlive that. REQUIRES: it has the layout's size.
  void Open(const KvChunk& chunk);
  uint32_t n_tokens() const { return chunk_->n_tokens; }
  /// From one row of Values or Integers to the next: n_tokens rounded up.
  size_t stride() const { return stride_; }

  /// Channels of a plane, keys unrotated: [n_channels][stride()]. Valid until the next call.
  /// REQUIRES: they are a block of BlockLayout.
  std::span<const float> Values(size_t plane, uint32_t first_channel, uint32_t n_channels);

  /// The integers of a block's coded components at `level`, before prediction:
  /// [components][stride()]. Tokens with skip[t] != 0 count as average, as exact ones do in the
  /// encoder. Valid until the next call. REQUIRES: the profile has the level; skip.size() ==
  /// n_tokens(), and is set for tokens that are not finite.
  std::span<const int16_t> Integers(Level level, size_t plane, size_t block,
                                    std::span<const uint8_t> skip);

 private:
  explicit ChunkAnalyser(std::shared_ptr<const PreparedModel> model) : model_(std::move(model)) {}
  /// Fills tile_ with the tokens from `first`.
  void Load(size_t plane, uint32_t first_channel, uint32_t n_channels, uint32_t first);

  std::shared_ptr<const PreparedModel> model_;
  const KvChunk* chunk_ = nullptr;
  std::vector<std::span<const uint8_t>> planes_;  // of chunk_
  size_t stride_ = 0;
  ChunkAngles angles_;
  AlignedVector<float> tile_, values_;
  AlignedVector<int16_t> integers_;
};

}  // namespace tandem::kvstore::codec
