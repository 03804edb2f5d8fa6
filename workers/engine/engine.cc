// The engine proper: a context with its bookkeeping. Checks everything that libllama would answer
// with an abort.
#include "workers/engine/engine.h"

#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "workers/engine/context.h"
#include "workers/engine/identity.h"
#include "workers/engine/incoming_kv.h"
#include "workers/engine/kv_cells.h"
#include "workers/engine/self_check.h"
#include "workers/engine/sequence_state.h"

namespace tandem::workers {
namespace {

/// The context that the options ask for. Prefill: one id more than sequences, to extract through.
ContextShape ShapeOf(const EngineOptions& options, bool opaque) {
  const bool prefill = options.use == EngineOptions::Use::kPrefill;
  // libllama rounds up to this; asking for the round number keeps its other limits in step.
  constexpr uint64_t kRounding = 256;
  const auto round_up = [](uint64_t n) { return (n + kRounding - 1) / kRounding * kRounding; };
  ContextShape shape;
  shape.unified = prefill || opaque;
  shape.n_sequences = options.max_sequences + (prefill && !opaque ? 1 : 0);
  shape.n_ctx = static_cast<uint32_t>(shape.unified ? round_up(options.kv_tokens)
                                                    : round_up(options.context_tokens) *
                                                          options.max_sequences);
  shape.step_tokens = options.step_tokens;
  shape.all_logits = options.all_logits;
  return shape;
}

/// Their KV has one form, and one self-check tells of both.
bool SameCache(const EngineOptions& a, const EngineOptions& b) {
  return a.k_type == b.k_type && a.v_type == b.v_type && a.flash_attention == b.flash_attention &&
         a.force_opaque == b.force_opaque;
}

/// libllama clears the cache when it makes it, so too large a cache would not fail but have the
/// process killed.
absl::Status CheckMemoryRoom(const kvstore::KvLayout& layout, const ContextShape& shape) {
  const uint64_t memory = static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGE_SIZE);
  const uint64_t cache = layout.BytesPerToken() * shape.n_ctx;
  if (llama_supports_gpu_offload() || cache <= memory) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat("a KV cache of ", shape.n_ctx, " tokens takes ",
                                                   cache >> 20, " MiB, this machine has ",
                                                   memory >> 20, " MiB"));
}

}  // namespace

struct Engine::Impl {
  std::shared_ptr<ComputeThreads> compute_threads;  // outlives the context
  ContextPtr context;
  MemoryKind memory_kind;
  ContextShape shape;
  std::unique_ptr<StepBatch> batch;
  /// Tokens held by each sequence.
  std::vector<uint32_t> lengths;
  KvCells cells;
  /// For each item of the last Step its rows of logits, and the last of them; empty for none.
  std::vector<std::span<const float>> all_logits, logits;
  std::shared_ptr<BufferPool> pool = std::make_shared<BufferPool>();

  llama_memory_t memory() const { return llama_get_memory(context.get()); }
  bool Knows(int32_t sequence) const {
    return sequence >= 0 && static_cast<size_t>(sequence) < lengths.size();
  }
  void SetLength(int32_t sequence, uint32_t n) {
    cells.Resize(sequence, n);
    lengths[sequence] = n;
  }
  void Drop(int32_t sequence) {
    llama_memory_seq_rm(memory(), sequence, -1, -1);
    SetLength(sequence, 0);
  }

  /// A whole sequence's state in chunks; one when the memory is opaque.
  absl::StatusOr<std::vector<kvstore::KvChunk>> Split(std::span<const uint8_t> state,
                                                      uint32_t n_tokens,
                                                      uint32_t chunk_tokens) const;
  /// Remembers where the logits of a computed item lie. `last_row`: its last token in the batch.
  void KeepLogits(size_t index, const StepItem& item, int32_t last_row, size_t vocabulary_size);
  absl::Status CheckSequence(int32_t sequence) const;
  /// RESOURCE_EXHAUSTED unless there is room for so many more tokens in place of `replaced`.
  absl::Status CheckRoom(uint32_t n_tokens, uint32_t replaced, const EngineOptions& options) const;
  absl::Status CheckItem(const StepItem& item, const EngineOptions& options,
                         int32_t vocabulary_size) const;
  absl::Status CheckStep(std::span<const StepItem> items, const EngineOptions& options,
                         int32_t vocabulary_size) const;
};

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(std::shared_ptr<const Model> model,
                                                       const EngineOptions& options,
                                                       const Engine* sibling) {
  RETURN_IF_ERROR(CheckOptions(*model, options));
  ASSIGN_OR_RETURN(const CacheSettings settings, ParseCacheSettings(*model, options));
  std::unique_ptr<Engine> engine(new Engine());
  engine->impl_ = std::make_unique<Impl>();
  engine->model_ = std::move(model);
  Impl& impl = *engine->impl_;
  const bool alike = sibling != nullptr && sibling->model_ == engine->model_ &&
                     SameCache(sibling->options_, options);
  if (alike && sibling->options_.threads == options.threads) {
    impl.compute_threads = sibling->impl_->compute_threads;
  } else {
    impl.compute_threads = std::make_shared<ComputeThreads>(options.threads);
  }
  if (alike) {
    impl.memory_kind = sibling->impl_->memory_kind;
  } else {
    ASSIGN_OR_RETURN(impl.memory_kind, CheckMemory(*engine->model_, settings, *impl.compute_threads,
                                                   options.force_opaque));
  }
  if (impl.memory_kind.opaque && !alike) {
    spdlog::info("engine moves KV as whole states model={} reason=\"{}\"", engine->model_->name(),
                 impl.memory_kind.reason);
  }
  if (options.context_tokens > engine->model_->training_context_tokens() && !alike) {
    spdlog::warn(
        "engine context is longer than the model was trained for context_tokens={} "
        "trained={}",
        options.context_tokens, engine->model_->training_context_tokens());
  }
  engine->layout_ = LayoutOf(impl.memory_kind);
  engine->identity_ = IdentityOf(*engine->model_, settings, impl.memory_kind);

  EngineOptions& effective = engine->options_ = options;
  if (options.use == EngineOptions::Use::kDecode || options.kv_tokens == 0) {
    effective.kv_tokens = uint64_t{options.context_tokens} * options.max_sequences;
  }
  effective.step_tokens =
      static_cast<uint32_t>(std::min<uint64_t>(options.step_tokens, effective.kv_tokens));
  impl.shape = ShapeOf(effective, impl.memory_kind.opaque);
  RETURN_IF_ERROR(CheckMemoryRoom(engine->layout_, impl.shape));
  ASSIGN_OR_RETURN(impl.context,
                   MakeContext(*engine->model_, settings, impl.shape, *impl.compute_threads));
  if (llama_n_ctx_seq(impl.context.get()) < options.context_tokens ||
      llama_n_batch(impl.context.get()) < effective.step_tokens) {
    return absl::InternalError("libllama made a smaller context than it was asked for");
  }
  impl.batch = std::make_unique<StepBatch>(effective.step_tokens);
  impl.lengths.assign(options.max_sequences, 0);
  impl.cells = KvCells(options.max_sequences);
  return engine;
}

Engine::~Engine() = default;

absl::Status Engine::Impl::CheckSequence(int32_t sequence) const {
  if (Knows(sequence)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("there is no sequence ", sequence, "; ids are 0 to ", lengths.size() - 1));
}

absl::Status Engine::Impl::CheckRoom(uint32_t n_tokens, uint32_t replaced,
                                     const EngineOptions& options) const {
  if (n_tokens <= options.kv_tokens - cells.used() + replaced) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat("no room for the KV of ", n_tokens,
                                                   " tokens with ", cells.used(), " of ",
                                                   options.kv_tokens, " in use"));
}

absl::Status Engine::Impl::CheckItem(const StepItem& item, const EngineOptions& options,
                                     int32_t vocabulary_size) const {
  RETURN_IF_ERROR(CheckSequence(item.sequence));
  const uint32_t held = lengths[item.sequence];
  if (item.tokens.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("no tokens for sequence ", item.sequence));
  }
  if (item.want_all_logits && !options.all_logits) {
    return absl::InvalidArgumentError("this engine has no room for the logits of every token");
  }
  if (item.first_position < 0 || static_cast<uint32_t>(item.first_position) != held) {
    return absl::InvalidArgumentError(absl::StrCat("tokens of sequence ", item.sequence,
                                                   " begin at position ", item.first_position,
                                                   ", but it holds ", held));
  }
  if (item.tokens.size() > options.context_tokens - held) {
    return absl::OutOfRangeError(
        absl::StrCat("sequence ", item.sequence, " would hold ", held + item.tokens.size(),
                     " tokens, the context has room for ", options.context_tokens));
  }
  for (int32_t token : item.tokens) {
    if (token < 0 || token >= vocabulary_size) {
      return absl::InvalidArgumentError(absl::StrCat("token ", token, " of sequence ",
                                                     item.sequence, " is not in the vocabulary of ",
                                                     vocabulary_size));
    }
  }
  return absl::OkStatus();
}

absl::Status Engine::Impl::CheckStep(std::span<const StepItem> items, const EngineOptions& options,
                                     int32_t vocabulary_size) const {
  size_t n_tokens = 0;
  std::vector<bool> seen(lengths.size(), false);
  for (const StepItem& item : items) {
    RETURN_IF_ERROR(CheckItem(item, options, vocabulary_size));
    if (seen[item.sequence]) {
      return absl::InvalidArgumentError(
          absl::StrCat("sequence ", item.sequence, " is in the step twice"));
    }
    seen[item.sequence] = true;
    n_tokens += item.tokens.size();
  }
  if (n_tokens < 1 || n_tokens > options.step_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("a step of ", n_tokens, " tokens; it can have 1 to ", options.step_tokens));
  }
  if (n_tokens > options.kv_tokens - cells.used()) {
    return absl::ResourceExhaustedError(absl::StrCat("the KV is full: ", n_tokens,
                                                     " tokens are too many with ", cells.used(),
                                                     " of ", options.kv_tokens, " in use"));
  }
  return absl::OkStatus();
}

absl::Status Engine::Step(std::span<const StepItem> items) {
  Impl& impl = *impl_;
  impl.logits.clear();
  impl.all_logits.clear();
  RETURN_IF_ERROR(impl.CheckStep(items, options_, static_cast<int32_t>(model_->vocabulary_size())));
  impl.logits.resize(items.size());
  impl.all_logits.resize(items.size());
  impl.batch->Clear();
  std::vector<int32_t> last_rows;
  last_rows.reserve(items.size());
  for (const StepItem& item : items) {
    int32_t row = 0;
    for (size_t i = 0; i < item.tokens.size(); ++i) {
      const bool last = i + 1 == item.tokens.size();
      row = impl.batch->Add(item.tokens[i], item.first_position + static_cast<int32_t>(i),
                            item.sequence, item.want_all_logits || (item.want_logits && last));
    }
    last_rows.push_back(row);
  }
  const absl::Status computed = impl.batch->Decode(impl.context.get());
  if (absl::IsResourceExhausted(computed)) return computed;
  for (size_t i = 0; i < items.size(); ++i) {
    const int32_t sequence = items[i].sequence;
    if (!computed.ok()) {
      const int32_t last = llama_memory_seq_pos_max(impl.memory(), sequence);
      impl.SetLength(sequence, static_cast<uint32_t>(last + 1));
      continue;
    }
    impl.SetLength(sequence,
                   impl.lengths[sequence] + static_cast<uint32_t>(items[i].tokens.size()));
    impl.KeepLogits(i, items[i], last_rows[i], model_->vocabulary_size());
  }
  return computed;
}

void Engine::Impl::KeepLogits(size_t index, const StepItem& item, int32_t last_row,
                              size_t vocabulary_size) {
  if (!item.want_logits && !item.want_all_logits) return;
  const float* last = llama_get_logits_ith(context.get(), last_row);
  if (last == nullptr) return;
  if (item.want_logits) logits[index] = {last, vocabulary_size};
  if (!item.want_all_logits) return;
  // libllama sorts its rows by their place in the batch, in which an item's tokens lie together.
  const size_t n = item.tokens.size();
  all_logits[index] = {last - (n - 1) * vocabulary_size, n * vocabulary_size};
}

std::span<const float> Engine::Logits(size_t index) const {
  return index < impl_->logits.size() ? impl_->logits[index] : std::span<const float>();
}

std::span<const float> Engine::AllLogits(size_t index) const {
  return index < impl_->all_logits.size() ? impl_->all_logits[index] : std::span<const float>();
}

absl::StatusOr<kvstore::KvChunk> Engine::Extract(int32_t sequence, uint32_t first, uint32_t n) {
  if (options_.use != EngineOptions::Use::kPrefill) {
    return absl::FailedPreconditionError("only a prefill engine can extract KV");
  }
  RETURN_IF_ERROR(impl_->CheckSequence(sequence));
  const uint32_t held = impl_->lengths[sequence];
  const bool whole = first == 0 && n == held;
  if (n == 0 || first > held || n > held - first || (layout_.opaque && !whole)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "cannot extract ", n, " tokens from position ", first, " of sequence ", sequence,
        ", which holds ", held, layout_.opaque ? " and can be extracted as a whole only" : ""));
  }
  if (!layout_.opaque) {
    const auto spare = static_cast<int32_t>(options_.max_sequences);
    return ReadRange(impl_->context.get(), sequence, spare, first, n, impl_->memory_kind.format,
                     *impl_->pool);
  }
  ASSIGN_OR_RETURN(const PooledBuffer state,
                   ReadState(impl_->context.get(), sequence, *impl_->pool));
  return kvstore::KvChunk{
      .first_position = 0, .n_tokens = n, .bytes = {state.bytes().begin(), state.bytes().end()}};
}

absl::StatusOr<std::vector<kvstore::KvChunk>> Engine::ExtractAll(int32_t sequence,
                                                                 uint32_t chunk_tokens) {
  RETURN_IF_ERROR(impl_->CheckSequence(sequence));
  const uint32_t held = impl_->lengths[sequence];
  if (held == 0) {
    return absl::InvalidArgumentError(absl::StrCat("sequence ", sequence, " holds nothing"));
  }
  ASSIGN_OR_RETURN(const PooledBuffer state,
                   ReadState(impl_->context.get(), sequence, *impl_->pool));
  return impl_->Split(state.bytes(), held, chunk_tokens);
}

absl::StatusOr<std::vector<kvstore::KvChunk>> Engine::ChunksOf(const IncomingKv& kv,
                                                               uint32_t chunk_tokens) const {
  const auto* sink = dynamic_cast<const BlobSink*>(&kv);
  if (sink == nullptr || !kv.complete()) {
    return absl::FailedPreconditionError("the KV has not arrived completely");
  }
  return impl_->Split(sink->blob(), kv.n_tokens(), chunk_tokens);
}

absl::StatusOr<std::vector<kvstore::KvChunk>> Engine::Impl::Split(std::span<const uint8_t> state,
                                                                  uint32_t n_tokens,
                                                                  uint32_t chunk_tokens) const {
  if (!memory_kind.opaque) return SplitState(state, n_tokens, memory_kind.format, chunk_tokens);
  std::vector<kvstore::KvChunk> whole(1);
  whole[0].n_tokens = n_tokens;
  whole[0].bytes.assign(state.begin(), state.end());
  return whole;
}

std::unique_ptr<Engine::IncomingKv> Engine::NewSink(uint32_t n_tokens,
                                                    uint32_t first_position) const {
  const MemoryKind& kind = impl_->memory_kind;
  if (kind.opaque) {
    return NewOpaqueSink(n_tokens, options_.context_tokens, kind.MaxOpaqueBytes(n_tokens),
                         impl_->pool);
  }
  const uint32_t n_streams = impl_->shape.unified ? 1 : impl_->shape.n_sequences;
  return NewPlainSink(kind.format, first_position, n_tokens, n_streams, options_.context_tokens,
                      impl_->pool);
}

absl::Status Engine::Inject(int32_t sequence, const IncomingKv& kv) {
  RETURN_IF_ERROR(impl_->CheckSequence(sequence));
  const auto* sink = dynamic_cast<const BlobSink*>(&kv);
  if (sink == nullptr) return absl::InvalidArgumentError("the KV's sink is not an engine's");
  if (!kv.complete()) return absl::FailedPreconditionError("the KV has not arrived completely");
  const uint32_t held = impl_->lengths[sequence];
  if (kv.first_position() != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("the KV begins at position ", kv.first_position()));
  }
  RETURN_IF_ERROR(impl_->CheckRoom(kv.n_tokens(), held, options_));
  impl_->Drop(sequence);
  RETURN_IF_ERROR(WriteState(impl_->context.get(), sequence, sink->blob(), kv.n_tokens()));
  impl_->SetLength(sequence, kv.n_tokens());
  return absl::OkStatus();
}

absl::Status Engine::Append(int32_t sequence, const IncomingKv& kv) {
  RETURN_IF_ERROR(impl_->CheckSequence(sequence));
  const auto* sink = dynamic_cast<const BlobSink*>(&kv);
  const uint32_t held = impl_->lengths[sequence];
  if (sink == nullptr || layout_.opaque || options_.use != EngineOptions::Use::kPrefill ||
      kv.first_position() != held) {
    return absl::InvalidArgumentError(absl::StrCat("cannot append KV from position ",
                                                   kv.first_position(), " to sequence ", sequence,
                                                   " of ", held, " tokens"));
  }
  if (!kv.complete()) return absl::FailedPreconditionError("the KV has not arrived completely");
  RETURN_IF_ERROR(impl_->CheckRoom(kv.n_tokens(), 0, options_));
  // libllama empties the sequence that it writes: the spare one takes the KV and shares it.
  const auto spare = static_cast<int32_t>(options_.max_sequences);
  RETURN_IF_ERROR(WriteState(impl_->context.get(), spare, sink->blob(), held + kv.n_tokens()));
  llama_memory_seq_cp(impl_->memory(), spare, sequence, -1, -1);
  llama_memory_seq_rm(impl_->memory(), spare, -1, -1);
  impl_->SetLength(sequence, held + kv.n_tokens());
  return absl::OkStatus();
}

absl::Status Engine::Fork(int32_t from, int32_t to, uint32_t n) {
  RETURN_IF_ERROR(impl_->CheckSequence(from));
  RETURN_IF_ERROR(impl_->CheckSequence(to));
  if (layout_.opaque || options_.use != EngineOptions::Use::kPrefill || n == 0 ||
      n > impl_->lengths[from] || impl_->lengths[to] != 0) {
    return absl::InvalidArgumentError(absl::StrCat("cannot fork ", n, " tokens of sequence ", from,
                                                   " of ", impl_->lengths[from], " to sequence ",
                                                   to, " of ", impl_->lengths[to]));
  }
  llama_memory_seq_cp(impl_->memory(), from, to, 0, static_cast<int32_t>(n));
  impl_->cells.Share(from, to, n);
  impl_->lengths[to] = n;
  return absl::OkStatus();
}

uint64_t Engine::held_tokens() const { return impl_->cells.used(); }

void Engine::Free(int32_t sequence) {
  if (impl_->Knows(sequence)) impl_->Drop(sequence);
}

absl::Status Engine::Move(int32_t from, int32_t to) {
  RETURN_IF_ERROR(impl_->CheckSequence(from));
  RETURN_IF_ERROR(impl_->CheckSequence(to));
  const uint32_t n = impl_->lengths[from];
  if (options_.use != EngineOptions::Use::kDecode || n == 0 || impl_->lengths[to] != 0) {
    return absl::InvalidArgumentError(absl::StrCat("cannot move sequence ", from, " of ", n,
                                                   " tokens to sequence ", to, " of ",
                                                   impl_->lengths[to], " tokens"));
  }
  if (impl_->shape.unified) {
    llama_memory_seq_cp(impl_->memory(), from, to, -1, -1);
  } else {
    // Between streams llama_memory_seq_cp would put the copy off until the next decode, reading
    // what `from` holds by then, and copy the stream's full length.
    ASSIGN_OR_RETURN(const PooledBuffer state, ReadState(impl_->context.get(), from, *impl_->pool));
    RETURN_IF_ERROR(WriteState(impl_->context.get(), to, state.bytes(), n));
  }
  impl_->SetLength(to, n);
  impl_->Drop(from);
  return absl::OkStatus();
}

uint32_t Engine::Length(int32_t sequence) const {
  return impl_->Knows(sequence) ? impl_->lengths[sequence] : 0;
}

}  // namespace tandem::workers
