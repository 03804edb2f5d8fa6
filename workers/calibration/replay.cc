#include "workers/calibration/replay.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace tandem::workers {
namespace {

/// Large enough for libllama to be fast, small enough that the logits of a step stay in memory.
constexpr uint32_t kStepTokens = 512;
constexpr uint64_t kMaxStepLogits = uint64_t{64} << 20;

absl::Status CheckOptions(const ReplayOptions& options) {
  if (options.context_tokens >= 2 && options.continuation_tokens >= 1 && options.windows >= 1 &&
      options.chunk_tokens >= 1) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "a context of ", options.context_tokens, " tokens (at least 2), a continuation of ",
      options.continuation_tokens, " (1), ", options.windows, " windows (1), chunks of ",
      options.chunk_tokens, " tokens (1) cannot be replayed"));
}

/// `window`: tokens of text that one takes.
absl::Status CheckText(size_t tokens, uint64_t window, const ReplayOptions& options) {
  if (tokens < window + options.windows - 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("the text is too short: it has ", tokens, " tokens, one window takes ", window,
                     " (a context of ", options.context_tokens, ", a continuation of ",
                     options.continuation_tokens, " and one to start it), ", options.windows,
                     " windows at least ", window + options.windows - 1, " and ",
                     window * options.windows, " if they are not to overlap"));
  }
  if (tokens < window * options.windows) {
    spdlog::warn(
        "replay windows overlap, so that standard errors are too small tokens={} windows={} "
        "window_tokens={}",
        tokens, options.windows, window);
  }
  return absl::OkStatus();
}

/// log Σ exp(logits).
double LogSum(std::span<const float> logits) {
  const float top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - top);
  return top + std::log(sum);
}

int32_t Best(std::span<const float> logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

absl::Status Put(const kvstore::KvChunk& chunk, kvstore::KvSink& sink) {
  ASSIGN_OR_RETURN(const auto spans,
                   sink.Prepare(chunk.first_position, chunk.n_tokens, chunk.bytes.size()));
  const uint8_t* at = chunk.bytes.data();
  for (const std::span<uint8_t> span : spans) {
    std::memcpy(span.data(), at, span.size());
    at += span.size();
  }
  sink.Commit();
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Replayer>> Replayer::Create(std::shared_ptr<const Model> model,
                                                           std::string_view text,
                                                           const ReplayOptions& options,
                                                           const EngineOptions& settings) {
  RETURN_IF_ERROR(CheckOptions(options));
  std::unique_ptr<Replayer> replayer(new Replayer());
  replayer->options_ = options;
  replayer->tokens_ = model->Tokenize(text, /*add_special=*/false);
  if (const auto bos = model->BeginOfText()) replayer->begin_.push_back(*bos);
  const uint64_t window =
      uint64_t{options.context_tokens} - replayer->begin_.size() + options.continuation_tokens + 1;
  RETURN_IF_ERROR(CheckText(replayer->tokens_.size(), window, options));

  EngineOptions engine = settings;
  engine.max_sequences = 1;
  engine.kv_tokens = 0;
  engine.use = EngineOptions::Use::kPrefill;
  engine.context_tokens = options.context_tokens;
  engine.step_tokens = kStepTokens;
  engine.all_logits = false;
  ASSIGN_OR_RETURN(replayer->prefill_, Engine::Create(model, engine));
  if (replayer->layout().opaque) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the KV of model ", model->name(), " cannot be cut into chunks, so no codec applies"));
  }
  engine.use = EngineOptions::Use::kDecode;
  engine.context_tokens = options.context_tokens + options.continuation_tokens;
  engine.step_tokens = static_cast<uint32_t>(
      std::clamp<uint64_t>(kMaxStepLogits / model->vocabulary_size(), 1,
                           std::min(kStepTokens, options.continuation_tokens)));
  engine.all_logits = true;
  ASSIGN_OR_RETURN(replayer->decode_, Engine::Create(std::move(model), engine));
  return replayer;
}

absl::Status Replayer::LoadWindow(uint32_t index) {
  if (index >= n_windows()) {
    return absl::OutOfRangeError(
        absl::StrCat("there is no window ", index, " of ", n_windows(), " windows"));
  }
  loaded_ = false;
  const size_t of_context = options_.context_tokens - begin_.size();
  const size_t of_window = of_context + options_.continuation_tokens + 1;
  const size_t room = tokens_.size() - of_window;
  const size_t start = n_windows() == 1 ? 0 : room * index / (n_windows() - 1);
  const auto window = std::span<const int32_t>(tokens_).subspan(start, of_window);
  std::vector<int32_t> context = begin_;
  context.insert(context.end(), window.begin(),
                 window.begin() + static_cast<ptrdiff_t>(of_context));
  RETURN_IF_ERROR(Prefill(context));

  continuation_ = window.subspan(of_context);
  const size_t n = options_.continuation_tokens;
  const size_t vocabulary_size = decode_->model().vocabulary_size();
  unchanged_.logits.resize(n * vocabulary_size);
  unchanged_.probabilities.resize(n * vocabulary_size);
  unchanged_.log_sums.resize(n);
  unchanged_.log_likelihoods.resize(n);
  unchanged_.best.resize(n);
  RETURN_IF_ERROR(
      Continue(nullptr, [this](uint32_t i, std::span<const float> l) { KeepUnchanged(i, l); }));
  loaded_ = true;
  return absl::OkStatus();
}

absl::Status Replayer::Prefill(std::span<const int32_t> tokens) {
  prefill_->Free(0);
  for (size_t first = 0; first < tokens.size();) {
    const size_t n = std::min<size_t>(prefill_->options().step_tokens, tokens.size() - first);
    const Engine::StepItem item{.sequence = 0,
                                .first_position = static_cast<int32_t>(first),
                                .tokens = tokens.subspan(first, n)};
    RETURN_IF_ERROR(prefill_->Step({&item, 1}));
    first += n;
  }
  chunks_.clear();
  for (uint32_t first = 0; first < tokens.size(); first += options_.chunk_tokens) {
    const auto left = static_cast<uint32_t>(tokens.size()) - first;
    ASSIGN_OR_RETURN(chunks_.emplace_back(),
                     prefill_->Extract(0, first, std::min(options_.chunk_tokens, left)));
  }
  return absl::OkStatus();
}

absl::Status Replayer::Continue(const Codec& codec, const Observer& observer) {
  const auto sink = decode_->NewSink(options_.context_tokens);
  for (const kvstore::KvChunk& chunk : chunks_) {
    if (codec == nullptr) {
      RETURN_IF_ERROR(Put(chunk, *sink));
      continue;
    }
    ASSIGN_OR_RETURN(const kvstore::KvChunk replaced, codec(chunk));
    RETURN_IF_ERROR(Put(replaced, *sink));
  }
  RETURN_IF_ERROR(decode_->Inject(0, *sink));
  const auto fed = continuation_.first(options_.continuation_tokens);
  const size_t vocabulary_size = decode_->model().vocabulary_size();
  for (size_t first = 0; first < fed.size();) {
    const size_t n = std::min<size_t>(decode_->options().step_tokens, fed.size() - first);
    const Engine::StepItem item{
        .sequence = 0,
        .first_position = static_cast<int32_t>(options_.context_tokens + first),
        .tokens = fed.subspan(first, n),
        .want_all_logits = true};
    RETURN_IF_ERROR(decode_->Step({&item, 1}));
    const std::span<const float> logits = decode_->AllLogits(0);
    if (logits.size() != n * vocabulary_size) return absl::InternalError("libllama gave no logits");
    for (size_t i = 0; i < n; ++i) {
      observer(static_cast<uint32_t>(first + i),
               logits.subspan(i * vocabulary_size, vocabulary_size));
    }
    first += n;
  }
  return absl::OkStatus();
}

void Replayer::KeepUnchanged(uint32_t index, std::span<const float> logits) {
  const double log_sum = LogSum(logits);
  const size_t offset = index * logits.size();
  for (size_t i = 0; i < logits.size(); ++i) {
    unchanged_.logits[offset + i] = logits[i];
    unchanged_.probabilities[offset + i] = std::exp(static_cast<float>(logits[i] - log_sum));
  }
  unchanged_.log_sums[index] = log_sum;
  unchanged_.log_likelihoods[index] = logits[continuation_[index + 1]] - log_sum;
  unchanged_.best[index] = Best(logits);
}

void Replayer::Compare(uint32_t index, std::span<const float> logits, WindowScore& score) const {
  const double log_sum = LogSum(logits);
  score.log_likelihoods[index] = logits[continuation_[index + 1]] - log_sum;
  score.top1_agreements += Best(logits) == unchanged_.best[index];
  // Σ p (ln p - ln q), of which the logarithms' constant parts are taken out of the sum.
  const float* before = unchanged_.logits.data() + index * logits.size();
  const float* p = unchanged_.probabilities.data() + index * logits.size();
  double moved = 0;
  for (size_t i = 0; i < logits.size(); ++i) moved += double{p[i]} * (before[i] - logits[i]);
  score.kl += moved - unchanged_.log_sums[index] + log_sum;
}

absl::StatusOr<WindowScore> Replayer::Score(const Codec& codec) {
  if (!loaded_) return absl::FailedPreconditionError("no window is loaded");
  WindowScore score;
  score.log_likelihoods.resize(options_.continuation_tokens);
  score.unchanged_log_likelihoods = unchanged_.log_likelihoods;
  RETURN_IF_ERROR(Continue(
      codec, [&](uint32_t i, std::span<const float> logits) { Compare(i, logits, score); }));
  for (const double x : score.log_likelihoods) score.log_likelihood += x;
  for (const double x : score.unchanged_log_likelihoods) score.unchanged_log_likelihood += x;
  return score;
}

Summary Summarise(std::span<const WindowScore> scores) {
  Summary summary;
  const auto windows = static_cast<double>(scores.size());
  double tokens = 0, unchanged = 0, change = 0, squares = 0;
  for (const WindowScore& score : scores) {
    const auto n = static_cast<double>(score.log_likelihoods.size());
    tokens += n;
    unchanged += score.unchanged_log_likelihood;
    change += (score.unchanged_log_likelihood - score.log_likelihood) / n / windows;
    summary.top1_agreement += score.top1_agreements;
    summary.kl += score.kl;
  }
  for (const WindowScore& score : scores) {
    const auto n = static_cast<double>(score.log_likelihoods.size());
    const double here = (score.unchanged_log_likelihood - score.log_likelihood) / n - change;
    squares += here * here;
  }
  summary.unchanged_perplexity = std::exp(-unchanged / tokens);
  summary.perplexity_change = std::expm1(change);
  if (scores.size() > 1) {
    summary.perplexity_change_se = std::exp(change) * std::sqrt(squares / (windows - 1) / windows);
  }
  summary.top1_agreement /= tokens;
  summary.kl /= tokens;
  return summary;
}

}  // namespace tandem::workers
