// Which nodes hold one chunk, in eight bytes as a rule: the values of ChunkDirectory's map.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace tandem::scheduler {

/// A set of (node, levels). Not thread-safe. Up to three holders lie in the object itself; more, as
/// of a system prompt that everybody has, on the heap.
class ChunkHolders {
 public:
  static constexpr int kNodeBits = 16, kLevelBits = 5;

  ChunkHolders() = default;
  ChunkHolders(ChunkHolders&& other) noexcept : word_(std::exchange(other.word_, 0)) {}
  ChunkHolders& operator=(ChunkHolders&& other) noexcept {
    std::swap(word_, other.word_);
    return *this;
  }
  ~ChunkHolders() {
    if (on_heap()) delete heap();
  }

  bool empty() const { return word_ == 0; }

  /// Calls `visit(node, levels)` for every holder.
  template <typename Visit>
  void ForEach(Visit&& visit) const {
    if (on_heap()) {
      for (const uint32_t holder : *heap()) visit(NodeOf(holder), LevelsOf(holder));
      return;
    }
    for (uint64_t rest = word_ >> 1; rest != 0; rest >>= kHolderBits) {
      const auto holder = static_cast<uint32_t>(rest & kHolderMask);
      visit(NodeOf(holder), LevelsOf(holder));
    }
  }

  /// All holders as they lie, when they are many, else nothing: equal lists are equal sets. Good
  /// until the next Set.
  std::span<const uint32_t> Many() const {
    return on_heap() ? std::span<const uint32_t>(*heap()) : std::span<const uint32_t>();
  }

  /// The node holds these levels now; 0: none. True when it held none before, or holds none any
  /// more.
  bool Set(uint16_t node, uint8_t levels) {
    uint32_t holders[kInline + 1];
    if (on_heap()) return SetOnHeap(node, levels);
    size_t n = 0, at = kInline;
    ForEach([&](uint16_t each, uint8_t had) {
      if (each == node) at = n;
      holders[n++] = Holder(each, had);
    });
    const bool was_here = at != kInline;
    if (was_here && levels != 0) {
      holders[at] = Holder(node, levels);
    } else if (was_here) {
      holders[at] = holders[--n];
    } else if (levels != 0) {
      holders[n++] = Holder(node, levels);
    }
    Assign(holders, n);
    return was_here ? levels == 0 : levels != 0;
  }

  /// Bytes besides the object itself.
  size_t HeapBytes() const {
    return on_heap() ? sizeof(*heap()) + heap()->capacity() * sizeof(uint32_t) : 0;
  }

 private:
  // A word: bit 0 is clear, then three times 21 bits, of which the first that is 0 ends the list (a
  // holder has levels, so it is not 0). Or bit 0 is set, and the rest points to a vector.
  static constexpr size_t kInline = 3;
  static constexpr int kHolderBits = kNodeBits + kLevelBits;
  static constexpr uint64_t kHolderMask = (uint64_t{1} << kHolderBits) - 1;
  static_assert(1 + kInline * kHolderBits <= 64);
  using Heap = std::vector<uint32_t>;

  static uint32_t Holder(uint16_t node, uint8_t levels) {
    return uint32_t{node} << kLevelBits | levels;
  }
  static uint16_t NodeOf(uint32_t holder) { return static_cast<uint16_t>(holder >> kLevelBits); }
  static uint8_t LevelsOf(uint32_t holder) { return holder & ((1u << kLevelBits) - 1); }

  bool on_heap() const { return (word_ & 1) != 0; }
  Heap* heap() const {
    return reinterpret_cast<Heap*>(static_cast<uintptr_t>(word_ & ~uint64_t{1}));
  }

  // REQUIRES: not on the heap.
  void Assign(const uint32_t* holders, size_t n) {
    if (n > kInline) {
      word_ = reinterpret_cast<uintptr_t>(new Heap(holders, holders + n)) | 1;
      return;
    }
    word_ = 0;
    for (size_t i = n; i-- > 0;) word_ = word_ << kHolderBits | holders[i];
    word_ <<= 1;
  }

  bool SetOnHeap(uint16_t node, uint8_t levels) {
    Heap& holders = *heap();
    const auto found = std::find_if(holders.begin(), holders.end(),
                                    [node](uint32_t holder) { return NodeOf(holder) == node; });
    if (found != holders.end() && levels != 0) {
      *found = Holder(node, levels);
      return false;
    }
    if (found == holders.end()) {
      if (levels != 0) holders.push_back(Holder(node, levels));
      return levels != 0;
    }
    *found = holders.back();
    holders.pop_back();
    if (holders.size() <= kInline) {
      const Heap few = std::move(holders);
      delete heap();
      word_ = 0;
      Assign(few.data(), few.size());
    }
    return true;
  }

  uint64_t word_ = 0;
};

}  // namespace tandem::scheduler
