// The kernels for AVX2: four vectors of eight states. Small alphabets are looked up in registers,
// all 32 lanes at once, a byte each; others in memory.
#include <immintrin.h>

#include "kvstore/codec/rans_kernels.h"

namespace tandem::kvstore::codec {
namespace {

struct States {
  __m256i v[4];
};

__m256i Load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
void Store(void* p, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }

States LoadStates(const uint32_t* x) {
  return {{Load(x), Load(x + 8), Load(x + 16), Load(x + 24)}};
}
void StoreStates(const States& s, uint32_t* x) {
  for (int i = 0; i < 4; ++i) Store(x + 8 * i, s.v[i]);
}

// Bytes 0, 2, … of `even` and bytes 1, 3, … of `odd`.
__m256i Interleave(__m256i even, __m256i odd) {
  return _mm256_blendv_epi8(even, odd, _mm256_set1_epi16(static_cast<int16_t>(0xff00)));
}

// Byte 4 j + i is element j of a table for lane (i, j); two tables of bytes make 16 bits for the
// even and the odd vectors of lanes, of which Split makes the vectors.
struct Halves {
  __m256i even, odd;
};
Halves Widen(__m256i low, __m256i high) {
  return {Interleave(low, _mm256_slli_epi16(high, 8)), Interleave(_mm256_srli_epi16(low, 8), high)};
}
States Split(const Halves& h) {
  const __m256i zero = _mm256_setzero_si256();
  return {{_mm256_blend_epi16(h.even, zero, 0xaa), _mm256_blend_epi16(h.odd, zero, 0xaa),
           _mm256_srli_epi32(h.even, 16), _mm256_srli_epi32(h.odd, 16)}};
}

// A table of 16 or 32 bytes.
template <bool kTwo>
struct ByteTable {
  explicit ByteTable(const uint8_t* bytes)
      : low(_mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(bytes)))),
        high(_mm256_broadcastsi128_si256(
            _mm_load_si128(reinterpret_cast<const __m128i*>(bytes + 16)))) {}
  // Entry `index` & 15 of the half that the top bit of `half` names.
  __m256i Get(__m256i index, __m256i half) const {
    const __m256i first = _mm256_shuffle_epi8(low, index);
    if constexpr (!kTwo) return first;
    return _mm256_blendv_epi8(first, _mm256_shuffle_epi8(high, index), half);
  }
  __m256i low, high;
};

template <bool kTwo>
struct AliasTables {
  explicit AliasTables(const DecodeTable& t)
      : divider(t.divider),
        other(t.other),
        base_low(t.base_low),
        base_high(t.base_high),
        frequency_low(t.frequency_low),
        frequency_high(t.frequency_high) {}
  ByteTable<kTwo> divider, other, base_low, base_high, frequency_low, frequency_high;
};

struct Found {
  __m256i symbols;
  States frequency, rank;
};

template <bool kTwo>
[[gnu::always_inline]] inline Found LookUp(const AliasTables<kTwo>& tables, const States& x) {
  const Halves slots = {_mm256_blend_epi16(x.v[0], _mm256_slli_epi32(x.v[2], 16), 0xaa),
                        _mm256_blend_epi16(x.v[1], _mm256_slli_epi32(x.v[3], 16), 0xaa)};
  const __m256i low = Interleave(slots.even, _mm256_slli_epi16(slots.odd, 8));
  const __m256i high = _mm256_and_si256(Interleave(_mm256_srli_epi16(slots.even, 8), slots.odd),
                                        _mm256_set1_epi8(0x0f));
  const __m256i in_other =
      _mm256_cmpeq_epi8(_mm256_max_epu8(low, tables.divider.Get(high, low)), low);
  __m256i bucket = high;
  __m256i offset = low;
  if constexpr (kTwo) {
    bucket =
        _mm256_or_si256(high, _mm256_and_si256(_mm256_srli_epi16(low, 3), _mm256_set1_epi8(0x10)));
    offset = _mm256_and_si256(low, _mm256_set1_epi8(0x7f));
  }
  const __m256i symbols = _mm256_blendv_epi8(bucket, tables.other.Get(high, low), in_other);
  const __m256i half = _mm256_slli_epi16(symbols, 3);
  Halves rank = Widen(_mm256_and_si256(in_other, tables.base_low.Get(high, low)),
                      _mm256_and_si256(in_other, tables.base_high.Get(high, low)));
  rank.even = _mm256_add_epi16(rank.even, _mm256_and_si256(offset, _mm256_set1_epi16(0xff)));
  rank.odd = _mm256_add_epi16(rank.odd, _mm256_srli_epi16(offset, 8));
  return {symbols,
          Split(Widen(tables.frequency_low.Get(symbols, half),
                      tables.frequency_high.Get(symbols, half))),
          Split(rank)};
}

// Takes a word for every state that is too low.
[[gnu::always_inline]] inline void Refill(States& x, const uint8_t*& next) {
  size_t set[4];
  for (int i = 0; i < 4; ++i) {
    const __m256i below = _mm256_sub_epi32(x.v[i], _mm256_set1_epi32(kRansLow));
    set[i] = static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(below)));
  }
  for (int i = 0; i < 4; ++i) {
    const __m256i words =
        _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(next)));
    const __m256i placed = _mm256_shuffle_epi8(words, Load(kRansShuffles.refill[set[i]][0]));
    const __m256i raised = _mm256_shuffle_epi8(x.v[i], Load(kRansShuffles.refill[set[i]][1]));
    x.v[i] = _mm256_or_si256(raised, placed);
    next += 2 * _mm_popcnt_u64(set[i]);
  }
}

template <bool kTwo>
size_t DecodeAlias(DecodeState& state, const DecodeTable& table, uint8_t* out, size_t begin,
                   size_t end) {
  const AliasTables<kTwo> tables(table);
  const uint8_t* next = state.next;
  size_t group = begin;
  for (; group < end && next <= state.limit; ++group) {
    uint32_t* states = state.x[group & state.set_mask];
    States x = LoadStates(states);
    const Found found = LookUp(tables, x);
    Store(out + group * kRansLanes, found.symbols);
    for (int i = 0; i < 4; ++i) {
      x.v[i] = _mm256_add_epi32(
          _mm256_mullo_epi32(found.frequency.v[i], _mm256_srli_epi32(x.v[i], 12)), found.rank.v[i]);
    }
    Refill(x, next);
    StoreStates(x, states);
  }
  state.next = next;
  return group;
}

// One by one: takes two thirds of the time of the hardware's gather on Zen 4, and less than that
// where the mitigation of Downfall slows it down.
[[gnu::always_inline]] inline __m128i Gather4(const uint32_t* table, __m128i index) {
  const uint64_t first = _mm_cvtsi128_si64(index);
  const uint64_t second = _mm_extract_epi64(index, 1);
  __m128i found = _mm_cvtsi32_si128(table[static_cast<uint32_t>(first)]);
  found = _mm_insert_epi32(found, table[first >> 32], 1);
  found = _mm_insert_epi32(found, table[static_cast<uint32_t>(second)], 2);
  return _mm_insert_epi32(found, table[second >> 32], 3);
}
[[gnu::always_inline]] inline __m128i Gather4(const uint16_t* table, __m128i index) {
  const uint64_t first = _mm_cvtsi128_si64(index);
  const uint64_t second = _mm_extract_epi64(index, 1);
  __m128i found = _mm_cvtsi32_si128(table[static_cast<uint32_t>(first)]);
  found = _mm_insert_epi16(found, table[first >> 32], 2);
  found = _mm_insert_epi16(found, table[static_cast<uint32_t>(second)], 4);
  return _mm_insert_epi16(found, table[second >> 32], 6);
}
template <typename Entry>
[[gnu::always_inline]] inline __m256i Gather(const Entry* table, __m256i index) {
  return _mm256_set_m128i(Gather4(table, _mm256_extracti128_si256(index, 1)),
                          Gather4(table, _mm256_castsi256_si128(index)));
}

size_t DecodePlain(DecodeState& state, const DecodeTable& table, uint8_t* out, size_t begin,
                   size_t end) {
  const uint32_t* slots = table.slots.data();
  const __m256i mask = _mm256_set1_epi32((1 << table.bits) - 1);
  const __m128i bits = _mm_cvtsi32_si128(table.bits);
  const __m256i twelve = _mm256_set1_epi32(0xfff);
  const uint8_t* next = state.next;
  size_t group = begin;
  for (; group < end && next <= state.limit; ++group) {
    uint32_t* states = state.x[group & state.set_mask];
    States x = LoadStates(states);
    __m256i e[4];
    for (int i = 0; i < 4; ++i) e[i] = Gather(slots, _mm256_and_si256(x.v[i], mask));
    // The symbols are the entries' top bytes.
    const Halves halves = {_mm256_blend_epi16(_mm256_srli_epi32(e[0], 16), e[2], 0xaa),
                           _mm256_blend_epi16(_mm256_srli_epi32(e[1], 16), e[3], 0xaa)};
    Store(out + group * kRansLanes, Interleave(_mm256_srli_epi16(halves.even, 8), halves.odd));
    for (int i = 0; i < 4; ++i) {
      const __m256i product =
          _mm256_mullo_epi32(_mm256_and_si256(e[i], twelve), _mm256_srl_epi32(x.v[i], bits));
      x.v[i] = _mm256_add_epi32(product, _mm256_and_si256(_mm256_srli_epi32(e[i], 12), twelve));
    }
    Refill(x, next);
    StoreStates(x, states);
  }
  state.next = next;
  return group;
}

// Writes the low halves of the states that are not below `limit` in front of `next`, and drops
// them.
[[gnu::always_inline]] inline __m256i Spill(__m256i x, __m256i limit, uint8_t*& next) {
  const __m256i fits = _mm256_cmpgt_epi32(limit, x);
  const size_t set = static_cast<unsigned>(~_mm256_movemask_ps(_mm256_castsi256_ps(fits))) & 0xff;
  const __m256i low = _mm256_blend_epi16(x, _mm256_setzero_si256(), 0xaa);
  const __m128i words =
      _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
  const __m128i order =
      _mm_load_si128(reinterpret_cast<const __m128i*>(kRansShuffles.compact[set]));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(next - 16), _mm_shuffle_epi8(words, order));
  next -= 2 * _mm_popcnt_u64(set);
  return _mm256_blendv_epi8(_mm256_srli_epi32(x, 16), x, fits);
}

[[gnu::always_inline]] inline __m256i Divide(__m256i x, __m256i reciprocal, __m256i packed) {
  x = _mm256_add_epi32(x, x);
  const __m256i even = _mm256_mul_epu32(x, reciprocal);
  const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(x, 32), _mm256_srli_epi64(reciprocal, 32));
  const __m256i high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
  return _mm256_srlv_epi32(high, _mm256_srli_epi32(packed, 28));
}

// Looks up `kEntries` (16, 32 or more) 32-bit entries by symbol.
template <size_t kEntries>
[[gnu::always_inline]] inline __m256i Entries(const uint32_t* table, __m256i symbols) {
  if constexpr (kEntries <= 32) {
    const __m256i bit3 = _mm256_slli_epi32(symbols, 28);
    __m256i found[kEntries / 8];
    for (size_t i = 0; i < kEntries / 8; ++i) {
      found[i] = _mm256_permutevar8x32_epi32(Load(table + 8 * i), symbols);
    }
    const auto choose = [](__m256i a, __m256i b, __m256i bit) {
      return _mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b),
                                                  _mm256_castsi256_ps(bit)));
    };
    const __m256i first = choose(found[0], found[1], bit3);
    if constexpr (kEntries == 16) return first;
    if constexpr (kEntries == 32) {
      return choose(first, choose(found[2], found[3], bit3), _mm256_slli_epi32(symbols, 27));
    }
  } else {
    return Gather(table, symbols);
  }
}

// kEntries: how many symbols there can be; up to 32 they have an alias order.
template <size_t kEntries>
void Encode(EncodeState& state, const EncodeTable& table, const uint8_t* symbols, size_t begin,
            size_t end) {
  const __m128i bits = _mm_cvtsi32_si128(table.bits);
  const __m128i limit_bits = _mm_cvtsi32_si128(kRansStateBits - table.bits);
  const __m256i twelve = _mm256_set1_epi32(0xfff);
  uint8_t* next = state.next;
  for (size_t group = end; group-- > begin;) {
    uint32_t* states = state.x[group & state.set_mask];
    const __m256i all = Load(symbols + group * kRansLanes);
#pragma GCC unroll 4
    for (int i = 3; i >= 0; --i) {
      const __m256i s = _mm256_and_si256(_mm256_srli_epi32(all, 8 * i), _mm256_set1_epi32(0xff));
      const __m256i packed = Entries<kEntries>(table.packed, s);
      const __m256i reciprocal = Entries<kEntries>(table.reciprocal, s);
      const __m256i frequency = _mm256_and_si256(packed, twelve);
      const __m256i y = Spill(Load(states + 8 * i), _mm256_sll_epi32(frequency, limit_bits), next);
      const __m256i quotient = Divide(y, reciprocal, packed);
      const __m256i first = _mm256_and_si256(_mm256_srli_epi32(packed, 12), twelve);
      const __m256i rest = _mm256_sub_epi32(y, _mm256_mullo_epi32(quotient, frequency));
      __m256i slot = _mm256_add_epi32(first, rest);
      if constexpr (kEntries <= 32) slot = Gather(table.slot_of.data(), slot);
      Store(states + 8 * i, _mm256_add_epi32(_mm256_sll_epi32(quotient, bits), slot));
    }
  }
  state.next = next;
}

}  // namespace

const RansKernels kRansAvx2 = {
    DecodeAlias<false>, DecodeAlias<true>, DecodePlain,
    Encode<16>,         Encode<32>,        Encode<FrequencyTable::kMaxSymbols>,
};

}  // namespace tandem::kvstore::codec
