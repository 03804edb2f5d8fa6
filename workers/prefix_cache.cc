#include "workers/prefix_cache.h"

#include <algorithm>

#include "base/clock.h"
#include "base/log.h"
#include "base/status.h"

namespace tandem::workers {

using kvstore::ChunkId;
using kvstore::KvChunk;
using kvstore::Level;

PrefixCache::PrefixCache(const Engine& engine, boost::asio::io_context& io, kvstore::Store* store,
                         KvCoder* coder, KvMetrics* metrics, Options options)
    : options_(std::move(options)),
      store_(store),
      coder_(coder),
      metrics_(metrics),
      namespace_(kvstore::KvNamespace(engine.identity())),
      shared_(store->has_shared_tier()),
      opaque_(engine.layout().opaque) {
  for (const Level level : kvstore::codec::kAllLevels) {
    if (((coder->encodings() >> kvstore::EncodingOf(level)) & 1) != 0)
      kept_levels_.push_back(level);
  }
  loader_ = kvstore::ContextLoader::Create(
      io, store, &coder->codec(),
      {.new_sink = [&engine](
                       uint32_t first_position,
                       uint32_t n_tokens) { return engine.NewSink(n_tokens, first_position); },
       .run = [coder](std::function<void()> job) { coder->Run(std::move(job)); },
       .observer = metrics});
}

std::vector<ChunkId> PrefixCache::Ids(const std::string& tenant,
                                      std::span<const int32_t> tokens) const {
  if (opaque_) return {};
  return kvstore::ChunkIds(namespace_, tenant, tokens, options_.chunk_tokens);
}

size_t PrefixCache::Reach(std::span<const ChunkId> ids, const CacheWishes& wishes) const {
  size_t reach = 0;
  const Level floor = FloorFor(wishes);
  const auto held = store_->Find(ids);
  for (size_t i = 0; i < held.size(); ++i) {
    if ((held[i].levels & ((2u << static_cast<int>(floor)) - 1)) != 0) reach = i + 1;
  }
  for (const auto& holder : wishes.holders) {
    reach = std::max<size_t>(reach, uint64_t{holder.first_chunk} + holder.n_chunks);
  }
  return std::min(reach, ids.size());
}

std::shared_ptr<kvstore::ContextLoad> PrefixCache::Load(
    RequestContextPtr context, std::vector<ChunkId> ids, size_t first_chunk,
    const CacheWishes& wishes, absl::Duration compute_after, std::function<void()> on_progress) {
  return loader_->Start({.context = std::move(context),
                         .ids = std::move(ids),
                         .chunk_tokens = options_.chunk_tokens,
                         .first_chunk = first_chunk,
                         .floor = FloorFor(wishes),
                         .holders = wishes.holders,
                         .ready_by = wishes.first_token_due - compute_after,
                         .on_progress = std::move(on_progress)});
}

void PrefixCache::Keep(const ChunkId& id, std::shared_ptr<const KvChunk> chunk, Level level,
                       const std::string& store_address) {
  const uint64_t bytes = chunk->bytes.size();
  if (pending_bytes_ + bytes > options_.max_pending_bytes) return metrics_->KeepDropped();
  pending_bytes_ += bytes;
  coder_->Run([this, id, chunk = std::move(chunk), level, store_address, bytes] {
    Encode(id, *chunk, level, store_address);
    pending_bytes_ -= bytes;
  });
}

void PrefixCache::Encode(const ChunkId& id, const KvChunk& chunk, Level level,
                         const std::string& store_address) {
  const uint8_t held = store_->Find({&id, 1})[0].levels;
  for (const Level kept : kept_levels_) {
    if (kept < level || ((held >> static_cast<int>(kept)) & 1) != 0) continue;
    const Stopwatch watch;
    auto payload = coder_->EncodeNow(chunk, kept);
    if (!payload.ok()) {
      spdlog::error("chunk not kept level={} error=\"{}\"", kvstore::codec::LevelName(kept),
                    payload.status().ToString());
      continue;
    }
    const auto sealed = kvstore::StoredChunk::Seal({.id = id, .level = kept}, chunk.first_position,
                                                   chunk.n_tokens, *payload);
    metrics_->ChunkKept(kept, sealed->bytes().size(), watch.seconds());
    store_->Put(sealed);
    if (!store_address.empty()) loader_->Give(store_address, sealed);
  }
}

}  // namespace tandem::workers
