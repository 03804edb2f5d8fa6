// What a router knows of who holds which chunk: fed with the nodes' chunk events, asked for the
// longest cached prefix of a prompt. No I/O.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <span>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "kvstore/chunk.h"
#include "scheduler/chunk_holders.h"
#include "tandem/v1/cluster.pb.h"

namespace tandem::scheduler {

/// Where the longest cached prefix of a prompt lies.
struct CachedPrefix {
  /// Chunks in a row that one node holds.
  struct Span {
    std::string worker_id;
    uint32_t first_chunk = 0, n_chunks = 0;
    bool operator==(const Span&) const = default;
  };
  struct Node {
    std::string worker_id;
    /// Chunks that it holds from the first on, without a gap.
    uint32_t leading = 0;
    /// Chunks of the prefix that it holds.
    uint32_t held = 0;
    bool operator==(const Node&) const = default;
  };
  /// Leading chunks that somebody holds.
  uint32_t n_chunks = 0;
  /// They cover the prefix, in order, and are as few as can be. Nodes that would do equally well
  /// draw lots, anew in each call.
  std::vector<Span> spans;
  /// Every node that holds any of the prefix, the longest `leading` first, then the most `held`.
  std::vector<Node> nodes;
};

/// How much of a prompt's beginning one node holds.
struct LeadingChunks {
  /// As ChunkDirectory::NumberOf tells it.
  uint16_t node = 0;
  uint32_t n_chunks = 0;
};

/// Thread-safe. Chunks are known by ChunkId::Hash: 64 bits, so two of a million are taken for the
/// same one with a probability of 3 in 10^8, and then a fetch finds nothing. What is believed of a
/// node may be late by a report interval.
///
/// Chunks lie in shards with a mutex each, held for one chunk at a time (about 0.1 µs) or to sweep
/// a shard: readers hardly meet writers. A chunk costs 20 to 39 bytes with up to three holders.
class ChunkDirectory {
 public:
  /// More nodes than these at once are not kept: 65,536.
  static constexpr size_t kMaxNodes = size_t{1} << ChunkHolders::kNodeBits;

  ChunkDirectory();
  ~ChunkDirectory();

  /// Takes over what a node tells. False: entries were missed before this message, or it is
  /// malformed; it was ignored, as later ones will be until a snapshot comes, which must be asked
  /// for.
  bool Apply(const std::string& worker_id, const v1::ChunkEvents& events);
  /// The node is gone, and nobody will find anything there from now on. Sweeps all chunks.
  void Forget(const std::string& worker_id);

  /// The longest prefix of `ids` (a prompt's chunks, in order) of which every chunk is held by some
  /// node at `floor` or a finer level.
  CachedPrefix Find(std::span<const kvstore::ChunkId> ids, kvstore::Level floor) const;

  /// Every node that holds the first chunks of `ids` at `floor` or finer, and how many of them
  /// without a gap; in no order. Costs about 2 ns for each holder of each chunk.
  std::vector<LeadingChunks> Leading(std::span<const kvstore::ChunkId> ids,
                                     kvstore::Level floor) const;
  /// The node's number, its own for as long as it is known; none before its first snapshot.
  std::optional<uint16_t> NumberOf(const std::string& worker_id) const;

  /// Chunks that any node holds.
  size_t size() const { return size_; }
  /// Chunks that this node holds; 0 for one that is not known.
  uint64_t ChunksOf(const std::string& worker_id) const;
  /// Bytes of memory, about. Looks at every chunk: not for every day.
  size_t MemoryBytes() const;

 private:
  struct Node;
  /// Apart by a cache line, so that locking one does not slow its neighbours.
  struct alignas(64) Shard {
    mutable std::mutex mutex;
    absl::flat_hash_map<uint64_t, ChunkHolders> chunks;  // guarded by mutex
  };
  // By bits that the map itself uses least; small enough that a sweep or a growing map holds its
  // mutex for well below a millisecond at millions of chunks.
  static constexpr size_t kShards = 256;

  const Shard& ShardOf(uint64_t id_hash) const { return shards_[id_hash % kShards]; }
  Shard& ShardOf(uint64_t id_hash) { return shards_[id_hash % kShards]; }
  /// The node, made known when `may_add`; else null.
  std::shared_ptr<Node> NodeOf(const std::string& worker_id, bool may_add);
  // These want the node's mutex held.
  void Set(Node& node, uint64_t id_hash, uint8_t levels);
  void Sweep(Node& node);

  std::array<Shard, kShards> shards_;
  std::atomic<size_t> size_{0};
  mutable std::atomic<uint32_t> turn_{0};
  mutable std::shared_mutex nodes_mutex_;
  // Guarded by nodes_mutex_.
  absl::flat_hash_map<std::string, std::shared_ptr<Node>> node_of_id_;
  std::vector<std::shared_ptr<Node>> node_of_number_;  // null: nobody, or somebody forgotten
  std::vector<uint16_t> free_numbers_;
};

}  // namespace tandem::scheduler
