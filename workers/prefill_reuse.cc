// The prefill loop's part that spares computing: prefixes found in the engine itself, and chunks
// loaded from the cache while others are computed.
#include <algorithm>

#include "base/log.h"
#include "base/status.h"
#include "workers/prefill_loop.h"

namespace tandem::workers {
namespace {

/// A shorter common prefix is not worth the look.
constexpr uint32_t kLeastShared = 32;
/// What a token is taken for before the first step was measured: slow, so that loads are waited
/// for.
constexpr double kUnmeasuredSecondsPerToken = 1e-3;

}  // namespace

void PrefillLoop::FindPrefix(Active& active) {
  const PrefillJob& job = active.job;
  const auto n = static_cast<uint32_t>(job.tokens.size());
  active.may_compute = n;
  if (cache_ == nullptr || job.cache.bypass) return MakeRoom(&active, n);
  active.ids = cache_->Ids(job.context->tenant(), job.tokens);
  active.from_cache.assign(active.ids.size(), false);
  // The last token is always computed: somebody must give the logits after it.
  std::vector<kvstore::ChunkId> loadable(
      active.ids.begin(),
      active.ids.begin() + std::min<size_t>(active.ids.size(), (n - 1) / options_.chunk_tokens));
  auto match = retained_.Find(job.context->tenant(), job.tokens, cache_->FloorFor(job.cache));
  uint32_t shared = match ? std::min(match->n_tokens, n - 1) : 0;
  const size_t reach = cache_->Reach(loadable, job.cache);
  const bool more = reach * options_.chunk_tokens > shared ||
                    (cache_->shared() && loadable.size() * options_.chunk_tokens > shared);
  // Chunks are loaded from a chunk's beginning on.
  if (more) shared -= shared % options_.chunk_tokens;
  if (shared >= kLeastShared && engine_->Fork(match->sequence, active.sequence, shared).ok()) {
    active.computed = active.origins.engine_tokens = shared;
    active.origins.level = match->level;
    for (size_t i = 0; i < shared / options_.chunk_tokens; ++i) active.from_cache[i] = true;
  }
  MakeRoom(&active, n - active.computed);
  const size_t first = active.computed / options_.chunk_tokens;
  if (!more || first >= loadable.size()) return;
  active.may_compute = active.computed;
  const size_t loadable_tokens = loadable.size() * options_.chunk_tokens;
  const double rest_s = ComputeSeconds(loadable_tokens, n - loadable_tokens);
  active.load = cache_->Load(job.context, std::move(loadable), first, job.cache,
                             absl::Seconds(rest_s), [this] {
                               std::lock_guard lock(mutex_);
                               progress_ = true;
                               wake_.notify_one();
                             });
}

double PrefillLoop::ComputeSeconds(size_t first, size_t n_tokens) const {
  const scheduler::LatencyModel model = speed_->model();
  return model.prefill_samples > 0 ? model.PromptSeconds(n_tokens, first) : 0;
}

kvstore::TextCost PrefillLoop::ChunkCost() const {
  const uint32_t n = options_.chunk_tokens;
  const auto sharers = static_cast<double>(computing_.size());
  const double first_s = ComputeSeconds(0, n);
  if (first_s == 0) return kUnmeasuredSecondsPerToken * n * sharers;
  return {first_s * sharers, (ComputeSeconds(n, n) - first_s) * sharers};
}

absl::Status PrefillLoop::Advance(Active& active) {
  const auto n = static_cast<uint32_t>(active.job.tokens.size());
  while (active.load != nullptr && active.computed == active.may_compute) {
    const size_t index = active.computed / options_.chunk_tokens;
    if (index >= active.load->size()) {
      active.load = nullptr;
      active.may_compute = n;
      break;
    }
    switch (active.load->Decide(index, ChunkCost())) {
      case kvstore::ContextLoad::Next::kReady:
        RETURN_IF_ERROR(TakeChunk(active, index));
        break;
      case kvstore::ContextLoad::Next::kWait:
        return absl::OkStatus();
      case kvstore::ContextLoad::Next::kCompute:
        // Together with those behind it that nobody has: full steps are faster.
        size_t end = index + 1;
        while (end < active.load->size() && active.load->TakeIfAbsent(end)) ++end;
        active.may_compute = static_cast<uint32_t>(end) * options_.chunk_tokens;
        if (end == active.load->size()) active.may_compute = n;
        break;
    }
  }
  return absl::OkStatus();
}

absl::Status PrefillLoop::TakeChunk(Active& active, size_t index) {
  const kvstore::ContextLoad::Loaded loaded = active.load->Take(index);
  const auto& kv = dynamic_cast<const Engine::IncomingKv&>(*loaded.kv);
  RETURN_IF_ERROR(engine_->Append(active.sequence, kv));
  active.computed += options_.chunk_tokens;
  active.may_compute = active.computed;
  active.from_cache[index] = true;
  active.origins.loaded_tokens[static_cast<size_t>(loaded.origin)] += options_.chunk_tokens;
  active.origins.level = std::max(active.origins.level, loaded.level);
  return PublishComputed(active, false);
}

void PrefillLoop::MakeRoom(const Active* newest, uint64_t n_tokens) {
  uint64_t wanted = n_tokens;
  for (const auto& active : computing_) {
    if (active.get() == newest) continue;
    wanted += active->job.tokens.size() - engine_->Length(active->sequence);
  }
  while (free_sequences_.empty() ||
         engine_->held_tokens() + wanted > engine_->options().kv_tokens) {
    const auto sequence = retained_.DropOldest();
    if (!sequence) return;
    engine_->Free(*sequence);
    free_sequences_.push_back(*sequence);
  }
}

bool PrefillLoop::Retain(Active& active) {
  const bool room = engine_->options().max_sequences > options_.max_sequences;
  if (cache_ == nullptr || !room || active.job.cache.bypass || engine_->layout().opaque ||
      active.computed != active.job.tokens.size()) {
    return false;
  }
  retained_.Add({.sequence = active.sequence,
                 .tenant = active.job.context->tenant(),
                 .tokens = active.job.tokens,
                 .level = active.origins.level});
  return true;
}

void PrefillLoop::CountOrigins(const Active& active) {
  const PromptOrigins& origins = active.origins;
  kv_metrics_->PromptTokens("engine", origins.engine_tokens);
  for (size_t i = 0; i < origins.loaded_tokens.size(); ++i) {
    kv_metrics_->PromptTokens(kvstore::OriginName(static_cast<kvstore::Origin>(i)).data(),
                              origins.loaded_tokens[i]);
  }
  kv_metrics_->PromptTokens("computed", active.job.tokens.size() - origins.reused());
  kv_metrics_->TimeSaved(origins.saved_s);
}

}  // namespace tandem::workers
