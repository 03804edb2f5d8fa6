#include "tests/support/bare_engine.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "llama.h"

namespace tandem::oracle {
namespace {

/// Pieces in which the other sequences' prompts are computed.
constexpr uint32_t kOtherPiece = 64;

void InitOnce() {
  static const bool done = [] {
    llama_backend_init();
    llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
    return true;
  }();
  (void)done;
}

bool FindType(const std::string& name, ggml_type* type) {
  for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
    *type = static_cast<ggml_type>(i);
    const char* candidate = ggml_type_name(*type);
    if (candidate != nullptr && name == candidate) return true;
  }
  return false;
}

/// How far the distances between `want`'s top token and its next likeliest differ in `got`.
float LargestMove(const std::vector<float>& want, const std::vector<float>& got) {
  std::vector<int32_t> ids(want.size());
  std::iota(ids.begin(), ids.end(), 0);
  const auto end = ids.begin() + std::min(BareEngine::kContenders + 1, ids.size());
  std::partial_sort(ids.begin(), end, ids.end(),
                    [&](int32_t a, int32_t b) { return want[a] > want[b]; });
  float move = 0;
  for (auto id = ids.begin(); id != end; ++id) {
    const float distance = want[ids[0]] - want[*id];
    move = std::max(move, std::abs(got[ids[0]] - got[*id] - distance));
  }
  return move;
}

/// One sequence's or several sequences' tokens on their way through one context.
class Run {
 public:
  static absl::StatusOr<Run> Make(llama_model* model, const BareEngine::Options& options,
                                  const StepShape& shape, uint32_t sequences) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = (options.context_tokens + 255) / 256 * 256 * sequences;
    params.n_batch = params.n_ubatch = std::max({shape.step_tokens, sequences, kOtherPiece});
    params.n_seq_max = sequences;
    params.n_threads = params.n_threads_batch = 1;
    params.flash_attn_type =
        options.flash_attention ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    params.kv_unified = shape.unified;
    FindType(options.k_type, &params.type_k);
    FindType(options.v_type, &params.type_v);
    llama_context* context = llama_init_from_model(model, params);
    if (context == nullptr) return absl::InternalError("llama_init_from_model failed");
    return Run(context);
  }

  void Add(int32_t token, int32_t position, int32_t sequence, bool logits) {
    tokens_.push_back(token);
    positions_.push_back(position);
    sequences_.push_back(sequence);
    logits_.push_back(logits);
  }

  absl::Status Decode() {
    std::vector<int32_t> ones(tokens_.size(), 1);
    std::vector<llama_seq_id*> pointers;
    for (int32_t& sequence : sequences_) pointers.push_back(&sequence);
    llama_batch batch{static_cast<int32_t>(tokens_.size()),
                      tokens_.data(),
                      nullptr,
                      positions_.data(),
                      ones.data(),
                      pointers.data(),
                      logits_.data()};
    const int result = llama_decode(context_.get(), batch);
    tokens_.clear();
    positions_.clear();
    sequences_.clear();
    logits_.clear();
    if (result == 0) return absl::OkStatus();
    return absl::InternalError(absl::StrCat("llama_decode returned ", result));
  }

  /// A prompt in pieces; logits after its last token.
  absl::Status Prefill(std::span<const int32_t> prompt, int32_t sequence, uint32_t piece) {
    for (size_t i = 0; i < prompt.size();) {
      const size_t end = std::min<size_t>(prompt.size(), i + piece);
      for (; i < end; ++i) {
        Add(prompt[i], static_cast<int32_t>(i), sequence, i + 1 == prompt.size());
      }
      RETURN_IF_ERROR(Decode());
    }
    return absl::OkStatus();
  }

  /// The same beside another prompt; see StepShape::fellow_tokens. Returns the row of the logits.
  absl::StatusOr<int32_t> PrefillWithFellow(std::span<const int32_t> prompt,
                                            const StepShape& shape) {
    constexpr int32_t kFellow = 1;
    uint32_t fellow = std::min(shape.fellow_tokens, shape.step_tokens / 2);
    int32_t row = 0;
    for (size_t i = 0; i < prompt.size(); fellow /= 2) {
      for (uint32_t f = 0; f < fellow; ++f) {
        Add(prompt[f % prompt.size()], static_cast<int32_t>(f), kFellow, false);
      }
      const size_t end = std::min<size_t>(prompt.size(), i + shape.step_tokens - fellow);
      row = static_cast<int32_t>(fellow + end - i) - 1;
      for (; i < end; ++i) Add(prompt[i], static_cast<int32_t>(i), 0, i + 1 == prompt.size());
      RETURN_IF_ERROR(Decode());
      llama_memory_seq_rm(llama_get_memory(context_.get()), kFellow, -1, -1);
    }
    return row;
  }

  /// Logits after the last token of the last Decode's row `row`.
  const float* Logits(int32_t row) const { return llama_get_logits_ith(context_.get(), row); }

 private:
  explicit Run(llama_context* context) : context_(context, llama_free) {}
  std::unique_ptr<llama_context, decltype(&llama_free)> context_;
  std::vector<llama_token> tokens_;
  std::vector<llama_pos> positions_;
  std::vector<llama_seq_id> sequences_;
  std::vector<int8_t> logits_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<BareEngine>> BareEngine::Load(const Options& options) {
  InitOnce();
  ggml_type unused;
  if (!FindType(options.k_type, &unused) || !FindType(options.v_type, &unused)) {
    return absl::InvalidArgumentError("unknown cache type");
  }
  std::unique_ptr<BareEngine> engine(new BareEngine());
  engine->options_ = options;
  llama_model_params params = llama_model_default_params();
  params.n_gpu_layers = 0;
  engine->model_ = llama_model_load_from_file(options.model_path.c_str(), params);
  if (engine->model_ == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("cannot load ", options.model_path));
  }
  return engine;
}

BareEngine::~BareEngine() {
  if (model_ != nullptr) llama_model_free(model_);
}

std::vector<int32_t> BareEngine::Tokenize(std::string_view text) const {
  std::vector<int32_t> tokens(text.size() + 16);
  const int32_t n =
      llama_tokenize(llama_model_get_vocab(model_), text.data(), static_cast<int32_t>(text.size()),
                     tokens.data(), static_cast<int32_t>(tokens.size()), true, false);
  tokens.resize(std::max(n, 0));
  return tokens;
}

std::string BareEngine::Text(std::span<const int32_t> tokens) const {
  std::string text;
  for (int32_t token : tokens) {
    char piece[256];
    const int32_t n =
        llama_token_to_piece(llama_model_get_vocab(model_), token, piece, sizeof(piece), 0, false);
    text.append(piece, std::max(n, 0));
  }
  return text;
}

uint32_t BareEngine::vocabulary_size() const {
  return static_cast<uint32_t>(llama_vocab_n_tokens(llama_model_get_vocab(model_)));
}

absl::StatusOr<std::vector<int32_t>> BareEngine::Greedy(std::span<const int32_t> prompt, uint32_t n,
                                                        const StepShape& shape, bool ignore_eos) {
  ASSIGN_OR_RETURN(Run run, Run::Make(model_, options_, shape, 1));
  RETURN_IF_ERROR(run.Prefill(prompt, 0, shape.step_tokens));
  auto row = static_cast<int32_t>((prompt.size() - 1) % shape.step_tokens);
  std::vector<int32_t> generated;
  while (generated.size() < n) {
    const float* logits = run.Logits(row);
    const auto token =
        static_cast<int32_t>(std::max_element(logits, logits + vocabulary_size()) - logits);
    if (!ignore_eos && llama_vocab_is_eog(llama_model_get_vocab(model_), token)) break;
    generated.push_back(token);
    if (generated.size() == n) break;
    run.Add(token, static_cast<int32_t>(prompt.size() + generated.size() - 1), 0, true);
    RETURN_IF_ERROR(run.Decode());
    row = 0;
  }
  return generated;
}

absl::StatusOr<std::vector<std::vector<float>>> BareEngine::TeacherForced(
    std::span<const int32_t> tokens, size_t n_prompt, const StepShape& shape) {
  ASSIGN_OR_RETURN(Run run, Run::Make(model_, options_, shape, shape.sequences));
  // The others' prompts: short, so that they cost little, and of different lengths. In a unified
  // cache half of them lie before ours.
  const auto other_length = [&](uint32_t s) { return std::min<size_t>(tokens.size(), 3 + s); };
  for (uint32_t s = 1; s < shape.sequences && shape.fellow_tokens == 0; s += 2) {
    RETURN_IF_ERROR(
        run.Prefill(tokens.first(other_length(s)), static_cast<int32_t>(s), kOtherPiece));
  }
  auto row = static_cast<int32_t>((n_prompt - 1) % shape.step_tokens);
  if (shape.fellow_tokens > 0) {
    ASSIGN_OR_RETURN(row, run.PrefillWithFellow(tokens.first(n_prompt), shape));
  } else {
    RETURN_IF_ERROR(run.Prefill(tokens.first(n_prompt), 0, shape.step_tokens));
  }
  std::vector<std::vector<float>> all;
  const auto keep = [&](int32_t row) {
    const float* logits = run.Logits(row);
    all.emplace_back(logits, logits + vocabulary_size());
  };
  keep(row);
  for (uint32_t s = shape.fellow_tokens > 0 ? 1 : 2; s < shape.sequences; s += 2) {
    RETURN_IF_ERROR(
        run.Prefill(tokens.first(other_length(s)), static_cast<int32_t>(s), kOtherPiece));
  }
  for (size_t i = n_prompt; i + 1 < tokens.size(); ++i) {
    run.Add(tokens[i], static_cast<int32_t>(i), 0, true);
    for (uint32_t s = 1; s < shape.sequences; ++s) {
      run.Add(tokens[(i + s) % tokens.size()], static_cast<int32_t>(other_length(s) + i - n_prompt),
              static_cast<int32_t>(s), true);
    }
    RETURN_IF_ERROR(run.Decode());
    keep(0);
  }
  return all;
}

absl::StatusOr<std::vector<float>> BareEngine::Gaps(std::span<const int32_t> tokens,
                                                    size_t n_prompt, const StepShape& shape) {
  ASSIGN_OR_RETURN(const auto all, TeacherForced(tokens, n_prompt, shape));
  std::vector<float> gaps;
  for (size_t i = 0; i < all.size() && n_prompt + i < tokens.size(); ++i) {
    const float top = *std::max_element(all[i].begin(), all[i].end());
    gaps.push_back(top - all[i][tokens[n_prompt + i]]);
  }
  return gaps;
}

absl::StatusOr<float> BareEngine::StepShapeNoise(std::span<const int32_t> tokens, size_t n_prompt,
                                                 const StepShape& reference,
                                                 std::span<const StepShape> shapes) {
  ASSIGN_OR_RETURN(const auto want, TeacherForced(tokens, n_prompt, reference));
  float noise = 0;
  for (const StepShape& shape : shapes) {
    ASSIGN_OR_RETURN(const auto got, TeacherForced(tokens, n_prompt, shape));
    for (size_t i = 0; i < want.size(); ++i) noise = std::max(noise, LargestMove(want[i], got[i]));
  }
  return noise;
}

std::vector<StepShape> BusyShapes(uint32_t step_tokens) {
  std::vector<StepShape> shapes;
  for (uint32_t sequences : {2u, 3u, 4u, 8u, 16u}) {
    shapes.push_back({.step_tokens = step_tokens, .sequences = sequences});
    shapes.push_back({.step_tokens = step_tokens, .sequences = sequences, .unified = true});
  }
  for (uint32_t piece : {1u, 7u, 32u, 100u}) shapes.push_back({.step_tokens = piece});
  for (uint32_t step : {64u, 200u, step_tokens}) {
    shapes.push_back(
        {.step_tokens = step, .sequences = 2, .unified = true, .fellow_tokens = step / 2});
  }
  return shapes;
}

absl::Status MakeF16Model(const std::string& from, const std::string& to) {
  InitOnce();
  llama_model_quantize_params params = llama_model_quantize_default_params();
  params.nthread = 1;
  params.ftype = LLAMA_FTYPE_MOSTLY_F16;
  params.allow_requantize = true;
  if (llama_model_quantize(from.c_str(), to.c_str(), &params) == 0) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("cannot convert ", from, " to f16"));
}

}  // namespace tandem::oracle
