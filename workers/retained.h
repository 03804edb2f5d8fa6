// Prompts whose KV stays in the prefill engine after they are done, for as long as nobody needs the
// room: the nearest place where a prefix can be found. Owned by the prefill loop.
#pragma once

#include <algorithm>
#include <cstdint>
#include <list>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kvstore/codec/level.h"

namespace tandem::workers {

/// Not thread-safe.
class RetainedPrompts {
 public:
  struct Prompt {
    /// The engine's sequence that holds it.
    int32_t sequence = 0;
    std::string tenant;
    std::vector<int32_t> tokens;
    /// The coarsest level that its KV has come through.
    kvstore::codec::Level level = kvstore::codec::Level::kLossless;
  };
  struct Match {
    int32_t sequence = 0;
    uint32_t n_tokens = 0;
    kvstore::codec::Level level = kvstore::codec::Level::kLossless;
  };

  /// The newest comes first.
  void Add(Prompt prompt) { prompts_.push_front(std::move(prompt)); }

  /// The tenant's prompt that has most of the first tokens in common; it counts as used now.
  /// `floor`: one that came through a coarser level is of no use.
  std::optional<Match> Find(const std::string& tenant, std::span<const int32_t> tokens,
                            kvstore::codec::Level floor) {
    auto best = prompts_.end();
    size_t longest = 0;
    for (auto it = prompts_.begin(); it != prompts_.end(); ++it) {
      if (it->tenant != tenant || it->level > floor) continue;
      const auto [mine, theirs] =
          std::mismatch(tokens.begin(), tokens.end(), it->tokens.begin(), it->tokens.end());
      const auto n = static_cast<size_t>(mine - tokens.begin());
      if (n <= longest) continue;
      longest = n;
      best = it;
    }
    if (best == prompts_.end()) return std::nullopt;
    prompts_.splice(prompts_.begin(), prompts_, best);
    return Match{.sequence = best->sequence,
                 .n_tokens = static_cast<uint32_t>(longest),
                 .level = best->level};
  }

  /// Takes out the one that was not used for longest; its sequence is the caller's to free.
  std::optional<int32_t> DropOldest() {
    if (prompts_.empty()) return std::nullopt;
    const int32_t sequence = prompts_.back().sequence;
    prompts_.pop_back();
    return sequence;
  }

  size_t size() const { return prompts_.size(); }

 private:
  std::list<Prompt> prompts_;
};

}  // namespace tandem::workers
