#include "workers/engine/identity.h"

#include <cstdlib>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/version.h"

namespace tandem::workers {
namespace {

/// The model's RoPE parameters from its metadata, such as "llama.rope.freq_base=10000".
std::string RopeOfModel(const llama_model* model) {
  std::string text = absl::StrCat("type=", static_cast<int>(llama_model_rope_type(model)));
  for (int32_t i = 0; i < llama_model_meta_count(model); ++i) {
    char key[256], value[256];
    if (llama_model_meta_key_by_index(model, i, key, sizeof(key)) < 0) continue;
    if (!absl::StrContains(key, ".rope.")) continue;
    llama_model_meta_val_str_by_index(model, i, value, sizeof(value));
    absl::StrAppend(&text, " ", key, "=", value);
  }
  return text;
}

/// What the context overrides of it; 0 and negative numbers mean "as in the model".
std::string RopeOfContext(const llama_context_params& params) {
  return absl::StrCat(
      "scaling=", static_cast<int>(params.rope_scaling_type), " freq_base=", params.rope_freq_base,
      " freq_scale=", params.rope_freq_scale, " yarn_ext=", params.yarn_ext_factor,
      " yarn_attn=", params.yarn_attn_factor, " yarn_beta_fast=", params.yarn_beta_fast,
      " yarn_beta_slow=", params.yarn_beta_slow, " yarn_orig_ctx=", params.yarn_orig_ctx);
}

/// Equal neighbours as one: "8 × f16 256 B, 8 × f16 256 B by channel of 2 B".
std::string PlanesOf(const kvstore::KvLayout& layout) {
  std::string text;
  for (size_t i = 0; i < layout.planes.size();) {
    const kvstore::PlaneLayout& plane = layout.planes[i];
    size_t end = i;
    while (end < layout.planes.size() && layout.planes[end] == plane) ++end;
    absl::StrAppend(&text, i == 0 ? "" : ", ", end - i, " × ", plane.type, " ", plane.row_bytes,
                    " B");
    if (plane.element_bytes != 0) {
      absl::StrAppend(&text, " by channel of ", plane.element_bytes, " B");
    }
    i = end;
  }
  return text;
}

bool RotationDisabled() {
  // libllama rotates what it stores in quantised caches unless this is set, and leaves no trace of
  // it in the bytes.
  const char* value = std::getenv("LLAMA_ATTN_ROT_DISABLE");
  return value != nullptr && std::atoi(value) != 0;
}

}  // namespace

kvstore::KvLayout LayoutOf(const MemoryKind& kind) {
  kvstore::KvLayout layout{.opaque = kind.opaque};
  for (const BlobPlane& plane : kind.format.planes) {
    layout.planes.push_back({.type = ggml_type_name(static_cast<ggml_type>(plane.ggml_type)),
                             .row_bytes = plane.row_bytes,
                             .element_bytes = plane.element_bytes});
  }
  return layout;
}

kvstore::Identity IdentityOf(const Model& model, const CacheSettings& settings,
                             const MemoryKind& kind) {
  const std::string layout = kind.opaque ? absl::StrCat("opaque: ", kind.first_token_bytes, " B + ",
                                                        kind.token_bytes, " B per token")
                                         : PlanesOf(LayoutOf(kind));
  return {
      {"engine", absl::StrCat("llama.cpp ", kLlamaCommit)},
      {"model", absl::BytesToHexString(model.fingerprint())},
      {"layers", absl::StrCat(llama_model_n_layer(model.handle()))},
      {"k_type", ggml_type_name(settings.k_type)},
      {"v_type", ggml_type_name(settings.v_type)},
      {"flash_attention", settings.flash_attention ? "on" : "off"},
      {"rope_of_model", RopeOfModel(model.handle())},
      {"rope_overrides", RopeOfContext(ContextParams(settings, ContextShape{}, 1))},
      {"cache_rotation", RotationDisabled() ? "disabled" : "as libllama chooses"},
      {"lora", "none"},
      {"kv_layout", layout},
  };
}

}  // namespace tandem::workers
