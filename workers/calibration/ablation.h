// Which parts of the method a profile is made without, to see what each of them brings: for
// `./dev bench ablation`. Read by the profile builder.
#pragma once

#include <cstdint>
#include <optional>

#include "kvstore/codec/profile.h"

namespace tandem::workers {

/// The default leaves nothing out.
struct Ablation {
  /// Keys are coded without their rotation.
  bool unrotate = true;
  /// Channels that a transform may mix.
  enum class Mixing { kNone, kHead, kBlock };
  Mixing mixing = Mixing::kBlock;
  /// Errors are weighted by the harm that they do within a block …
  bool metric = true;
  /// … and planes have steps by theirs.
  bool weigh_planes = true;
  /// Symbol tables of the library; at least 8.
  size_t max_tables = 64;
  /// Exact tokens at the start; chosen by their effect when absent.
  std::optional<uint32_t> sink_tokens;
  /// For all blocks; chosen by bits when absent.
  std::optional<kvstore::codec::Prediction> prediction;
};

}  // namespace tandem::workers
