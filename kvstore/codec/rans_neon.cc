// The kernels for 64-bit ARM: eight vectors of four states. Small alphabets are looked up in
// registers, 16 lanes at once, a byte each; others in memory.
#include <arm_neon.h>

#include "kvstore/codec/rans_kernels.h"

namespace tandem::kvstore::codec {
namespace {

// Half of a group: element j of vector i is lane 8 i + j, or 8 i + 4 + j in the second half, and
// has symbol 4 j + i of the half.
struct Half {
  uint32x4_t v[4];
};

Half LoadHalf(const uint32_t* x) {
  return {{vld1q_u32(x), vld1q_u32(x + 8), vld1q_u32(x + 16), vld1q_u32(x + 24)}};
}
void StoreHalf(const Half& half, uint32_t* x) {
  for (int i = 0; i < 4; ++i) vst1q_u32(x + 8 * i, half.v[i]);
}

// Bytes 0, 2, … of `even` with bytes 0, 2, … of `odd` behind them; and the same of bytes 1, 3, ….
uint8x16_t LowBytes(uint16x8_t even, uint16x8_t odd) {
  return vreinterpretq_u8_u16(vsliq_n_u16(even, odd, 8));
}
uint8x16_t HighBytes(uint16x8_t even, uint16x8_t odd) {
  return vreinterpretq_u8_u16(vsriq_n_u16(odd, even, 8));
}

// Low halves of two vectors of 32 bits, alternating.
uint16x8_t Join(uint32x4_t first, uint32x4_t second) {
  return vreinterpretq_u16_u32(vsliq_n_u32(first, second, 16));
}

// The inverse of both: 16 bits in two tables of bytes, in the order of symbols, to 32-bit vectors;
// `offset` is added to the 16 bits.
Half Widen(uint8x16_t low, uint8x16_t high, uint8x16_t offset) {
  const uint16x8_t l = vreinterpretq_u16_u8(low);
  const uint16x8_t h = vreinterpretq_u16_u8(high);
  const uint16x8_t o = vreinterpretq_u16_u8(offset);
  const uint32x4_t even =
      vreinterpretq_u32_u16(vaddq_u16(vsliq_n_u16(l, h, 8), vandq_u16(o, vdupq_n_u16(0xff))));
  const uint32x4_t odd = vreinterpretq_u32_u16(vaddq_u16(vsriq_n_u16(h, l, 8), vshrq_n_u16(o, 8)));
  const uint32x4_t mask = vdupq_n_u32(0xffff);
  return {
      {vandq_u32(even, mask), vandq_u32(odd, mask), vshrq_n_u32(even, 16), vshrq_n_u32(odd, 16)}};
}

uint8x16x2_t LoadTable(const uint8_t* bytes) { return {{vld1q_u8(bytes), vld1q_u8(bytes + 16)}}; }

struct AliasTables {
  explicit AliasTables(const DecodeTable& t)
      : divider(LoadTable(t.divider)),
        other(LoadTable(t.other)),
        base_low(LoadTable(t.base_low)),
        base_high(LoadTable(t.base_high)),
        frequency_low(LoadTable(t.frequency_low)),
        frequency_high(LoadTable(t.frequency_high)) {}
  uint8x16x2_t divider, other, base_low, base_high, frequency_low, frequency_high;
};

// Decodes half a group and moves its states on; returns the symbols.
template <bool kTwo>
uint8x16_t Step(const AliasTables& t, Half& x) {
  const uint16x8_t even = Join(x.v[0], x.v[2]);
  const uint16x8_t odd = Join(x.v[1], x.v[3]);
  const uint8x16_t low = LowBytes(even, odd);
  uint8x16_t bucket = vandq_u8(HighBytes(even, odd), vdupq_n_u8(0x0f));
  uint8x16_t offset = low;
  if constexpr (kTwo) {
    bucket = vorrq_u8(bucket, vandq_u8(vshrq_n_u8(low, 3), vdupq_n_u8(0x10)));
    offset = vandq_u8(low, vdupq_n_u8(0x7f));
  }
  const uint8x16_t in_other = vcgeq_u8(low, vqtbl2q_u8(t.divider, bucket));
  const uint8x16_t symbols = vbslq_u8(in_other, vqtbl2q_u8(t.other, bucket), bucket);
  const Half rank = Widen(vandq_u8(in_other, vqtbl2q_u8(t.base_low, bucket)),
                          vandq_u8(in_other, vqtbl2q_u8(t.base_high, bucket)), offset);
  const Half frequency = Widen(vqtbl2q_u8(t.frequency_low, symbols),
                               vqtbl2q_u8(t.frequency_high, symbols), vdupq_n_u8(0));
  for (int i = 0; i < 4; ++i) {
    x.v[i] = vmlaq_u32(rank.v[i], frequency.v[i], vshrq_n_u32(x.v[i], 12));
  }
  return symbols;
}

// The set of lanes, a bit each, of which `low` and `high` have all bits.
size_t SetOf(uint32x4_t low, uint32x4_t high) {
  static constexpr uint16_t kBits[8] = {1, 2, 4, 8, 16, 32, 64, 128};
  const uint16x8_t all = vcombine_u16(vmovn_u32(low), vmovn_u32(high));
  return vaddvq_u16(vandq_u16(all, vld1q_u16(kBits)));
}

// Takes a word for every state that is too low.
void Refill(Half& first, Half& second, const uint8_t*& next) {
  const uint32x4_t low = vdupq_n_u32(kRansLow);
  for (int i = 0; i < 4; ++i) {
    const size_t set = SetOf(vcltq_u32(first.v[i], low), vcltq_u32(second.v[i], low));
    const uint8_t* place = kRansShuffles.refill[set][0];
    const uint8_t* raise = kRansShuffles.refill[set][1];
    const uint8x16_t words = vld1q_u8(next);
    const auto refilled = [&](uint32x4_t x, int at) {
      return vreinterpretq_u32_u8(
          vorrq_u8(vqtbl1q_u8(words, vld1q_u8(place + at)),
                   vqtbl1q_u8(vreinterpretq_u8_u32(x), vld1q_u8(raise + at))));
    };
    first.v[i] = refilled(first.v[i], 0);
    second.v[i] = refilled(second.v[i], 16);
    next += 2 * __builtin_popcountll(set);
  }
}

template <bool kTwo>
size_t DecodeAlias(DecodeState& state, const DecodeTable& table, uint8_t* out, size_t begin,
                   size_t end) {
  const AliasTables tables(table);
  const uint8_t* next = state.next;
  size_t group = begin;
  for (; group < end && next <= state.limit; ++group) {
    uint32_t* states = state.x[group & state.set_mask];
    Half first = LoadHalf(states);
    Half second = LoadHalf(states + 4);
    vst1q_u8(out + group * kRansLanes, Step<kTwo>(tables, first));
    vst1q_u8(out + group * kRansLanes + 16, Step<kTwo>(tables, second));
    Refill(first, second, next);
    StoreHalf(first, states);
    StoreHalf(second, states + 4);
  }
  state.next = next;
  return group;
}

uint32x4_t Gather(const uint32_t* table, uint32x4_t index) {
  uint32x4_t found = vdupq_n_u32(table[vgetq_lane_u32(index, 0)]);
  found = vsetq_lane_u32(table[vgetq_lane_u32(index, 1)], found, 1);
  found = vsetq_lane_u32(table[vgetq_lane_u32(index, 2)], found, 2);
  return vsetq_lane_u32(table[vgetq_lane_u32(index, 3)], found, 3);
}

uint8x16_t StepPlain(const DecodeTable& table, Half& x) {
  const uint32x4_t mask = vdupq_n_u32((1u << table.bits) - 1);
  const uint32x4_t twelve = vdupq_n_u32(0xfff);
  const int32x4_t down = vdupq_n_s32(-static_cast<int>(table.bits));
  uint32x4_t top[4];
  for (int i = 0; i < 4; ++i) {
    const uint32x4_t e = Gather(table.slots.data(), vandq_u32(x.v[i], mask));
    x.v[i] = vmlaq_u32(vandq_u32(vshrq_n_u32(e, 12), twelve), vandq_u32(e, twelve),
                       vshlq_u32(x.v[i], down));
    top[i] = vshrq_n_u32(e, 24);
  }
  return LowBytes(Join(top[0], top[2]), Join(top[1], top[3]));
}

size_t DecodePlain(DecodeState& state, const DecodeTable& table, uint8_t* out, size_t begin,
                   size_t end) {
  const uint8_t* next = state.next;
  size_t group = begin;
  for (; group < end && next <= state.limit; ++group) {
    uint32_t* states = state.x[group & state.set_mask];
    Half first = LoadHalf(states);
    Half second = LoadHalf(states + 4);
    vst1q_u8(out + group * kRansLanes, StepPlain(table, first));
    vst1q_u8(out + group * kRansLanes + 16, StepPlain(table, second));
    Refill(first, second, next);
    StoreHalf(first, states);
    StoreHalf(second, states + 4);
  }
  state.next = next;
  return group;
}

struct Entries {
  uint32x4_t packed, reciprocal;
};

// The entries of every fourth symbol.
Entries LookUp(const EncodeTable& table, const uint8_t* symbols) {
  uint32_t packed[4], reciprocal[4];
  for (int i = 0; i < 4; ++i) {
    packed[i] = table.packed[symbols[4 * i]];
    reciprocal[i] = table.reciprocal[symbols[4 * i]];
  }
  return {vld1q_u32(packed), vld1q_u32(reciprocal)};
}

// What follows the state x, which may take the symbol without giving a word.
template <bool kAlias>
uint32x4_t Advance(const EncodeTable& table, const Entries& entries, uint32x4_t x) {
  const uint32x4_t twelve = vdupq_n_u32(0xfff);
  const uint32x4_t twice = vaddq_u32(x, x);
  const uint32x2_t low =
      vshrn_n_u64(vmull_u32(vget_low_u32(twice), vget_low_u32(entries.reciprocal)), 32);
  const uint32x2_t high = vshrn_n_u64(vmull_high_u32(twice, entries.reciprocal), 32);
  const int32x4_t shift = vreinterpretq_s32_u32(vshrq_n_u32(entries.packed, 28));
  const uint32x4_t quotient = vshlq_u32(vcombine_u32(low, high), vnegq_s32(shift));
  const uint32x4_t place = vaddq_u32(vandq_u32(vshrq_n_u32(entries.packed, 12), twelve),
                                     vmlsq_u32(x, quotient, vandq_u32(entries.packed, twelve)));
  uint32x4_t slot = place;
  if constexpr (kAlias) {
    uint32_t places[4], slots[4];
    vst1q_u32(places, place);
    for (int i = 0; i < 4; ++i) slots[i] = table.slot_of[places[i]];
    slot = vld1q_u32(slots);
  }
  return vaddq_u32(vshlq_u32(quotient, vdupq_n_s32(table.bits)), slot);
}

template <bool kAlias>
void Encode(EncodeState& state, const EncodeTable& table, const uint8_t* symbols, size_t begin,
            size_t end) {
  const uint32x4_t twelve = vdupq_n_u32(0xfff);
  const int32x4_t up = vdupq_n_s32(kRansStateBits - table.bits);
  uint8_t* next = state.next;
  for (size_t group = end; group-- > begin;) {
    uint32_t* states = state.x[group & state.set_mask];
    for (int i = 3; i >= 0; --i) {
      const Entries e[2] = {LookUp(table, symbols + group * kRansLanes + i),
                            LookUp(table, symbols + group * kRansLanes + 16 + i)};
      uint32x4_t x[2] = {vld1q_u32(states + 8 * i), vld1q_u32(states + 8 * i + 4)};
      uint32x4_t high[2];
      for (int h = 0; h < 2; ++h) {
        high[h] = vcgeq_u32(x[h], vshlq_u32(vandq_u32(e[h].packed, twelve), up));
      }
      const size_t set = SetOf(high[0], high[1]);
      const uint16x8_t words = vcombine_u16(vmovn_u32(x[0]), vmovn_u32(x[1]));
      vst1q_u8(next - 16,
               vqtbl1q_u8(vreinterpretq_u8_u16(words), vld1q_u8(kRansShuffles.compact[set])));
      next -= 2 * __builtin_popcountll(set);
      for (int h = 0; h < 2; ++h) {
        x[h] = vbslq_u32(high[h], vshrq_n_u32(x[h], 16), x[h]);
        vst1q_u32(states + 8 * i + 4 * h, Advance<kAlias>(table, e[h], x[h]));
      }
    }
  }
  state.next = next;
}

}  // namespace

const RansKernels kRansNeon = {
    DecodeAlias<false>, DecodeAlias<true>, DecodePlain, Encode<true>, Encode<true>, Encode<false>,
};

}  // namespace tandem::kvstore::codec
