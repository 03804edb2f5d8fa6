#include "workers/engine/self_check.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "workers/engine/incoming_kv.h"
#include "workers/engine/sequence_state.h"

namespace tandem::workers {
namespace {

constexpr uint32_t kTokens = 4;
constexpr uint32_t kSequences = 2;
constexpr uint32_t kCells = 256;  // libllama rounds a stream up to this

constexpr int32_t kSource = 0;  // the sequence read from
constexpr int32_t kSpare = 1;   // the extra id that its ranges are read through
constexpr int32_t kTarget = 1;  // the sequence written to: not the same id, nor the first stream

absl::Status Refuse(std::string_view what) {
  return absl::FailedPreconditionError(
      absl::StrCat("self-check: KV taken out of libllama and put into a second context ",
                   View(what), "; this build of libllama cannot be used"));
}

/// A context with the one batch that it needs.
struct Probe {
  ContextPtr context;
  StepBatch batch{kTokens};

  /// Computes `n` arbitrary but fixed tokens from `first`, with logits after the last.
  absl::Status Compute(const Model& model, int32_t sequence, uint32_t first, uint32_t n) {
    batch.Clear();
    for (uint32_t position = first; position < first + n; ++position) {
      const uint32_t token = (position * 7919 + 1) % model.vocabulary_size();
      batch.Add(static_cast<int32_t>(token), static_cast<int32_t>(position), sequence,
                position + 1 == first + n);
    }
    return batch.Decode(context.get());
  }
};

absl::StatusOr<Probe> MakeProbe(const Model& model, const CacheSettings& settings,
                                const ComputeThreads& threads, bool unified) {
  const ContextShape shape{.n_ctx = unified ? kCells : kCells * kSequences,
                           .n_sequences = kSequences,
                           .step_tokens = kTokens,
                           .unified = unified};
  auto context = MakeContext(model, settings, shape, threads);
  if (!context.ok()) return absl::InvalidArgumentError(context.status().message());
  return Probe{.context = *std::move(context)};
}

/// Why the memory is not a plain KV cache; empty when it is one. `state` has kTokens tokens.
std::string WhyOpaque(const Model& model, std::span<const uint8_t> state, BlobFormat& format) {
  const llama_model* handle = model.handle();
  if (llama_model_is_recurrent(handle)) return "the model is recurrent";
  if (llama_model_is_hybrid(handle)) return "the model is partly recurrent";
  if (llama_model_n_swa(handle) > 0) return "the model has a sliding window";
  const llama_rope_type rope = llama_model_rope_type(handle);
  if (rope == LLAMA_ROPE_TYPE_MROPE || rope == LLAMA_ROPE_TYPE_IMROPE) {
    return "the model has positions in several dimensions";
  }
  const auto blob = ParseBlob(state);
  if (!blob.ok()) return std::string(blob.status().message());
  const auto order = CellOrder(blob->positions, 0);
  if (blob->positions.size() != kTokens || !order.ok()) return "the cells are not one per token";
  format = blob->format;
  return "";
}

absl::Status Fill(BlobSink& sink, const kvstore::KvChunk& chunk) {
  ASSIGN_OR_RETURN(const auto spans,
                   sink.Prepare(chunk.first_position, chunk.n_tokens, chunk.bytes.size()));
  const uint8_t* from = chunk.bytes.data();
  for (std::span<uint8_t> span : spans) {
    std::memcpy(span.data(), from, span.size());
    from += span.size();
  }
  sink.Commit();
  return absl::OkStatus();
}

absl::StatusOr<std::vector<kvstore::KvChunk>> TakeOut(Probe& source, const MemoryKind& kind,
                                                      BufferPool& pool) {
  std::vector<kvstore::KvChunk> chunks;
  if (kind.opaque) {
    ASSIGN_OR_RETURN(const PooledBuffer state, ReadState(source.context.get(), kSource, pool));
    chunks.push_back({0, kTokens, {state.bytes().begin(), state.bytes().end()}});
    return chunks;
  }
  for (const auto& [first, n] : {std::pair{0u, 1u}, std::pair{1u, kTokens - 1}}) {
    ASSIGN_OR_RETURN(chunks.emplace_back(),
                     ReadRange(source.context.get(), kSource, kSpare, first, n, kind.format, pool));
  }
  return chunks;
}

/// The planes of all kTokens, to be compared.
absl::StatusOr<std::vector<uint8_t>> Planes(const Probe& probe, int32_t sequence,
                                            BufferPool& pool) {
  ASSIGN_OR_RETURN(const PooledBuffer state, ReadState(probe.context.get(), sequence, pool));
  ASSIGN_OR_RETURN(const Blob blob, ParseBlob(state.bytes()));
  ASSIGN_OR_RETURN(const auto order, CellOrder(blob.positions, 0));
  std::vector<uint8_t> planes;
  AppendPlanes(state.bytes(), blob, order, planes);
  return planes;
}

absl::Status CompareLogits(const Model& model, Probe& source, Probe& target) {
  RETURN_IF_ERROR(source.Compute(model, kSource, kTokens, 1));
  RETURN_IF_ERROR(target.Compute(model, kTarget, kTokens, 1));
  const float* want = llama_get_logits_ith(source.context.get(), 0);
  const float* got = llama_get_logits_ith(target.context.get(), 0);
  if (want == nullptr || got == nullptr) return Refuse("gives no logits");
  const auto [low, high] = std::minmax_element(want, want + model.vocabulary_size());
  float difference = 0;
  for (uint32_t i = 0; i < model.vocabulary_size(); ++i) {
    const float here = std::abs(want[i] - got[i]);
    if (!(here <= difference)) difference = here;  // also when it is not a number
  }
  // CPUs give the very same bits; another device may choose other kernels for the two contexts.
  // A misunderstood layout moves logits by a large part of their spread.
  if (!(difference <= 1e-3f * (*high - *low))) {
    return Refuse(absl::StrCat("moves the next token's logits by ", difference));
  }
  if (difference != 0) {
    spdlog::warn("engine self-check: injected KV is not bit-exact largest_logit_change={}",
                 difference);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<MemoryKind> CheckMemory(const Model& model, const CacheSettings& settings,
                                       const ComputeThreads& threads, bool force_opaque,
                                       const std::function<void(kvstore::KvChunk&)>& damage) {
  auto pool = std::make_shared<BufferPool>();
  ASSIGN_OR_RETURN(Probe source, MakeProbe(model, settings, threads, /*unified=*/true));
  RETURN_IF_ERROR(source.Compute(model, kSource, 0, 1));
  MemoryKind kind;
  kind.first_token_bytes = llama_state_seq_get_size(source.context.get(), kSource);
  RETURN_IF_ERROR(source.Compute(model, kSource, 1, kTokens - 1));
  ASSIGN_OR_RETURN(const PooledBuffer state, ReadState(source.context.get(), kSource, *pool));
  kind.token_bytes = (state.bytes().size() - kind.first_token_bytes) / (kTokens - 1);
  kind.reason = force_opaque ? "asked for" : WhyOpaque(model, state.bytes(), kind.format);
  kind.opaque = !kind.reason.empty();

  // A state holds the number of streams, so an opaque one fits only a unified context.
  ASSIGN_OR_RETURN(Probe target, MakeProbe(model, settings, threads, /*unified=*/kind.opaque));
  std::unique_ptr<BlobSink> sink =
      kind.opaque ? NewOpaqueSink(kTokens, kCells, kind.MaxOpaqueBytes(kTokens), pool)
                  : NewPlainSink(kind.format, 0, kTokens, kSequences, kCells, pool);
  ASSIGN_OR_RETURN(std::vector<kvstore::KvChunk> chunks, TakeOut(source, kind, *pool));
  for (kvstore::KvChunk& chunk : chunks) {
    if (damage) damage(chunk);
    if (auto filled = Fill(*sink, chunk); !filled.ok()) return Refuse(filled.ToString());
  }
  auto written = WriteState(target.context.get(), kTarget, sink->blob(), kTokens);
  if (!written.ok()) return Refuse(absl::StrCat("is refused: ", written.ToString()));
  if (!kind.opaque) {
    ASSIGN_OR_RETURN(const auto left, Planes(source, kSource, *pool));
    ASSIGN_OR_RETURN(const auto arrived, Planes(target, kTarget, *pool));
    if (left != arrived) return Refuse("is not the same");
  }
  RETURN_IF_ERROR(CompareLogits(model, source, target));
  return kind;
}

}  // namespace tandem::workers
