// 16-bit floating point to and from 32 bits, in portable integer arithmetic: what the vector
// units' conversions are compared with, and what is used where there are none.
#pragma once

#include <cstdint>

namespace tandem::kvstore::codec {

/// Exact. NaNs become quiet and keep their payload, as in hardware.
float HalfToFloat(uint16_t half);
/// To the nearest, ties to even; too large becomes infinite; NaNs keep the upper bits of their
/// payload.
uint16_t FloatToHalf(float value);
/// Exact.
float Bf16ToFloat(uint16_t bf16);
/// To the nearest, ties to even.
uint16_t FloatToBf16(float value);

}  // namespace tandem::kvstore::codec
