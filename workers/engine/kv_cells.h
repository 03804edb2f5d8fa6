// How many cells of a unified KV cache are in use when sequences share some. libllama knows, but
// does not tell. For the engine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace tandem::workers {

/// Numbers cells by itself: which number stands for which of libllama's cells does not matter.
class KvCells {
 public:
  explicit KvCells(size_t n_sequences = 0) : held_(n_sequences) {}

  /// Cells that some sequence holds.
  uint64_t used() const { return users_.size() - free_.size(); }

  /// The sequence holds `n` cells from now on: new ones at its end, or the last ones no more.
  void Resize(size_t sequence, uint32_t n) {
    std::vector<uint32_t>& cells = held_[sequence];
    while (cells.size() > n) {
      if (--users_[cells.back()] == 0) free_.push_back(cells.back());
      cells.pop_back();
    }
    while (cells.size() < n) cells.push_back(NewCell());
  }

  /// `to`, which holds none, shares the first `n` of `from`. REQUIRES: it holds as many.
  void Share(size_t from, size_t to, uint32_t n) {
    held_[to].assign(held_[from].begin(), held_[from].begin() + n);
    for (const uint32_t cell : held_[to]) ++users_[cell];
  }

 private:
  uint32_t NewCell() {
    if (free_.empty()) {
      users_.push_back(1);
      return static_cast<uint32_t>(users_.size() - 1);
    }
    const uint32_t cell = free_.back();
    free_.pop_back();
    users_[cell] = 1;
    return cell;
  }

  /// By sequence, in the order of positions.
  std::vector<std::vector<uint32_t>> held_;
  /// By cell.
  std::vector<uint32_t> users_;
  std::vector<uint32_t> free_;
};

}  // namespace tandem::workers
