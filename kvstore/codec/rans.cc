// The frame around the kernels: parts of groups, the end of the stream, buffers, checks.
#include "kvstore/codec/rans.h"

#include <algorithm>
#include <cassert>
#include <cstring>

#include "absl/status/status.h"

namespace tandem::kvstore::codec {
namespace {

const RansKernels& KernelsFor(Isa isa) {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::kAvx2:
      return kRansAvx2;
    case Isa::kAvx512:
      return kRansAvx512;
#elif defined(__aarch64__)
    case Isa::kNeon:
      return kRansNeon;
#endif
    default:
      return kRansScalar;
  }
}

constexpr size_t LaneOf(size_t i) { return (i % 4) * 8 + i / 4; }

uint32_t Load32(const uint8_t* p) {
  return p[0] | p[1] << 8 | p[2] << 16 | static_cast<uint32_t>(p[3]) << 24;
}

void Store32(uint32_t value, uint8_t* p) {
  for (int i = 0; i < 4; ++i) p[i] = static_cast<uint8_t>(value >> (8 * i));
}

constexpr RansShuffles MakeShuffles() {
  RansShuffles shuffles = {};
  for (unsigned set = 0; set < 256; ++set) {
    unsigned word = 0;
    for (unsigned lane = 0; lane < 8; ++lane) {
      const bool taken = set >> lane & 1;
      for (unsigned byte = 0; byte < 4; ++byte) {
        const unsigned own = 4 * lane % 16 + byte;
        shuffles.refill[set][0][4 * lane + byte] =
            static_cast<uint8_t>(taken && byte < 2 ? 2 * word + byte : 0x80);
        shuffles.refill[set][1][4 * lane + byte] = static_cast<uint8_t>(!taken     ? own
                                                                        : byte < 2 ? 0x80
                                                                                   : own - 2);
      }
      word += taken;
    }
    unsigned to = 16;
    for (unsigned lane = 8; lane-- > 0;) {
      if (set >> lane & 1) {
        shuffles.compact[set][--to] = static_cast<uint8_t>(2 * lane + 1);
        shuffles.compact[set][--to] = static_cast<uint8_t>(2 * lane);
      }
    }
  }
  return shuffles;
}

}  // namespace

constexpr RansShuffles kRansShuffles = MakeShuffles();

RansDecoder::RansDecoder(Isa isa) : kernels_(KernelsFor(isa)) {}

absl::Status RansDecoder::Start(std::span<const uint8_t> stream, size_t sets) {
  damaged_ = true;
  if (stream.size() < RansMinBytes(sets) || stream.size() % 2 != 0) {
    return absl::DataLossError("entropy-coded stream of an impossible length");
  }
  for (size_t i = 0; i < sets * kRansLanes; ++i) {
    const uint32_t x = Load32(stream.data() + 4 * i);
    if (x < kRansLow || x >> kRansStateBits != 0) {
      return absl::DataLossError("entropy-coded stream with an impossible state");
    }
    state_.x[i / kRansLanes][i % kRansLanes] = x;
  }
  state_.set_mask = sets - 1;
  state_.next = stream.data() + RansMinBytes(sets);
  end_ = stream.data() + stream.size();
  in_tail_ = false;
  damaged_ = false;
  if (end_ - state_.next < static_cast<ptrdiff_t>(kGroupBytes)) {
    SwitchToTail();
  } else {
    state_.limit = end_ - kGroupBytes;
  }
  return absl::OkStatus();
}

// Goes on with a padded copy of the last words. False when there is nothing to go on with: a group
// can no longer begin only when more words were wanted than there are.
bool RansDecoder::SwitchToTail() {
  if (in_tail_) return false;
  const size_t left = end_ - state_.next;
  tail_.fill(0);
  std::copy_n(state_.next, left, tail_.begin());
  state_.next = tail_.data();
  end_ = tail_.data() + left;
  state_.limit = end_;
  in_tail_ = true;
  return true;
}

void RansDecoder::DecodeGroups(DecodeKernel kernel, const DecodeTable& table, uint8_t* out,
                               size_t begin, size_t end) {
  for (;;) {
    begin = kernel(state_, table, out, begin, end);
    if (begin == end) return;
    if (!SwitchToTail()) {
      damaged_ = true;
      std::memset(out + begin * kRansLanes, 0, (end - begin) * kRansLanes);
      return;
    }
  }
}

void RansDecoder::Decode(const DecodeTable& table, uint8_t* out, size_t n) {
  if (n == 0) return;
  if (damaged_ || table.order == SlotOrder::kSingle) {
    std::memset(out, damaged_ ? 0 : table.single_symbol, n);
    return;
  }
  const DecodeKernel kernel = table.order == SlotOrder::kAlias16   ? kernels_.decode_alias16
                              : table.order == SlotOrder::kAlias32 ? kernels_.decode_alias32
                                                                   : kernels_.decode_plain;
  const size_t groups = n / kRansLanes;
  DecodeGroups(kernel, table, out, 0, groups);
  if (n % kRansLanes != 0) {
    DecodeRest(kernel, table, out + groups * kRansLanes, groups & state_.set_mask, n % kRansLanes);
  }
}

// The kernels know whole groups only: a lane that rests gets a state that needs no word.
void RansDecoder::DecodeRest(DecodeKernel kernel, const DecodeTable& table, uint8_t* out,
                             size_t set, size_t n) {
  uint8_t symbols[kRansMaxSets * kRansLanes] = {};
  if (!damaged_) {
    uint32_t* x = state_.x[set];
    uint32_t saved[kRansLanes];
    std::copy_n(x, kRansLanes, saved);
    for (size_t i = n; i < kRansLanes; ++i) x[LaneOf(i)] = (1u << kRansStateBits) - 1;
    DecodeGroups(kernel, table, symbols, set, set + 1);
    for (size_t i = n; i < kRansLanes; ++i) x[LaneOf(i)] = saved[LaneOf(i)];
  }
  std::copy_n(symbols + set * kRansLanes, n, out);
}

absl::Status RansDecoder::Finish(std::span<uint16_t> free_words) {
  assert(free_words.empty() || free_words.size() == (state_.set_mask + 1) * kRansLanes);
  bool good = !damaged_ && state_.next == end_;
  damaged_ = true;
  for (size_t i = 0; i < (state_.set_mask + 1) * kRansLanes; ++i) {
    const uint32_t word = state_.x[i / kRansLanes][i % kRansLanes] - kRansLow;
    good = good && word <= (free_words.empty() ? 0 : 0xffff);
    if (!free_words.empty()) free_words[i] = static_cast<uint16_t>(word);
  }
  return good ? absl::OkStatus() : absl::DataLossError("damaged entropy-coded stream");
}

RansEncoder::RansEncoder(Isa isa) : kernels_(KernelsFor(isa)) { Start(); }

void RansEncoder::Start(size_t sets, std::span<const uint16_t> free_words) {
  assert(sets == 1 || sets == 2);
  assert(free_words.empty() || free_words.size() == sets * kRansLanes);
  for (size_t i = 0; i < sets * kRansLanes; ++i) {
    state_.x[i / kRansLanes][i % kRansLanes] = kRansLow + (free_words.empty() ? 0 : free_words[i]);
  }
  state_.set_mask = sets - 1;
  state_.next = buffer_.data() + buffer_.size();
}

void RansEncoder::Reserve(size_t bytes) {
  if (static_cast<size_t>(state_.next - buffer_.data()) >= bytes) return;
  const size_t written = buffer_.data() + buffer_.size() - state_.next;
  std::vector<uint8_t> larger(2 * buffer_.size() + bytes);
  uint8_t* next = larger.data() + larger.size() - written;
  std::copy_n(state_.next, written, next);
  buffer_ = std::move(larger);
  state_.next = next;
}

void RansEncoder::Encode(const EncodeTable& table, const uint8_t* symbols, size_t n) {
  if (n == 0 || table.order == SlotOrder::kSingle) return;
  assert(std::all_of(symbols, symbols + n, [&](uint8_t s) { return table.reciprocal[s] != 0; }));
  const EncodeKernel kernel = table.order == SlotOrder::kAlias16   ? kernels_.encode_alias16
                              : table.order == SlotOrder::kAlias32 ? kernels_.encode_alias32
                                                                   : kernels_.encode_plain;
  const size_t groups = n / kRansLanes;
  Reserve((groups + 1) * kGroupBytes);
  if (n % kRansLanes != 0) {
    EncodeRest(kernel, table, symbols + groups * kRansLanes, groups & state_.set_mask,
               n % kRansLanes);
  }
  kernel(state_, table, symbols, 0, groups);
}

// A lane that rests gets a state that gives no word, whatever its symbol is.
void RansEncoder::EncodeRest(EncodeKernel kernel, const EncodeTable& table, const uint8_t* symbols,
                             size_t set, size_t n) {
  uint32_t* x = state_.x[set];
  uint32_t saved[kRansLanes];
  std::copy_n(x, kRansLanes, saved);
  for (size_t i = n; i < kRansLanes; ++i) x[LaneOf(i)] = 0;
  uint8_t padded[kRansMaxSets * kRansLanes];
  std::fill(std::begin(padded), std::end(padded), symbols[0]);
  std::copy_n(symbols, n, padded + set * kRansLanes);
  kernel(state_, table, padded, set, set + 1);
  for (size_t i = n; i < kRansLanes; ++i) x[LaneOf(i)] = saved[LaneOf(i)];
}

std::span<const uint8_t> RansEncoder::Finish() {
  const size_t lanes = (state_.set_mask + 1) * kRansLanes;
  Reserve(lanes * sizeof(uint32_t));
  state_.next -= lanes * sizeof(uint32_t);
  for (size_t i = 0; i < lanes; ++i) {
    Store32(state_.x[i / kRansLanes][i % kRansLanes], state_.next + 4 * i);
  }
  return {state_.next, buffer_.data() + buffer_.size()};
}

}  // namespace tandem::kvstore::codec
