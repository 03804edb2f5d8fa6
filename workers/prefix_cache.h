// A prefill worker's way to KV that was computed before: names a prompt's chunks, loads those that
// are known anywhere, keeps new ones. Between the prefill loop and the KV store.
#pragma once

#include <boost/asio/io_context.hpp>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/request_context.h"
#include "kvstore/loading/context_loader.h"
#include "kvstore/store.h"
#include "workers/engine/engine.h"
#include "workers/kv_coder.h"
#include "workers/kv_metrics.h"

namespace tandem::workers {

/// What a request says of its KV.
struct CacheWishes {
  /// The coarsest level that it accepts; the configured floor holds besides.
  kvstore::Level floor = kvstore::Level::kQ4;
  /// Neither use what is cached nor keep anything.
  bool bypass = false;
  /// Who else holds chunks of its prompt.
  std::vector<kvstore::LoadRequest::Holder> holders;
  /// When the first token is due.
  absl::Time first_token_due = absl::InfiniteFuture();
  /// Data address of the node that new chunks are copied to; empty: none.
  std::string store_address;
};

/// Thread-safe.
class PrefixCache {
 public:
  struct Options {
    uint32_t chunk_tokens = 256;
    /// Bytes of KV that may wait to be encoded; more are not kept.
    uint64_t max_pending_bytes = uint64_t{256} << 20;
  };
  /// The engine, `store`, `coder`, `io` and `metrics` must outlive the object.
  PrefixCache(const Engine& engine, boost::asio::io_context& io, kvstore::Store* store,
              KvCoder* coder, KvMetrics* metrics, Options options);
  ~PrefixCache() { Stop(); }

  const Options& options() const { return options_; }
  const std::string& kv_namespace() const { return namespace_; }
  /// The coarsest level used for this request.
  kvstore::Level FloorFor(const CacheWishes& wishes) const {
    return std::min(coder_->floor(), wishes.floor);
  }

  /// The ids of the prompt's whole chunks; none when the model's KV cannot be cut into chunks.
  std::vector<kvstore::ChunkId> Ids(const std::string& tenant,
                                    std::span<const int32_t> tokens) const;
  /// How many chunks from the first on may be had, as far as is known without asking anybody.
  size_t Reach(std::span<const kvstore::ChunkId> ids, const CacheWishes& wishes) const;
  /// Begins to load `ids` from `first_chunk` on. `compute_after`: what remains to be computed when
  /// they are there.
  std::shared_ptr<kvstore::ContextLoad> Load(RequestContextPtr context,
                                             std::vector<kvstore::ChunkId> ids, size_t first_chunk,
                                             const CacheWishes& wishes,
                                             absl::Duration compute_after,
                                             std::function<void()> on_progress);
  /// Keeps a computed chunk, encoded once a level, in the background. `level`: the coarsest that
  /// the KV before it has come through.
  void Keep(const kvstore::ChunkId& id, std::shared_ptr<const kvstore::KvChunk> chunk,
            kvstore::Level level, const std::string& store_address);
  /// Whether Redis may know more than Reach.
  bool shared() const { return shared_; }

  /// Ends all loads; once the coder has stopped too, callbacks are not called any more.
  void Stop() { loader_->Stop(); }

 private:
  void Encode(const kvstore::ChunkId& id, const kvstore::KvChunk& chunk, kvstore::Level level,
              const std::string& store_address);

  const Options options_;
  kvstore::Store* const store_;
  KvCoder* const coder_;
  KvMetrics* const metrics_;
  const std::string namespace_;
  const bool shared_, opaque_;
  /// Levels that new chunks are kept at, from fine to coarse.
  std::vector<kvstore::Level> kept_levels_;
  std::atomic<uint64_t> pending_bytes_ = 0;
  std::unique_ptr<kvstore::ContextLoader> loader_;
};

}  // namespace tandem::workers
