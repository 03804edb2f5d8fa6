// What is loaded: a context of so many tokens, and the model that it is for. Shared by the process
// that holds its KV and the one that loads it.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "kvstore/codec/codec.h"
#include "kvstore/codec/profile.h"
#include "workers/engine/engine.h"

namespace tandem::bench {

/// Tokens of a chunk, as in a worker that is configured no other way.
inline constexpr uint32_t kChunkTokens = 256;
inline constexpr char kTenant[] = "bench";

struct Context {
  std::string name;
  std::string model_path, profile_path;
  /// The whole prompt, and how many whole chunks of it are cached.
  uint32_t n_tokens = 0;
  uint32_t n_chunks() const { return (n_tokens - 1) / kChunkTokens; }
};

/// "demo": the demo model and 2,000 tokens, of which the last 208 are in no whole chunk.
/// "synthetic": a model of random weights in the shape of Qwen 2.5 0.5B, written first where need
/// be; 4,096 cached tokens and a question of 32. NOT_FOUND for other names.
absl::StatusOr<Context> FindContext(std::string_view name);

/// A context's model in this process, and the prompt's tokens: the beginning of `text_path`.
struct LoadedContext {
  Context context;
  std::shared_ptr<const workers::Model> model;
  std::vector<int32_t> tokens;
  /// Null for the synthetic model.
  std::shared_ptr<const kvstore::codec::Profile> profile;
};
absl::StatusOr<LoadedContext> LoadContext(const Context& context, const std::string& text_path);

/// A prefill engine that retains nothing: it has one sequence. `threads` 0: half of the cores, as
/// two hosts share the machine.
absl::StatusOr<std::unique_ptr<workers::Engine>> MakeEngine(const LoadedContext& loaded,
                                                            uint32_t threads);
absl::StatusOr<kvstore::codec::Codec> MakeCodec(const LoadedContext& loaded,
                                                const workers::Engine& engine);

/// Computes `tokens` as sequence 0, after what it holds; logits after the last of them.
absl::Status Compute(workers::Engine& engine, std::span<const int32_t> tokens);

/// Seconds of the clock that all processes of this machine share.
double Now();

}  // namespace tandem::bench
