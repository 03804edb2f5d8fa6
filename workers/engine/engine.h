// One model with one llama context: batched steps, and KV that can be taken out and put in.
// Nothing outside this folder includes libllama's header. Owned and called by one loop thread
// (prefill or decode).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kvstore/kv_layout.h"
#include "workers/engine/model.h"

namespace tandem::workers {

struct EngineOptions {
  enum class Use {
    /// Prompts are computed and their KV extracted: one KV pool for all sequences ("unified"),
    /// from which any token range can be read.
    kPrefill,
    /// Sequences are injected and continued: a KV stream each, so that a sequence's result does
    /// not depend on where the others lie.
    kDecode,
  };
  Use use = Use::kPrefill;
  /// Tokens that fit one sequence.
  uint32_t context_tokens = 2048;
  /// Sequences held at once; ids 0 … max_sequences-1.
  uint32_t max_sequences = 8;
  /// Tokens of one Step at most; also libllama's ubatch. More than the KV has room for is reduced
  /// to that, see Engine::options().
  uint32_t step_tokens = 512;
  /// Tokens of KV in all, at least context_tokens. 0: context_tokens × max_sequences. Prefill
  /// only; a decode context always has context_tokens for each sequence.
  uint64_t kv_tokens = 0;
  /// ggml types of the cache: "f16", "bf16", "f32", "q8_0", "q4_0", …. A quantised V needs flash
  /// attention.
  std::string k_type = "f16", v_type = "f16";
  bool flash_attention = true;
  /// Compute threads; at most the cores that this engine has for itself.
  uint32_t threads = 1;
  /// Have room for the logits of every token of a step: step_tokens × vocabulary_size floats.
  bool all_logits = false;
  /// Treat the model as one whose memory is not a plain KV cache (tests).
  bool force_opaque = false;
};

/// Not thread-safe: one owner thread at a time. Sequence ids are the caller's to choose; a decode
/// engine is fastest when the ids of a step are contiguous and ascending from 0.
class Engine {
 public:
  /// Makes the context and runs the self-check: encodes a few tokens, extracts, injects into a
  /// second context, compares. INVALID_ARGUMENT for impossible options, RESOURCE_EXHAUSTED when
  /// memory does not suffice, FAILED_PRECONDITION when this libllama's layout is not understood.
  /// `sibling`: another engine of the same worker, or null. With the same model and cache settings
  /// its self-check counts for this one too, and with as many threads the two share them: then
  /// only one of them may compute at a time, for as long as both live.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(std::shared_ptr<const Model> model,
                                                        const EngineOptions& options,
                                                        const Engine* sibling = nullptr);
  ~Engine();

  /// As given to Create, with kv_tokens and step_tokens as they came to be.
  const EngineOptions& options() const { return options_; }
  const Model& model() const { return *model_; }
  const std::shared_ptr<const Model>& shared_model() const { return model_; }
  /// How extracted KV looks. Opaque for recurrent, hybrid and sliding-window models.
  const kvstore::KvLayout& layout() const { return layout_; }
  /// What must be equal on the other side of a handoff. The same for the prefill and the decode
  /// engine of equal settings.
  const kvstore::Identity& identity() const { return identity_; }

  /// A sequence's part of a step: tokens at consecutive positions.
  struct StepItem {
    int32_t sequence = 0;
    int32_t first_position = 0;
    std::span<const int32_t> tokens;
    /// Compute logits after the last of the tokens.
    bool want_logits = false;
    /// Compute logits after each of them. Needs EngineOptions::all_logits.
    bool want_all_logits = false;
  };
  /// One forward pass over all items. A sequence appears in one item at most and its positions
  /// continue what it holds.
  ///   INVALID_ARGUMENT    an item is not like that, names no sequence of this engine or no token
  ///                       of the vocabulary, or there are none or more than step_tokens tokens,
  ///                       or it wants all logits of an engine without room for them
  ///   OUT_OF_RANGE        a sequence would exceed context_tokens
  ///   RESOURCE_EXHAUSTED  the KV is full
  ///   INTERNAL            libllama failed; Length says what the sequences hold now
  /// Nothing has changed after all but the last.
  absl::Status Step(std::span<const StepItem> items);
  /// Logits of item `index` of the last Step, vocabulary_size floats, valid until the next Step.
  /// Empty when that item wanted none or the Step failed.
  std::span<const float> Logits(size_t index) const;
  /// Logits after each token of item `index`, n_tokens × vocabulary_size floats, valid until the
  /// next Step. Empty unless that item had want_all_logits, or when the Step failed.
  std::span<const float> AllLogits(size_t index) const;

  /// Copies out the KV of positions [first, first + n). INVALID_ARGUMENT when the sequence does
  /// not hold them or, with an opaque layout, holds others as well; FAILED_PRECONDITION unless
  /// use == kPrefill.
  absl::StatusOr<kvstore::KvChunk> Extract(int32_t sequence, uint32_t first, uint32_t n);
  /// Copies out all that the sequence holds, in chunks of `chunk_tokens` (the last may be shorter;
  /// with an opaque layout it is one of all). Either use. INVALID_ARGUMENT when it holds nothing.
  /// REQUIRES: chunk_tokens > 0.
  absl::StatusOr<std::vector<kvstore::KvChunk>> ExtractAll(int32_t sequence, uint32_t chunk_tokens);

  /// Where a pulled sequence's KV is received: see NewSink and Inject. May be filled on another
  /// thread.
  class IncomingKv : public kvstore::KvSink {
   public:
    /// All positions have arrived.
    virtual bool complete() const = 0;
    /// Positions expected, and the first of them.
    virtual uint32_t n_tokens() const = 0;
    virtual uint32_t first_position() const = 0;
  };
  /// Memory for the KV of `n_tokens` from `first_position` on, laid out for Inject (from 0) or
  /// Append; taken when the first chunk comes. Thread-safe. The sink may outlive the engine.
  /// REQUIRES: first_position is 0 when the layout is opaque.
  std::unique_ptr<IncomingKv> NewSink(uint32_t n_tokens, uint32_t first_position = 0) const;
  /// What ExtractAll would give once `kv` were injected. FAILED_PRECONDITION when it is not
  /// complete.
  absl::StatusOr<std::vector<kvstore::KvChunk>> ChunksOf(const IncomingKv& kv,
                                                         uint32_t chunk_tokens) const;
  /// Puts received KV in as `sequence`, replacing what it held. FAILED_PRECONDITION when `kv` is
  /// not complete, RESOURCE_EXHAUSTED when there is no room, DATA_LOSS when libllama does not
  /// accept it (the sequence is empty then).
  absl::Status Inject(int32_t sequence, const IncomingKv& kv);
  /// Adds received KV to what the sequence holds, which must end where `kv` begins. Prefill only,
  /// not with an opaque layout. INVALID_ARGUMENT for wrong use, else as Inject; the sequence is
  /// unchanged after an error.
  absl::Status Append(int32_t sequence, const IncomingKv& kv);
  /// Gives `to`, which must be empty, the first `n` tokens of `from`: both share that KV, which
  /// takes no more room. Prefill only, not with an opaque layout. INVALID_ARGUMENT for wrong use.
  absl::Status Fork(int32_t from, int32_t to, uint32_t n);

  /// Drops the sequence's KV.
  void Free(int32_t sequence);
  /// Renames `from` to `to`, which must be empty, by copying its KV; done when it returns.
  /// `from` is empty afterwards. Decode only. INVALID_ARGUMENT for wrong use, else as Inject;
  /// `from` is unchanged after an error.
  absl::Status Move(int32_t from, int32_t to);
  /// Tokens of KV held by the sequence.
  uint32_t Length(int32_t sequence) const;
  /// Tokens of KV held in all; what sequences share counts once.
  uint64_t held_tokens() const;

 private:
  Engine() = default;
  struct Impl;
  std::shared_ptr<const Model> model_;  // outlives the context in impl_
  std::unique_ptr<Impl> impl_;
  EngineOptions options_;
  kvstore::KvLayout layout_;
  kvstore::Identity identity_;
};

}  // namespace tandem::workers
