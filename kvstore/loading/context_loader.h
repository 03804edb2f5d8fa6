// Brings the cached prefix of a prompt to a worker: from its own store, from other nodes and from
// Redis, chunk by chunk, each at the level that the adapter chooses, decoded while the next is on
// the wire; and lets the worker's engine compute from the front meanwhile, wherever that is sooner.
// Used by the prefill loop.
//
// Chunks are asked for from the last to the first, as each one's KV is complete in itself, while
// the engine computes from the first on: the two meet. What a source loses, the engine computes.
#pragma once

#include <boost/asio/io_context.hpp>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "base/request_context.h"
#include "kvstore/chunk.h"
#include "kvstore/codec/codec.h"
#include "kvstore/loading/adapter.h"
#include "kvstore/store.h"

namespace tandem::kvstore {

/// Hears what happens; calls come from any thread and must not block.
class LoadObserver {
 public:
  virtual ~LoadObserver() = default;
  /// A chunk was decoded and is ready. `bytes` of its envelope.
  virtual void ChunkLoaded(Origin origin, Level level, uint64_t bytes) = 0;
  /// The adapter had a choice and took the text.
  virtual void TextChosen() = 0;
  /// A chunk was damaged, or could not be decoded here; it is computed instead.
  virtual void ChunkRefused(Origin origin, const absl::Status& why) = 0;
  /// A peer failed; what it had is computed instead.
  virtual void PeerFailed(const absl::Status& why) = 0;
  /// A peer's link, as a load measured it.
  virtual void LinkMeasured(const std::string& address, double bytes_per_s) = 0;
};

struct LoadRequest {
  RequestContextPtr context;
  /// The prompt's chunks that may be loaded, in order from its start.
  std::vector<ChunkId> ids;
  uint32_t chunk_tokens = 0;
  /// Chunks before this one are there already.
  size_t first_chunk = 0;
  /// No coarser level is taken.
  Level floor = Level::kLossless;
  /// Other nodes that hold some of them: address, first chunk, number of chunks.
  struct Holder {
    std::string address;
    uint32_t first_chunk = 0, n_chunks = 0;
  };
  std::vector<Holder> holders;
  /// When the context should be ready.
  absl::Time ready_by;
  /// Called, on any thread, when something has changed for the better: see ContextLoad.
  std::function<void()> on_progress;
};

/// What computing a chunk from its text would take now, in seconds: each attends to all before it,
/// so later ones take longer.
struct TextCost {
  /// Chunk 0, and how much more for each later one. REQUIRES: first_s > 0.
  TextCost(double first_s, double more_s = 0) : first_s(first_s), more_s(more_s) {}
  double SecondsFor(size_t index) const { return first_s + more_s * static_cast<double>(index); }
  double first_s, more_s;
};

/// One prompt's load. Thread-safe. A chunk's states:
///
///   sought ── nobody has it ──> absent        sought, held ── Next prefers text ──> absent
///   sought ── found ──> held ── asked for ──> coming ── decoded ──> ready ── Take ──> taken
///   coming ── damaged, source lost ──> absent
class ContextLoad {
 public:
  virtual ~ContextLoad() = default;
  enum class Next { kCompute, kWait, kReady };
  /// What to do about chunk `index`, the first that the engine lacks: take it, compute it, or wait
  /// for it. After kCompute the chunk is the caller's.
  virtual Next Decide(size_t index, const TextCost& text) = 0;
  /// True when nobody has chunk `index`: then it is the caller's.
  virtual bool TakeIfAbsent(size_t index) = 0;
  /// Chunks in all, those before first_chunk included.
  virtual size_t size() const = 0;
  struct Loaded {
    std::unique_ptr<KvSink> kv;
    Level level = Level::kLossless;
    Origin origin = Origin::kMemory;
    uint64_t bytes = 0;
  };
  /// Takes chunk `index` over. REQUIRES: Decide said kReady.
  virtual Loaded Take(size_t index) = 0;
  /// Ends it; what is still coming is dropped.
  virtual void Stop() = 0;
};

class ContextLoader {
 public:
  struct Options {
    /// Where a loaded chunk's KV goes: memory for `n_tokens` from `first_position`.
    std::function<std::unique_ptr<KvSink>(uint32_t first_position, uint32_t n_tokens)> new_sink;
    /// Runs a job on another thread: decoding.
    std::function<void(std::function<void()>)> run;
    absl::Duration connect_timeout = absl::Seconds(2);
    /// What a link is taken for before anything came over it.
    double initial_bytes_per_s = 125e6;
    LoadObserver* observer = nullptr;
  };
  /// `store` may be null. `io` is run by one thread; `store`, `codec` and the observer outlive the
  /// loader.
  static std::unique_ptr<ContextLoader> Create(boost::asio::io_context& io, Store* store,
                                               const codec::Codec* codec, Options options);
  virtual ~ContextLoader() = default;

  /// Begins a load; never blocks.
  virtual std::shared_ptr<ContextLoad> Start(LoadRequest request) = 0;
  /// Copies a chunk to another node's store, in the background; dropped when too much waits.
  virtual void Give(const std::string& address, StoredChunkPtr chunk) = 0;
  /// Stops all loads, closes every connection, waits until nothing runs.
  virtual void Stop() = 0;
};

}  // namespace tandem::kvstore
