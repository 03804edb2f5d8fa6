// Sampling: libllama's filters, our own draw.
#include "workers/engine/sampler.h"

#include <algorithm>
#include <cmath>

#include "workers/engine/libllama.h"

namespace tandem::workers {
namespace {

/// A top-k up to this is selected from the logits directly; beyond it sorting is as good.
constexpr int32_t kSelectableK = 256;

uint64_t Mix(uint64_t x) {  // splitmix64's finaliser
  x ^= x >> 30;
  x *= 0xbf58476d1ce4e5b9;
  x ^= x >> 27;
  x *= 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

/// Most likely first; of equals the lowest id first.
bool Better(const llama_token_data& a, const llama_token_data& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
}

int32_t ArgMax(std::span<const float> logits) {
  int32_t best = 0;
  for (size_t i = 1; i < logits.size(); ++i) {
    if (logits[i] > logits[best]) best = static_cast<int32_t>(i);
  }
  return best;
}

}  // namespace

double UniformAt(uint64_t seed, uint32_t position) {
  constexpr uint64_t kGoldenRatio = 0x9e3779b97f4a7c15;
  const uint64_t bits = Mix(Mix(seed + kGoldenRatio) + kGoldenRatio * (uint64_t{position} + 1));
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

struct Sampler::Candidates {
  std::vector<llama_token_data> tokens;
  /// The first `size` tokens are candidates.
  size_t size = 0;
  /// By Better; otherwise by id.
  bool sorted = false;

  /// All tokens, by id.
  void TakeAll(std::span<const float> logits) {
    tokens.resize(logits.size());
    for (size_t i = 0; i < logits.size(); ++i) tokens[i] = {static_cast<int32_t>(i), logits[i], 0};
    size = logits.size();
    sorted = false;
  }

  /// The k best, sorted: a heap with the worst of them on top, so that most tokens cost one
  /// comparison.
  void TakeTop(std::span<const float> logits, size_t k) {
    tokens.clear();
    for (size_t i = 0; i < logits.size(); ++i) {
      const llama_token_data token{static_cast<int32_t>(i), logits[i], 0};
      if (tokens.size() == k) {
        if (!Better(token, tokens.front())) continue;
        std::pop_heap(tokens.begin(), tokens.end(), Better);
        tokens.pop_back();
      }
      tokens.push_back(token);
      std::push_heap(tokens.begin(), tokens.end(), Better);
    }
    std::sort_heap(tokens.begin(), tokens.end(), Better);
    size = tokens.size();
    sorted = true;
  }

  void Apply(llama_sampler* chain) {
    llama_token_data_array array{
        .data = tokens.data(), .size = size, .selected = -1, .sorted = sorted};
    llama_sampler_apply(chain, &array);
    size = array.size;
    // libllama leaves the order of equals open.
    if (array.sorted && !sorted) std::sort(tokens.begin(), tokens.begin() + size, Better);
    sorted = array.sorted;
  }

  float BestLogit() const {
    float best = tokens[0].logit;
    for (size_t i = 1; i < size && !sorted; ++i) best = std::max(best, tokens[i].logit);
    return best;
  }

  /// The token at the share `uniform` of the probability mass of exp(logit / temperature).
  int32_t Draw(double temperature, double uniform) {
    const double best = BestLogit();
    double total = 0;
    for (size_t i = 0; i < size; ++i) {
      tokens[i].p = static_cast<float>(std::exp((tokens[i].logit - best) / temperature));
      total += tokens[i].p;
    }
    const double target = uniform * total;
    double sum = 0;
    size_t last = 0;  // the last that is possible at all, for when rounding leaves sum < target
    for (size_t i = 0; i < size; ++i) {
      if (!(tokens[i].p > 0)) continue;
      last = i;
      sum += tokens[i].p;
      if (sum > target) break;
    }
    return tokens[last].id;
  }

  int32_t Best() const {
    return std::min_element(tokens.begin(), tokens.begin() + size, Better)->id;
  }
};

Sampler::Sampler(std::shared_ptr<const Model> model, const SamplingOptions& options,
                 std::span<const int32_t> history)
    : model_(std::move(model)), options_(options), candidates_(std::make_unique<Candidates>()) {
  const bool greedy = options_.temperature <= 0;
  const auto vocabulary = static_cast<int32_t>(model_->vocabulary_size());
  int32_t last_n = options_.penalty_last_n;
  if (last_n < 0) {  // the whole context
    last_n =
        static_cast<int32_t>(std::max<size_t>(model_->training_context_tokens(), history.size()));
  }
  penalties_ = last_n > 0 && (options_.repetition_penalty != 1 || options_.frequency_penalty != 0 ||
                              options_.presence_penalty != 0);
  std::vector<llama_sampler*> filters;
  if (penalties_) {
    filters.push_back(llama_sampler_init_penalties(vocabulary, last_n,
                                                   static_cast<float>(options_.repetition_penalty),
                                                   static_cast<float>(options_.frequency_penalty),
                                                   static_cast<float>(options_.presence_penalty)));
  }
  // None of the others ever removes the best token.
  if (!greedy && options_.top_k > 0) filters.push_back(llama_sampler_init_top_k(options_.top_k));
  if (!greedy && options_.top_p < 1) {
    filters.push_back(llama_sampler_init_top_p(static_cast<float>(options_.top_p), 1));
  }
  if (!greedy && options_.min_p > 0) {
    filters.push_back(llama_sampler_init_min_p(static_cast<float>(options_.min_p), 1));
  }
  if (filters.empty()) return;
  chain_ = llama_sampler_chain_init(llama_sampler_chain_default_params());
  for (llama_sampler* filter : filters) llama_sampler_chain_add(chain_, filter);
  for (int32_t token : history) Accept(token);
}

Sampler::~Sampler() {
  if (chain_ != nullptr) llama_sampler_free(chain_);
}

void Sampler::Filter(std::span<const float> logits) {
  const int32_t k = options_.top_k;
  const bool select = !penalties_ && k > 0 && k <= kSelectableK;
  if (select) {
    candidates_->TakeTop(logits, static_cast<size_t>(k));
  } else {
    candidates_->TakeAll(logits);
  }
  if (chain_ != nullptr) candidates_->Apply(chain_);
}

int32_t Sampler::Sample(std::span<const float> logits, uint32_t position) {
  const bool greedy = options_.temperature <= 0;
  int32_t token = 0;
  if (greedy && !penalties_) {
    token = ArgMax(logits);
  } else {
    Filter(logits);
    token = greedy ? candidates_->Best()
                   : candidates_->Draw(options_.temperature, UniformAt(options_.seed, position));
  }
  Accept(token);
  return token;
}

void Sampler::Accept(int32_t token) {
  if (penalties_) llama_sampler_accept(chain_, token);
}

bool Sampler::IsStop(int32_t token) const {
  const auto& stops = options_.stop_token_ids;
  if (std::find(stops.begin(), stops.end(), token) != stops.end()) return true;
  return !options_.ignore_eos && model_->IsEndOfGeneration(token);
}

}  // namespace tandem::workers
