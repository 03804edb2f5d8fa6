// What the two x86 tables of kernels share: the functions that wider vectors do not make faster.
// For transform_avx2.cc, which has them, and transform_avx512.cc. See TransformKernels.
#pragma once

#include "kvstore/codec/transform.h"

namespace tandem::kvstore::codec::avx2 {

void Rotate(const TileRotation& rotation, float* values);
void Unrotate(const TileRotation& rotation, float* values);
void Store(const float* values, uint32_t n_channels, const TilePlace& place, uint8_t* base);
void Load(float* values, uint32_t n_channels, const TilePlace& place, const uint8_t* base);

}  // namespace tandem::kvstore::codec::avx2
