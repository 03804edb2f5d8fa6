// A model's layout, geometry and profile, turned into what encoding and decoding look up. Built
// once by Codec::Create; immutable. For the codec's own files.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kvstore/codec/aligned.h"
#include "kvstore/codec/lossless.h"
#include "kvstore/codec/profile.h"
#include "kvstore/codec/rotation.h"
#include "kvstore/codec/transform.h"
#include "kvstore/kv_layout.h"

namespace tandem::kvstore::codec {

/// A plane of the layout: where its elements lie, and whose they are.
struct PlaneInfo {
  ByteShape shape;
  uint64_t row_bytes = 0;
  uint32_t element_bytes = 0;  // of a channel-major plane, else 0
  // Known where lossy coding is possible (PreparedModel::no_lossy).
  ElementType type = ElementType::kF16;
  uint32_t n_heads = 0, head_dim = 0, n_channels = 0;
  /// A key that must be unrotated.
  bool rotated = false;
};

/// A block as one level codes it.
struct PreparedBlock {
  uint32_t first_channel = 0, n_channels = 0, n_heads = 0;
  Prediction prediction = Prediction::kNone;
  /// By coded component: index into PreparedModel::tables.
  std::vector<uint8_t> tables;
  /// What `inverse` and `forward` point to; the basis belongs to the model.
  std::vector<int32_t> bias;
  std::vector<float> scale, forward_mean, to_fixed, to_steps;
  std::vector<int16_t> weights;
  InverseBlock inverse;
  ForwardBlock forward;
};

/// The library's tables, ready for both directions.
struct PreparedTable {
  int32_t lowest = 0;
  uint8_t escape = 0;
  /// Of the values, by their frequencies; only a profile's tables have it.
  double variance = 0;
  DecodeTable decode;
  EncodeTable encode;
};

struct PreparedLevel {
  /// [plane][block].
  std::vector<std::vector<PreparedBlock>> planes;
};

struct PreparedModel {
  KvLayout layout;
  KvGeometry geometry;
  std::shared_ptr<const Profile> profile;
  Isa isa = Isa::kScalar;
  const TransformKernels* kernels = nullptr;
  std::vector<PlaneInfo> planes;
  uint32_t n_layers = 0;
  Rotations rotations;
  std::vector<PreparedTable> tables;
  /// Block::basis with rows padded to basis_stride; [plane][block].
  std::vector<std::vector<AlignedVector<int8_t>>> bases;
  std::array<PreparedLevel, kLossyLevels> levels;

  /// Why lossy levels are impossible; empty when they are possible.
  std::string no_lossy;
};

/// Entries of a padded row of a block's basis.
inline size_t BasisStride(uint32_t n_channels) { return (n_channels + 63) / 64 * 64; }

/// See Codec::Create.
absl::StatusOr<std::shared_ptr<const PreparedModel>> Prepare(KvLayout layout, KvGeometry geometry,
                                                             const std::string& fingerprint,
                                                             std::shared_ptr<const Profile> profile,
                                                             Isa isa);

}  // namespace tandem::kvstore::codec
