#include "workers/profiler.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "base/clock.h"
#include "base/status.h"

namespace tandem::workers {
namespace {

/// KV of zeros, at most: touching more memory takes longer than it is worth.
constexpr uint64_t kMostKvBytes = uint64_t{64} << 20;
/// Each step is measured so often; the learner drops the first ones, when caches are cold.
constexpr uint32_t kRounds = 3;

class Profiler {
 public:
  Profiler(Engine& engine, absl::Duration limit, WorkerSpeed& speed)
      : engine_(engine), limit_s_(absl::ToDoubleSeconds(limit)), speed_(speed) {
    for (uint32_t i = 0; i < engine.options().step_tokens; ++i) {
      tokens_.push_back(static_cast<int32_t>(i * 7919 % engine.model().vocabulary_size()));
    }
  }

  absl::StatusOr<uint32_t> Run() {
    const bool prefill = engine_.options().use == EngineOptions::Use::kPrefill;
    const absl::Status status = prefill ? Prefill() : Decode();
    for (uint32_t i = 0; i < engine_.options().max_sequences; ++i) {
      engine_.Free(static_cast<int32_t>(i));
    }
    if (!status.ok()) return status;
    return steps_;
  }

 private:
  /// Whether a step that takes so long would end in time.
  bool TimeFor(double seconds) const { return clock_.seconds() + seconds < limit_s_; }

  /// A sink of `n_tokens` zeros.
  absl::StatusOr<std::unique_ptr<Engine::IncomingKv>> Zeros(uint32_t n_tokens) const {
    std::unique_ptr<Engine::IncomingKv> sink = engine_.NewSink(n_tokens);
    ASSIGN_OR_RETURN(
        const auto spans,
        sink->Prepare(0, n_tokens, engine_.layout().BytesPerToken() * uint64_t{n_tokens}));
    for (const std::span<uint8_t> span : spans) std::memset(span.data(), 0, span.size());
    sink->Commit();
    return sink;
  }

  /// The longest KV of zeros that each of `n_sequences` can have in front of `n_tokens` more.
  uint32_t LongestContext(uint32_t n_sequences, uint32_t n_tokens) const {
    const uint64_t bytes = engine_.layout().BytesPerToken();
    if (bytes == 0) return 0;  // a state that cannot be made up
    const uint64_t room = engine_.options().context_tokens;
    return static_cast<uint32_t>(std::min<uint64_t>(
        room > n_tokens ? room - n_tokens : 0, kMostKvBytes / bytes / std::max(1u, n_sequences)));
  }

  absl::Status Prefill() {
    std::vector<uint32_t> sizes;
    const uint32_t longest =
        std::min(engine_.options().step_tokens, engine_.options().context_tokens);
    for (uint32_t n = 16; n < longest; n *= 2) sizes.push_back(n);
    sizes.push_back(longest);
    const uint32_t far = LongestContext(1, longest);
    std::vector<uint32_t> positions = {0};
    if (far > 0) positions = {0, far / 2, far};
    double seconds_per_token = 0;
    // The smallest steps first: each takes about as long as all before it. The first ones are what
    // the learner drops.
    for (uint32_t i = 0; i < 3; ++i) RETURN_IF_ERROR(Piece(sizes[0], 0, &seconds_per_token));
    for (uint32_t round = 0; round < kRounds; ++round) {
      for (const uint32_t n : sizes) {
        for (const uint32_t at : positions) RETURN_IF_ERROR(Piece(n, at, &seconds_per_token));
      }
    }
    return absl::OkStatus();
  }

  absl::Status Piece(uint32_t n_tokens, uint32_t position, double* seconds_per_token) {
    if (!TimeFor(n_tokens * *seconds_per_token)) return absl::OkStatus();
    engine_.Free(0);
    if (position > 0) {
      ASSIGN_OR_RETURN(const auto zeros, Zeros(position));
      RETURN_IF_ERROR(engine_.Append(0, *zeros));
    }
    const Engine::StepItem item = {.sequence = 0,
                                   .first_position = static_cast<int32_t>(position),
                                   .tokens = std::span(tokens_).first(n_tokens),
                                   .want_logits = true};
    const Stopwatch took;
    RETURN_IF_ERROR(engine_.Step(std::span(&item, 1)));
    const double seconds = took.seconds();
    speed_.PrefillStep(std::span(&item, 1), seconds);
    *seconds_per_token = seconds / n_tokens;
    ++steps_;
    return absl::OkStatus();
  }

  absl::Status Decode() {
    std::vector<uint32_t> batches;
    const uint32_t most = std::min(engine_.options().max_sequences, engine_.options().step_tokens);
    for (uint32_t n = 1; n < most; n += std::max(1u, n / 2)) batches.push_back(n);
    batches.push_back(most);
    constexpr uint32_t kShort = 16, kRoom = 64;  // tokens; steps add some
    std::vector<uint32_t> contexts = {LongestContext(most, kRoom)};
    if (contexts[0] > 2 * kShort) contexts.insert(contexts.begin(), kShort);
    double longest_s = 0;
    for (const uint32_t context : contexts) {
      for (uint32_t i = 0; i < most && TimeFor(longest_s); ++i) {
        RETURN_IF_ERROR(Begin(static_cast<int32_t>(i), context));
      }
      for (uint32_t round = 0; round < kRounds; ++round) {
        for (const uint32_t n : batches) {
          // Also ends it when not all sequences came to be.
          if (!TimeFor(longest_s)) return absl::OkStatus();
          RETURN_IF_ERROR(Batch(n, &longest_s));
        }
      }
    }
    return absl::OkStatus();
  }

  /// Gives the sequence KV of so many zeros; of one token when KV cannot be made up.
  absl::Status Begin(int32_t sequence, uint32_t context) {
    engine_.Free(sequence);
    if (context > 0) {
      if (zeros_ == nullptr || zeros_->n_tokens() != context) {
        ASSIGN_OR_RETURN(zeros_, Zeros(context));
      }
      return engine_.Inject(sequence, *zeros_);
    }
    const Engine::StepItem first = {.sequence = sequence, .tokens = std::span(tokens_).first(1)};
    return engine_.Step(std::span(&first, 1));
  }

  absl::Status Batch(uint32_t n_sequences, double* longest_s) {
    std::vector<Engine::StepItem> items;
    uint64_t context_tokens = 0;
    for (uint32_t i = 0; i < n_sequences; ++i) {
      const uint32_t length = engine_.Length(static_cast<int32_t>(i));
      context_tokens += length;
      items.push_back({.sequence = static_cast<int32_t>(i),
                       .first_position = static_cast<int32_t>(length),
                       .tokens = std::span(tokens_).subspan(i % tokens_.size(), 1),
                       .want_logits = true});
    }
    const Stopwatch took;
    RETURN_IF_ERROR(engine_.Step(items));
    const double seconds = took.seconds();
    speed_.DecodeStep(n_sequences, context_tokens, seconds);
    *longest_s = std::max(*longest_s, seconds);
    ++steps_;
    return absl::OkStatus();
  }

  Engine& engine_;
  const double limit_s_;
  WorkerSpeed& speed_;
  const Stopwatch clock_;
  std::vector<int32_t> tokens_;
  std::unique_ptr<Engine::IncomingKv> zeros_;
  uint32_t steps_ = 0;
};

}  // namespace

absl::StatusOr<uint32_t> ProfileSteps(Engine& engine, absl::Duration limit, WorkerSpeed& speed) {
  return Profiler(engine, limit, speed).Run();
}

}  // namespace tandem::workers
