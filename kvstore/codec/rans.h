// The entropy coder: interleaved rANS, vectorised, the same bits on every CPU. Used by the codec
// for quantised symbols and for the bytes of lossless planes.
//
// The stream. A stream codes symbols (bytes) in *runs*; each run has its own table and any number
// of symbols. Tables, lengths and the number of *sets* of 32 states (1 or 2) are known from
// elsewhere. All integers are little-endian.
//
//   stream := state[32 * sets] (u32 each), word[] (u16 each)
//
// Lanes. A run is cut into groups of 32 symbols. With two sets, even groups belong to the first
// (states 0 … 31) and odd ones to the second. Symbol i of a group belongs to lane
// (i % 4) * 8 + i / 4 of its set: lanes 0 … 7 have symbols 0, 4, … 28, lanes 8 … 15 symbols
// 1, 5, … 29, and so on. A run's last group may have fewer symbols; the other lanes rest. The
// states go on from run to run; every run begins with the first set.
//
// Decoding a group: for every lane that has a symbol, with x its state and b the table's bits:
//   1. slot = x mod 2^b; symbol and rank are the slot's; f is the symbol's frequency;
//   2. x = f * (x >> b) + rank;
// then, for these lanes in ascending order: if x < 2^15, x = x << 16 | the next word.
// Between groups states are 2^15 … 2^31 - 1. A run whose table gives one symbol all 2^b slots
// changes nothing. After the last run every word must be used up and every state be
// 2^15 + (0 … 65535): this rest is a word a lane that the encoder began with. The free words are
// zero unless the codec puts something there (64 bytes a set). A stream is 64 to 128 bytes a set
// longer than its symbols' cross-entropy, on average 96; 32 when the free words are made use of.
//
// A set's next group waits for the one before. So two sets decode 1.3 to 1.7 times as fast as one:
// right for streams of ten kilobytes and more.
//
// Slots. Which slot is which symbol's:
// - kPlain (more than 32 symbols, or b < 12): symbol s has the slots from the sum of the
//   frequencies before it; its rank is the distance from there.
// - kAlias16, kAlias32 (up to 16, up to 32 symbols; b = 12): 16 or 32 buckets of 256 or 128
//   slots, one a symbol (symbols that the table lacks have frequency 0). Bucket k begins at slot
//   (k mod 16) * 256 + (k / 16) * 128. Each bucket holds at most two symbols: a few bytes that fit
//   into registers replace a table of 4096 entries. Slots are dealt out so: left[s] = frequency of
//   s. While there is a bucket k, not yet closed, with left[k] < its size, take the lowest; let s
//   be the lowest symbol with left[s] > size; the first left[k] slots of bucket k are symbol k's,
//   with ranks from 0; the others symbol s's; take size - left[k] from left[s], and close k. A
//   bucket that stays open belongs to its own symbol, ranks from 0. The ranks of s go on from
//   those in its own bucket through the buckets that it filled up, in the order of filling.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "kvstore/codec/cpu.h"
#include "kvstore/codec/rans_kernels.h"
#include "kvstore/codec/rans_tables.h"

namespace tandem::kvstore::codec {

/// Bytes of an empty stream.
constexpr size_t RansMinBytes(size_t sets) { return sets * kRansLanes * sizeof(uint32_t); }

/// Decodes one stream: Start, Decode for every run in order, Finish; then again. Reads nothing
/// outside the stream and writes nothing outside the destinations, whatever the bytes are.
/// Not thread-safe.
class RansDecoder {
 public:
  /// REQUIRES: `isa` is one of SupportedIsas().
  explicit RansDecoder(Isa isa = BestIsa());
  RansDecoder(const RansDecoder&) = delete;
  RansDecoder& operator=(const RansDecoder&) = delete;

  /// Begins with `stream`, which must stay until Finish. DATA_LOSS when it is too short, has an
  /// odd length or a state that no encoder leaves; then Decode gives zeros. REQUIRES: `sets` is
  /// 1 or 2.
  absl::Status Start(std::span<const uint8_t> stream, size_t sets = 1);

  /// Decodes the next run, `n` symbols. A damaged stream gives any symbols that are in the table,
  /// or zeros.
  void Decode(const DecodeTable& table, uint8_t* out, size_t n);

  /// After the last run: DATA_LOSS unless the stream ends exactly here. `free_words` receives the
  /// free words; without it they must be zero. REQUIRES: its size is 0 or 32 * sets.
  absl::Status Finish(std::span<uint16_t> free_words = {});

 private:
  void DecodeGroups(DecodeKernel kernel, const DecodeTable& table, uint8_t* out, size_t begin,
                    size_t end);
  void DecodeRest(DecodeKernel kernel, const DecodeTable& table, uint8_t* out, size_t set,
                  size_t n);
  bool SwitchToTail();

  const RansKernels& kernels_;
  DecodeState state_ = {};
  const uint8_t* end_ = nullptr;  // of the words, in the stream or in tail_
  bool damaged_ = true;
  bool in_tail_ = false;
  // The last words with zeros behind them, so that a kernel may read on.
  std::array<uint8_t, 2 * kGroupBytes> tail_;
};

/// Encodes one stream, backwards: Start, Encode for every run from the last to the first, Finish.
/// Deterministic. Not thread-safe.
class RansEncoder {
 public:
  /// REQUIRES: `isa` is one of SupportedIsas().
  explicit RansEncoder(Isa isa = BestIsa());
  RansEncoder(const RansEncoder&) = delete;
  RansEncoder& operator=(const RansEncoder&) = delete;

  /// Begins an empty stream. REQUIRES: `sets` is 1 or 2; the size of `free_words` is 0 (they are
  /// zero) or 32 * sets.
  void Start(size_t sets = 1, std::span<const uint16_t> free_words = {});

  /// Puts a run in front of what is there. REQUIRES: every symbol's frequency is greater than 0.
  void Encode(const EncodeTable& table, const uint8_t* symbols, size_t n);

  /// The stream; valid until the next call of any function.
  std::span<const uint8_t> Finish();

 private:
  void EncodeRest(EncodeKernel kernel, const EncodeTable& table, const uint8_t* symbols, size_t set,
                  size_t n);
  void Reserve(size_t bytes);

  const RansKernels& kernels_;
  EncodeState state_ = {};
  std::vector<uint8_t> buffer_;  // filled from its end
};

}  // namespace tandem::kvstore::codec
