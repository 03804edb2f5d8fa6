#include "workers/engine/context.h"

#include <algorithm>
#include <exception>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"

namespace tandem::workers {
namespace {

// libllama can store a cache in these; it aborts on others.
constexpr ggml_type kCacheTypes[] = {GGML_TYPE_F32,  GGML_TYPE_F16,  GGML_TYPE_BF16,
                                     GGML_TYPE_Q8_0, GGML_TYPE_Q5_1, GGML_TYPE_Q5_0,
                                     GGML_TYPE_Q4_1, GGML_TYPE_Q4_0, GGML_TYPE_IQ4_NL};

absl::StatusOr<ggml_type> ParseCacheType(std::string_view option, const std::string& name) {
  std::vector<std::string> names;
  for (ggml_type type : kCacheTypes) {
    if (name == ggml_type_name(type)) return type;
    names.push_back(ggml_type_name(type));
  }
  return absl::InvalidArgumentError(absl::StrCat(
      View(option), " is \"", name, "\", must be one of ", absl::StrJoin(names, ", ")));
}

absl::Status CheckRange(std::string_view option, uint64_t value, uint64_t low, uint64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(View(option), " is ", value, ", must be ", low, " to ", high));
}

/// libllama aborts when a row does not consist of whole quantisation blocks.
absl::Status CheckBlocks(const Model& model, std::string_view option, ggml_type type) {
  const int heads = llama_model_n_head(model.handle());
  if (!ggml_is_quantized(type) || heads <= 0) return absl::OkStatus();
  const int64_t head = llama_model_n_embd(model.handle()) / heads;
  if (head % ggml_blck_size(type) == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(View(option), " is ", ggml_type_name(type), ", whose blocks of ",
                   ggml_blck_size(type), " values do not divide this model's heads of ", head));
}

/// The CPU backend's function of that name; it may live in a shared object loaded at run time.
template <typename Function>
Function* CpuFunction(const char* name) {
  ggml_backend_dev_t device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
  if (device == nullptr) return nullptr;
  ggml_backend_reg_t backend = ggml_backend_dev_backend_reg(device);
  return reinterpret_cast<Function*>(ggml_backend_reg_get_proc_address(backend, name));
}

}  // namespace

absl::Status CheckOptions(const Model& model, const EngineOptions& options) {
  if (model.vocabulary_only()) {
    return absl::InvalidArgumentError(
        absl::StrCat("model ", model.path(), " was loaded without its weights"));
  }
  if (llama_model_has_encoder(model.handle()) || !llama_model_has_decoder(model.handle()) ||
      llama_model_is_diffusion(model.handle())) {
    return absl::InvalidArgumentError(
        absl::StrCat("model ", model.path(), " does not generate text token by token"));
  }
  constexpr uint64_t kMaxTokens = std::numeric_limits<int32_t>::max() / 2;
  // One id of a prefill context is for extraction.
  const bool prefill = options.use == EngineOptions::Use::kPrefill;
  const uint64_t ids = llama_max_parallel_sequences() - (prefill ? 1 : 0);
  RETURN_IF_ERROR(CheckRange("context_tokens", options.context_tokens, 1, kMaxTokens));
  RETURN_IF_ERROR(CheckRange("max_sequences", options.max_sequences, 1, ids));
  RETURN_IF_ERROR(CheckRange("step_tokens", options.step_tokens, 1, 1 << 20));
  RETURN_IF_ERROR(CheckRange("threads", options.threads, 1, GGML_MAX_N_THREADS));
  RETURN_IF_ERROR(CheckRange("context_tokens × max_sequences",
                             uint64_t{options.context_tokens} * options.max_sequences, 1,
                             kMaxTokens));
  if (prefill && options.kv_tokens != 0) {
    return CheckRange("kv_tokens", options.kv_tokens, options.context_tokens, kMaxTokens);
  }
  return absl::OkStatus();
}

absl::StatusOr<CacheSettings> ParseCacheSettings(const Model& model, const EngineOptions& options) {
  CacheSettings settings;
  settings.flash_attention = options.flash_attention;
  ASSIGN_OR_RETURN(settings.k_type, ParseCacheType("k_type", options.k_type));
  ASSIGN_OR_RETURN(settings.v_type, ParseCacheType("v_type", options.v_type));
  if (ggml_is_quantized(settings.v_type) && !settings.flash_attention) {
    return absl::InvalidArgumentError(
        absl::StrCat("v_type is \"", options.v_type, "\": a quantised V needs flash_attention"));
  }
  RETURN_IF_ERROR(CheckBlocks(model, "k_type", settings.k_type));
  RETURN_IF_ERROR(CheckBlocks(model, "v_type", settings.v_type));
  return settings;
}

ComputeThreads::ComputeThreads(uint32_t n) : n_(n) {
  auto* make = CpuFunction<decltype(ggml_threadpool_new)>("ggml_threadpool_new");
  if (n < 2 || make == nullptr) return;
  ggml_threadpool_params params = ggml_threadpool_params_default(static_cast<int>(n));
  params.poll = 0;  // sleep between graphs: polling burns up to 0.4 s of CPU after each
  pool_ = make(&params);
}

ComputeThreads::~ComputeThreads() {
  if (pool_ != nullptr) CpuFunction<decltype(ggml_threadpool_free)>("ggml_threadpool_free")(pool_);
}

llama_context_params ContextParams(const CacheSettings& settings, const ContextShape& shape,
                                   uint32_t threads) {
  llama_context_params params = llama_context_default_params();
  params.n_ctx = shape.n_ctx;
  params.n_batch = params.n_ubatch = shape.step_tokens;
  params.n_seq_max = shape.n_sequences;
  // The default, n_batch, makes libllama abort when it is below n_seq_max, and wastes memory.
  params.n_outputs_max =
      shape.all_logits ? std::max(shape.step_tokens, shape.n_sequences) : shape.n_sequences;
  params.cb_eval = shape.observer;
  params.cb_eval_user_data = shape.observer_data;
  params.n_threads = params.n_threads_batch = static_cast<int32_t>(threads);
  params.flash_attn_type =
      settings.flash_attention ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
  params.type_k = settings.k_type;
  params.type_v = settings.v_type;
  params.kv_unified = shape.unified;
  params.swa_full = false;  // a sliding window's cache holds the window, not the whole context
  return params;
}

absl::StatusOr<ContextPtr> MakeContext(const Model& model, const CacheSettings& settings,
                                       const ContextShape& shape, const ComputeThreads& threads) {
  const LibllamaErrors errors;
  ContextPtr context(
      llama_init_from_model(model.handle(), ContextParams(settings, shape, threads.n())));
  if (context == nullptr) {
    return absl::ResourceExhaustedError(
        absl::StrCat("libllama cannot make a context of ", shape.n_ctx, " tokens for ",
                     shape.n_sequences, " sequences: ", errors.Text("no reason given")));
  }
  if (threads.pool() != nullptr) {
    llama_attach_threadpool(context.get(), threads.pool(), threads.pool());
  }
  return context;
}

StepBatch::StepBatch(uint32_t capacity)
    : tokens_(capacity),
      positions_(capacity),
      n_sequences_(capacity, 1),
      sequences_(capacity),
      sequence_pointers_(capacity),
      logits_(capacity) {
  for (uint32_t i = 0; i < capacity; ++i) sequence_pointers_[i] = &sequences_[i];
}

int32_t StepBatch::Add(int32_t token, int32_t position, int32_t sequence, bool want_logits) {
  tokens_[n_] = token;
  positions_[n_] = position;
  sequences_[n_] = sequence;
  logits_[n_] = want_logits;
  return n_++;
}

absl::Status StepBatch::Decode(llama_context* context) {
  const llama_batch batch{.n_tokens = n_,
                          .token = tokens_.data(),
                          .embd = nullptr,
                          .pos = positions_.data(),
                          .n_seq_id = n_sequences_.data(),
                          .seq_id = sequence_pointers_.data(),
                          .logits = logits_.data()};
  const LibllamaErrors errors;
  int32_t result = 0;
  try {
    result = llama_decode(context, batch);
    llama_synchronize(context);
  } catch (const std::exception& thrown) {
    return absl::InternalError(absl::StrCat("libllama failed: ", thrown.what()));
  }
  if (result == 0) return absl::OkStatus();
  if (result == 1) {
    return absl::ResourceExhaustedError(absl::StrCat("no free KV cells for ", n_, " tokens"));
  }
  return absl::InternalError(
      absl::StrCat("libllama failed with code ", result, ": ", errors.Text("no reason given")));
}

}  // namespace tandem::workers
