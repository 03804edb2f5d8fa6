// The kernels for AVX-512: two vectors of sixteen states; small alphabets are looked up by one
// permutation of a register a table, words are expanded and compacted by the instructions for it.
#include <immintrin.h>

#include "kvstore/codec/rans_kernels.h"

namespace tandem::kvstore::codec {
namespace {

// A table of 16 or 32 entries of 32 bits.
template <bool kTwo>
struct Table {
  __m512i low, high;
  __m512i Get(__m512i index) const {
    if constexpr (kTwo) return _mm512_permutex2var_epi32(low, index, high);
    return _mm512_permutexvar_epi32(index, low);
  }
};

template <bool kTwo>
Table<kTwo> LoadTable(const uint32_t* entries) {
  return {_mm512_loadu_si512(entries), _mm512_loadu_si512(entries + 16)};
}

// Takes a word for every state that is too low.
[[gnu::always_inline]] inline __m512i Refill(__m512i x, const uint8_t*& next) {
  const __mmask16 low = _mm512_cmplt_epi32_mask(x, _mm512_set1_epi32(kRansLow));
  const __m512i words =
      _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(next)));
  next += 2 * _mm_popcnt_u64(low);
  const __m512i placed = _mm512_maskz_expand_epi32(low, words);
  return _mm512_or_si512(_mm512_mask_slli_epi32(x, low, x, 16), placed);
}

// The entries' symbols (top bytes) of the states 0 … 15 and 16 … 31, in the order of the symbols.
[[gnu::always_inline]] inline __m256i Symbols(__m512i e01, __m512i e23) {
  // Symbols 4 j … 4 j + 3 are those of lanes j, 8 + j, 16 + j and 24 + j.
  const __m512i both = _mm512_ternarylogic_epi32(
      _mm512_srli_epi32(e01, 24), _mm512_srli_epi32(e23, 8), _mm512_set1_epi32(0xff0000), 0xf8);
  const __m256i even = _mm512_castsi512_si256(both);
  const __m256i odd = _mm512_extracti64x4_epi64(both, 1);
  return _mm256_or_si256(even, _mm256_slli_epi32(odd, 8));
}

template <bool kTwo>
struct Alias {
  Table<kTwo> divider, own, other;
};

template <bool kTwo>
Alias<kTwo> LoadAlias(const DecodeTable& t) {
  return {LoadTable<kTwo>(t.divider32), LoadTable<kTwo>(t.parts32[0]),
          LoadTable<kTwo>(t.parts32[1])};
}

// The states after `x` but for their words; the entries that say the symbols go to `entry`.
template <bool kTwo>
[[gnu::always_inline]] inline __m512i Decode16(const Alias<kTwo>& t, __m512i x, __m512i* entry) {
  const __m512i twelve = _mm512_set1_epi32(0xfff);
  const __m512i low = _mm512_and_si512(x, _mm512_set1_epi32(0xff));
  __m512i bucket = _mm512_srli_epi32(x, 8);
  __m512i offset = low;
  if constexpr (kTwo) {
    bucket =
        _mm512_ternarylogic_epi32(bucket, _mm512_srli_epi32(x, 3), _mm512_set1_epi32(16), 0xd8);
    offset = _mm512_and_si512(x, _mm512_set1_epi32(0x7f));
  }
  const __mmask16 is_own = _mm512_cmplt_epi32_mask(low, t.divider.Get(bucket));
  const __m512i e = _mm512_mask_mov_epi32(t.other.Get(bucket), is_own, t.own.Get(bucket));
  *entry = e;
  const __m512i rank = _mm512_and_si512(_mm512_add_epi32(_mm512_srli_epi32(e, 12), offset), twelve);
  return _mm512_add_epi32(_mm512_mullo_epi32(_mm512_and_si512(e, twelve), _mm512_srli_epi32(x, 12)),
                          rank);
}

template <bool kTwo>
size_t DecodeAlias(DecodeState& state, const DecodeTable& table, uint8_t* out, size_t begin,
                   size_t end) {
  const Alias<kTwo> t = LoadAlias<kTwo>(table);
  const uint8_t* next = state.next;
  size_t group = begin;
  for (; group < end && next <= state.limit; ++group) {
    uint32_t* states = state.x[group & state.set_mask];
    __m512i x0 = _mm512_load_si512(states);
    __m512i x1 = _mm512_load_si512(states + 16);
    __m512i e0, e1;
    x0 = Decode16(t, x0, &e0);
    x1 = Decode16(t, x1, &e1);
    x0 = Refill(x0, next);
    x1 = Refill(x1, next);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + group * kRansLanes), Symbols(e0, e1));
    _mm512_store_si512(states, x0);
    _mm512_store_si512(states + 16, x1);
  }
  state.next = next;
  return group;
}

// Writes the low halves of the states that are not below `limit` in front of `next`, and drops
// them.
[[gnu::always_inline]] inline __m512i Spill(__m512i x, __m512i limit, uint8_t*& next) {
  const __mmask16 high = _mm512_cmpge_epi32_mask(x, limit);
  const unsigned n = _mm_popcnt_u32(high);
  next -= 2 * n;
  const __m256i words = _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(high, x));
  _mm256_mask_storeu_epi16(next, static_cast<__mmask16>(_bzhi_u32(0xffff, n)), words);
  return _mm512_mask_srli_epi32(x, high, x, 16);
}

[[gnu::always_inline]] inline __m512i Divide(__m512i x, __m512i reciprocal, __m512i packed) {
  x = _mm512_add_epi32(x, x);
  const __m512i even = _mm512_mul_epu32(x, reciprocal);
  const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(x, 32), _mm512_srli_epi64(reciprocal, 32));
  const __m512i high = _mm512_mask_mov_epi32(_mm512_srli_epi64(even, 32), 0xaaaa, odd);
  return _mm512_srlv_epi32(high, _mm512_srli_epi32(packed, 28));
}

[[gnu::always_inline]] inline __m128i Gather4(const uint16_t* table, __m128i index) {
  const uint64_t first = _mm_cvtsi128_si64(index);
  const uint64_t second = _mm_extract_epi64(index, 1);
  __m128i found = _mm_cvtsi32_si128(table[static_cast<uint32_t>(first)]);
  found = _mm_insert_epi16(found, table[first >> 32], 2);
  found = _mm_insert_epi16(found, table[static_cast<uint32_t>(second)], 4);
  return _mm_insert_epi16(found, table[second >> 32], 6);
}

// One by one: see rans_avx2.cc.
[[gnu::always_inline]] inline __m512i Gather(const uint16_t* table, __m512i index) {
  const __m256i low = _mm256_set_m128i(Gather4(table, _mm512_extracti32x4_epi32(index, 1)),
                                       Gather4(table, _mm512_castsi512_si128(index)));
  const __m256i high = _mm256_set_m128i(Gather4(table, _mm512_extracti32x4_epi32(index, 3)),
                                        Gather4(table, _mm512_extracti32x4_epi32(index, 2)));
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

template <bool kTwo>
[[gnu::always_inline]] inline __m512i Encode16(const EncodeTable& table, const Table<kTwo>& packeds,
                                               const Table<kTwo>& reciprocals, __m512i symbols,
                                               __m512i x, uint8_t*& next) {
  const __m512i twelve = _mm512_set1_epi32(0xfff);
  const __m512i packed = packeds.Get(symbols);
  const __m512i frequency = _mm512_and_si512(packed, twelve);
  x = Spill(x, _mm512_slli_epi32(frequency, kRansStateBits - 12), next);
  const __m512i quotient = Divide(x, reciprocals.Get(symbols), packed);
  const __m512i rest = _mm512_sub_epi32(x, _mm512_mullo_epi32(quotient, frequency));
  const __m512i place =
      _mm512_add_epi32(_mm512_and_si512(_mm512_srli_epi32(packed, 12), twelve), rest);
  return _mm512_or_si512(_mm512_slli_epi32(quotient, 12), Gather(table.slot_of.data(), place));
}

template <bool kTwo>
void EncodeAlias(EncodeState& state, const EncodeTable& table, const uint8_t* symbols, size_t begin,
                 size_t end) {
  const Table<kTwo> packeds = LoadTable<kTwo>(table.packed);
  const Table<kTwo> reciprocals = LoadTable<kTwo>(table.reciprocal);
  uint8_t* next = state.next;
  for (size_t group = end; group-- > begin;) {
    uint32_t* states = state.x[group & state.set_mask];
    // Vectors 0, 1 and 2, 3 of eight symbols, a symbol in the low byte of 32 bits; permutations
    // take no notice of higher bits.
    const __m256i all =
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(symbols + group * kRansLanes));
    const __m512i low =
        _mm512_inserti64x4(_mm512_castsi256_si512(all), _mm256_srli_epi32(all, 8), 1);
    const __m512i high = _mm512_srli_epi32(low, 16);
    const __m512i x1 = _mm512_load_si512(states + 16);
    _mm512_store_si512(states + 16, Encode16(table, packeds, reciprocals, high, x1, next));
    const __m512i x0 = _mm512_load_si512(states);
    _mm512_store_si512(states, Encode16(table, packeds, reciprocals, low, x0, next));
  }
  state.next = next;
}

}  // namespace

const RansKernels kRansAvx512 = {
    DecodeAlias<false>, DecodeAlias<true>, kRansAvx2.decode_plain,
    EncodeAlias<false>, EncodeAlias<true>, kRansAvx2.encode_plain,
};

}  // namespace tandem::kvstore::codec
