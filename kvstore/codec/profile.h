// What the codec knows of one model: how its K and V are turned into independent components, how
// coarsely these are quantised at each level, how often each symbol occurs, and what that costs.
// Made by `tandem kv profile`, read by every worker that encodes or decodes lossy chunks. The
// file's format is specified in docs/kv-bitstream.md.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kvstore/codec/geometry.h"
#include "kvstore/codec/level.h"
#include "kvstore/codec/rans_tables.h"

namespace tandem::kvstore::codec {

/// Channels that are transformed together, at most. Whole heads where they fit.
inline constexpr uint32_t kMaxBlockChannels = 256;
/// Entries of Block::basis lie within ± this: then a vector unit can add up products of bytes in
/// 16 bits (two products of an 8-bit symbol, or sixteen of a 5-bit one) without overflow.
inline constexpr int kMaxBasis = 63;
/// Probability resolution of the symbol tables.
inline constexpr int kSymbolBits = 12;
/// Symbol tables of a profile, at most.
inline constexpr size_t kMaxTables = 256;

/// A table of the library. Symbol s stands for the value lowest + s, but the last symbol, the
/// escape, whose value stands elsewhere in the stream.
struct SymbolTable {
  int16_t lowest = 0;
  FrequencyTable frequencies;

  size_t escape() const { return frequencies.size() - 1; }
};

/// A linear transform of consecutive channels of one plane: value of channel c = mean[c] +
/// scale[c] × step × Σ_j basis[c][j] × component[j]; the components are integers, nearly
/// independent, the strongest first. Keys are unrotated (see Rope).
struct Block {
  uint32_t first_channel = 0;
  uint32_t n_channels = 0;
  /// One a channel.
  std::vector<float> mean, scale;
  /// n_channels × n_channels, a row a channel, within ± kMaxBasis.
  std::vector<int8_t> basis;
  bool operator==(const Block&) const = default;
};

/// What a component's integers are compared with before they are coded, per block.
enum class Prediction : uint8_t {
  kNone = 0,
  /// The token before, in the same chunk.
  kPrevious = 1,
  /// The first token of each group of ten, which itself is coded as it is (CacheGen, §5.2).
  kAnchor = 2,
};

/// How a block is coded at one level. Components beyond tables.size() are zero and not coded.
struct BlockCoding {
  Prediction prediction = Prediction::kNone;
  /// Index of each coded component's table in the library.
  std::vector<uint8_t> tables;
  bool operator==(const BlockCoding&) const = default;
};

struct PlaneCoding {
  /// Multiplies Block::scale. REQUIRES: finite, > 0.
  float step = 0;
  /// One a block of the plane.
  std::vector<BlockCoding> blocks;
  bool operator==(const PlaneCoding&) const = default;
};

/// What a level cost when the profile was made, by teacher forcing on text after the coded context.
struct Measurement {
  /// Encoded bits by elements of KV, all side information counted.
  float bits_per_element = 0;
  /// Fraction, e.g. 0.001, and its standard error.
  float perplexity_change = 0, perplexity_change_se = 0;
  /// Of the next-token distribution from the unchanged one, nats.
  float kl_divergence = 0;
  /// Share of tokens whose likeliest successor is the same.
  float top1_agreement = 0;
  bool operator==(const Measurement&) const = default;
};

struct LevelProfile {
  /// In the order of KvLayout::planes: K of every layer, then V of every layer.
  std::vector<PlaneCoding> planes;
  Measurement measured;
  bool operator==(const LevelProfile&) const = default;
};

struct Profile {
  /// SHA-256 of the model's file, 32 raw bytes: a profile belongs to one model.
  std::string model_fingerprint;
  KvGeometry geometry;
  /// Tokens at the start of a context that are kept exact.
  uint32_t sink_tokens = 0;
  /// By plane: blocks, which cover the channels in order.
  std::vector<std::vector<Block>> planes;
  std::vector<SymbolTable> tables;
  /// q1 … q4; a level that could not be measured is absent.
  std::array<std::optional<LevelProfile>, kLossyLevels> levels;

  /// Names this profile in chunks: the hash of its serialised form. Set by ParseProfile; 0 before.
  uint64_t id = 0;
};

/// The layout of blocks for a plane: as many whole heads as fit 128 channels, at least one; a head
/// of more than kMaxBlockChannels is cut every 128 channels. Pairs {first channel, channels}.
std::vector<std::pair<uint32_t, uint32_t>> BlockLayout(uint32_t n_heads, uint32_t head_dim);

/// The file's bytes.
std::string SerializeProfile(const Profile& profile);

/// Reads a file, which may be anything. DATA_LOSS when it is damaged, INVALID_ARGUMENT with the
/// reason when it is no profile or contradicts itself, FAILED_PRECONDITION for another version.
absl::StatusOr<Profile> ParseProfile(std::span<const uint8_t> bytes);

}  // namespace tandem::kvstore::codec
