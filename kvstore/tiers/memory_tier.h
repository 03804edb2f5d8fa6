// Chunks in this process's memory, within a limit of bytes.
#pragma once

#include <functional>
#include <memory>

#include "kvstore/tiers/tier.h"

namespace tandem::kvstore {

/// What an entry takes besides its chunk's bytes: the chunk's object, the table and the order.
inline constexpr uint64_t kMemoryEntryOverhead = 320;

/// Eviction weighs recency, frequency, size and cost to recompute (GDSF: L. Cherkasova, "Improving
/// WWW Proxies Performance with Greedy-Dual-Size-Frequency Caching Policy", HPL-98-69): an entry's
/// priority is the clock at its last use plus uses × cost / bytes, and the clock moves to the
/// priority of what is evicted. The cost is the number of tokens, since all take the same time; the
/// quotient is rounded to half a binary order, so that chunks of one kind are equals even
/// if one compressed a little better. New entries live in a probation segment until they are used
/// again, which may take a fifth of the limit once memory is full, so a scan of what is used once
/// pushes out only its like; each segment has its own clock. Among equals the deepest position goes
/// first: a chunk is of no use without those before it.
struct MemoryTierOptions {
  uint64_t limit_bytes = 1 << 30;
  /// Called, without locks held, with each entry that was evicted: it may fall to another tier.
  std::function<void(StoredChunkPtr)> on_evicted;
};

/// Get, Put and Erase take a few microseconds, Get besides the time of a checksum over the chunk.
/// Entries count with their bytes and kMemoryEntryOverhead.
std::unique_ptr<Tier> NewMemoryTier(MemoryTierOptions options);

}  // namespace tandem::kvstore
