// What rans.cc and its kernels (one file an instruction set) share: plain state and function
// pointers. Nothing here may be an inline function: the files are compiled for different CPUs.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kvstore/codec/cpu.h"
#include "kvstore/codec/rans_tables.h"

namespace tandem::kvstore::codec {

constexpr size_t kRansLanes = 32;
/// States are kRansLow … 2^31 - 1 between groups: so the sign of x - kRansLow tells who needs a
/// word.
constexpr uint32_t kRansLow = 1u << 15;
constexpr int kRansStateBits = 31;
/// A decode kernel touches no more than this from where a group's words begin.
constexpr size_t kGroupBytes = 2 * kRansLanes;

constexpr size_t kRansMaxSets = 2;

struct alignas(64) DecodeState {
  uint32_t x[kRansMaxSets][kRansLanes];
  size_t set_mask;       // group g belongs to set g & set_mask
  const uint8_t* next;   // the next word
  const uint8_t* limit;  // no group may begin after this: kGroupBytes are readable there
};

struct alignas(64) EncodeState {
  uint32_t x[kRansMaxSets][kRansLanes];
  size_t set_mask;
  uint8_t* next;  // where the stream that is written backwards begins so far
};

/// Decodes groups `begin` … end-1 of a run, 32 symbols each, group g to out + 32 g; stops where
/// `next` is past `limit`. Returns the first group that is not done.
using DecodeKernel = size_t (*)(DecodeState& state, const DecodeTable& table, uint8_t* out,
                                size_t begin, size_t end);
/// Encodes groups end-1 … `begin`, in this order. REQUIRES: kGroupBytes for each before state.next.
using EncodeKernel = void (*)(EncodeState& state, const EncodeTable& table, const uint8_t* symbols,
                              size_t begin, size_t end);

/// One kernel for each slot order but kSingle, whose symbols need none.
struct RansKernels {
  DecodeKernel decode_alias16, decode_alias32, decode_plain;
  EncodeKernel encode_alias16, encode_alias32, encode_plain;
};

extern const RansKernels kRansScalar;
#if defined(__x86_64__)
extern const RansKernels kRansAvx2;
extern const RansKernels kRansAvx512;
#elif defined(__aarch64__)
extern const RansKernels kRansNeon;
#endif

/// Byte shuffles by the set of lanes (a bit each of 8) that get or give a word.
struct alignas(64) RansShuffles {
  /// What brings words that lie together to the low halves of the lanes; then what moves the
  /// lanes' own low halves up. Both leave zeros for each other, and the other lanes as they are.
  uint8_t refill[256][2][32];
  /// What brings words of the lanes (8 of 16 bits) together, at the end of 16 bytes.
  uint8_t compact[256][16];
};
extern const RansShuffles kRansShuffles;

}  // namespace tandem::kvstore::codec
