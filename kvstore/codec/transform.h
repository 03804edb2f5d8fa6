// The arithmetic between symbols and values, on tiles of 16 tokens: transform, rotation, rounding,
// conversion. One table of functions for each instruction set; all of them give the same bits: sums
// are integers, and floating-point operations are single IEEE operations in the order written in
// transform_scalar.cc, never fused. Used by the lossy coder. Plain structs and pointers only: the
// files are compiled for different CPUs. Thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kvstore/codec/cpu.h"

namespace tandem::kvstore::codec {

/// Tokens of a tile. A tile is float values[n_channels][kTileTokens], 64-byte aligned.
inline constexpr size_t kTileTokens = 16;
/// Channels of a tile, and components of a block, at most.
inline constexpr uint32_t kMaxTileChannels = 256;
/// Symbols of a table below this are "narrow": sixteen products with a basis entry fit 16 bits.
inline constexpr uint32_t kNarrowSymbols = 32;

/// A block's transform from symbols to values, as one level codes it.
struct InverseBlock {
  uint32_t n_channels = 0;
  /// Coded components in fours, the last four filled up with components that the basis lacks
  /// (zero entries). The symbols of the first n_wide_quads may be up to 255, the others below
  /// kNarrowSymbols.
  uint32_t n_quads = 0, n_wide_quads = 0;
  /// [n_channels][basis_stride]; basis_stride >= 4 × n_quads, entries within ± kMaxBasis.
  const int8_t* basis = nullptr;
  size_t basis_stride = 0;
  /// [n_channels]: what each sum begins with, Σ_j basis[c][j] × lowest value of component j.
  const int32_t* bias = nullptr;
  /// [n_channels].
  const float* scale = nullptr;
  const float* mean = nullptr;
};

/// A block's transform from values to integers.
struct ForwardBlock {
  /// n_channels is even or padded with channels of zero weight (then values has them as well).
  uint32_t n_channels = 0, n_components = 0;
  /// [n_channels]: fixed point = round((value - mean) × to_fixed), limited to ± 32767.
  const float* mean = nullptr;
  const float* to_fixed = nullptr;
  /// [n_components][n_channels]; Σ_c |weight| < 65536, so that sums fit 32 bits.
  const int16_t* weights = nullptr;
  /// [n_components]: from the sum to units of the step.
  const float* to_steps = nullptr;
  /// Added to the magnitude before it is cut off to an integer: 0.5 rounds to the nearest, less
  /// prefers zero.
  float rounding = 0.5f;
};

/// Keys of a block: whole heads, the first n_rot channels of each rotated in pairs.
struct TileRotation {
  bool interleaved = false;  // pairs (2i, 2i + 1), otherwise (i, i + n_rot / 2)
  uint32_t head_dim = 0, n_heads = 0, n_rot = 0;
  /// [n_rot / 2][stride]: cosines and sines of the tile's tokens, from its first. Rows that follow
  /// each other in memory (a stride of kTileTokens) are read fastest.
  const float* cosines = nullptr;
  const float* sines = nullptr;
  size_t stride = 0;
};

enum class ElementType : uint8_t { kF16, kBf16, kF32 };

/// Where a tile's elements lie outside: element (channel c, token t) at
/// base + c × channel_stride + t × token_stride, in bytes. One of the strides is the element's
/// size. `n_tokens` of the 16 exist.
struct TilePlace {
  ElementType type = ElementType::kF16;
  size_t channel_stride = 0, token_stride = 0;
  uint32_t n_tokens = 0;
};

struct TransformKernels {
  /// values[c][t] = float(bias[c] + Σ_j basis[c][j] × symbol[j][t] + correction[c][t]) × scale[c]
  /// + mean[c]. Row j of the symbols is at symbols + j × symbol_stride, for 4 × n_quads rows (what
  /// the rows beyond the coded components hold does not matter, but it must be readable).
  /// `corrections`: [n_channels][16], or null for none.
  void (*inverse)(const InverseBlock& block, const uint8_t* symbols, size_t symbol_stride,
                  const int32_t* corrections, float* values);
  /// Turns keys forwards: (a, b) -> (a cos - b sin, a sin + b cos).
  void (*rotate)(const TileRotation& rotation, float* values);
  /// Turns keys back: (a, b) -> (a cos + b sin, b cos - a sin).
  void (*unrotate)(const TileRotation& rotation, float* values);
  /// Rounds to the nearest element, ties to even, and writes n_tokens × n_channels elements.
  void (*store)(const float* values, uint32_t n_channels, const TilePlace& place, uint8_t* base);
  /// Reads; tokens that do not exist become 0.
  void (*load)(float* values, uint32_t n_channels, const TilePlace& place, const uint8_t* base);
  /// integers[j][t] = sign × trunc(|Σ_c weights[j][c] × fixed[c][t]| × to_steps[j] + rounding),
  /// limited to ± 32767. REQUIRES: values are finite.
  void (*forward)(const ForwardBlock& block, const float* values, int16_t* integers);
};

/// REQUIRES: `isa` is one of SupportedIsas().
const TransformKernels& KernelsFor(Isa isa);

extern const TransformKernels kTransformScalar;
#if defined(__x86_64__)
extern const TransformKernels kTransformAvx2;
extern const TransformKernels kTransformAvx512;
#elif defined(__aarch64__)
extern const TransformKernels kTransformNeon;
#endif

}  // namespace tandem::kvstore::codec
