// The kernels in portable C++: what the vectorised ones must agree with, and what other CPUs use.
#include "kvstore/codec/rans_kernels.h"

namespace tandem::kvstore::codec {
namespace {

struct Slot {
  uint32_t symbol, frequency, rank;
};

Slot AliasSlot(const DecodeTable& table, uint32_t slot, bool second_half) {
  const uint32_t low = slot & 0xff;
  const uint32_t bucket = second_half ? slot >> 8 | (low >> 7) << 4 : slot >> 8;
  const uint32_t offset = second_half ? low & 0x7f : low;
  const uint32_t part = table.parts32[low >= table.divider[bucket]][bucket];
  return {part >> 24, part & 0xfff, (offset + (part >> 12)) & 0xfff};
}

Slot PlainSlot(const DecodeTable& table, uint32_t slot) {
  const uint32_t entry = table.slots[slot];
  return {entry >> 24, entry & 0xfff, entry >> 12 & 0xfff};
}

template <SlotOrder kOrder>
size_t Decode(DecodeState& state, const DecodeTable& table, uint8_t* out, size_t begin,
              size_t end) {
  const uint32_t mask = (1u << table.bits) - 1;
  const uint8_t* next = state.next;
  size_t group = begin;
  for (; group < end && next <= state.limit; ++group) {
    uint32_t* states = state.x[group & state.set_mask];
    for (uint32_t lane = 0; lane < kRansLanes; ++lane) {
      uint32_t x = states[lane];
      const Slot slot = kOrder == SlotOrder::kPlain
                            ? PlainSlot(table, x & mask)
                            : AliasSlot(table, x & mask, kOrder == SlotOrder::kAlias32);
      out[group * kRansLanes + lane % 8 * 4 + lane / 8] = static_cast<uint8_t>(slot.symbol);
      x = slot.frequency * (x >> table.bits) + slot.rank;
      // Whether a word is wanted cannot be predicted: no branch. It may be read in any case.
      const uint32_t wanted = x < kRansLow;
      const uint32_t word = next[0] | next[1] << 8;
      states[lane] = x << (16 * wanted) | (word & (0u - wanted));
      next += 2 * wanted;
    }
  }
  state.next = next;
  return group;
}

template <SlotOrder kOrder>
void Encode(EncodeState& state, const EncodeTable& table, const uint8_t* symbols, size_t begin,
            size_t end) {
  uint8_t* next = state.next;
  for (size_t group = end; group-- > begin;) {
    uint32_t* states = state.x[group & state.set_mask];
    for (uint32_t lane = kRansLanes; lane-- > 0;) {
      const uint32_t symbol = symbols[group * kRansLanes + lane % 8 * 4 + lane / 8];
      const uint32_t packed = table.packed[symbol];
      const uint32_t frequency = packed & 0xfff;
      uint32_t x = states[lane];
      const uint32_t given = x >= frequency << (kRansStateBits - table.bits);
      next[-1] = static_cast<uint8_t>(x >> 8);
      next[-2] = static_cast<uint8_t>(x);
      next -= 2 * given;
      x >>= 16 * given;
      const uint32_t quotient = static_cast<uint32_t>(
          (uint64_t{2 * x} * table.reciprocal[symbol]) >> (32 + (packed >> 28)));
      const uint32_t place = (packed >> 12 & 0xfff) + x - quotient * frequency;
      const uint32_t slot = kOrder == SlotOrder::kPlain ? place : table.slot_of[place];
      states[lane] = (quotient << table.bits) + slot;
    }
  }
  state.next = next;
}

}  // namespace

const RansKernels kRansScalar = {
    Decode<SlotOrder::kAlias16>, Decode<SlotOrder::kAlias32>, Decode<SlotOrder::kPlain>,
    Encode<SlotOrder::kAlias16>, Encode<SlotOrder::kAlias32>, Encode<SlotOrder::kPlain>,
};

}  // namespace tandem::kvstore::codec
