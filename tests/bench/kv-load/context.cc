#include "tests/bench/kv-load/context.h"

#include <chrono>
#include <fstream>
#include <thread>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "tests/bench/synthetic_model/synthetic_model.h"
#include "workers/engine/geometry.h"

namespace tandem::bench {
namespace {

constexpr uint32_t kQuestionTokens = 32;

std::string Source(const char* path) { return std::string(TANDEM_SOURCE_DIR) + "/" + path; }

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::string bytes((std::istreambuf_iterator<char>(in)), {});
  if (in.bad() || bytes.empty()) return absl::NotFoundError(absl::StrCat("cannot read ", path));
  return bytes;
}

}  // namespace

absl::StatusOr<Context> FindContext(std::string_view name) {
  const std::string demo = Source("models/demo-q8_0.gguf");
  if (name == "demo") {
    return Context{.name = "demo",
                   .model_path = demo,
                   .profile_path = Source("models/demo-q8_0.kvprofile"),
                   .n_tokens = 2000};
  }
  if (name != "synthetic") return absl::NotFoundError("there is a 'demo' and a 'synthetic' model");
  ASSIGN_OR_RETURN(const std::string model, SyntheticModelFile(SyntheticModel::kHalfBillion, demo));
  return Context{.name = "synthetic", .model_path = model, .n_tokens = 4096 + kQuestionTokens};
}

absl::StatusOr<LoadedContext> LoadContext(const Context& context, const std::string& text_path) {
  LoadedContext loaded{.context = context};
  ASSIGN_OR_RETURN(loaded.model, workers::Model::Load({.path = context.model_path}));
  ASSIGN_OR_RETURN(const std::string text, ReadFile(text_path));
  loaded.tokens = loaded.model->Tokenize(text, /*add_special=*/true);
  // A short text is read again and again.
  const size_t once = loaded.tokens.size();
  while (loaded.tokens.size() < context.n_tokens) {
    loaded.tokens.push_back(loaded.tokens[loaded.tokens.size() - once + 1]);
  }
  loaded.tokens.resize(context.n_tokens);
  if (context.profile_path.empty()) return loaded;
  ASSIGN_OR_RETURN(const std::string bytes, ReadFile(context.profile_path));
  ASSIGN_OR_RETURN(
      auto profile,
      kvstore::codec::ParseProfile({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}));
  loaded.profile = std::make_shared<const kvstore::codec::Profile>(std::move(profile));
  return loaded;
}

absl::StatusOr<std::unique_ptr<workers::Engine>> MakeEngine(const LoadedContext& loaded,
                                                            uint32_t threads) {
  if (threads == 0) threads = std::max(1u, std::thread::hardware_concurrency() / 2);
  return workers::Engine::Create(
      loaded.model,
      {.context_tokens = loaded.context.n_tokens + 32, .max_sequences = 1, .threads = threads});
}

absl::StatusOr<kvstore::codec::Codec> MakeCodec(const LoadedContext& loaded,
                                                const workers::Engine& engine) {
  ASSIGN_OR_RETURN(const kvstore::KvGeometry geometry, workers::GeometryOf(engine));
  return kvstore::codec::Codec::Create(engine.layout(), geometry, loaded.model->fingerprint(),
                                       loaded.profile);
}

absl::Status Compute(workers::Engine& engine, std::span<const int32_t> tokens) {
  while (!tokens.empty()) {
    const size_t n = std::min<size_t>(tokens.size(), engine.options().step_tokens);
    const workers::Engine::StepItem item{.first_position = static_cast<int32_t>(engine.Length(0)),
                                         .tokens = tokens.first(n),
                                         .want_logits = n == tokens.size()};
    RETURN_IF_ERROR(engine.Step({&item, 1}));
    tokens = tokens.subspan(n);
  }
  return absl::OkStatus();
}

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace tandem::bench
