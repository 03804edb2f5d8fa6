// `tandem kv dump`: K and V of a text as a .npz, so that others can check the codec against theirs.
#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "cli/kv.h"
#include "cli/npz.h"
#include "workers/engine/geometry.h"

namespace tandem::cli {
namespace {

using kvstore::KvChunk;
using kvstore::KvGeometry;
using kvstore::KvLayout;
using workers::Engine;

constexpr uint32_t kStepTokens = 512;

struct Settings {
  KvInput input;
  std::string out;
  uint32_t tokens = 0;
};

Command MakeCommand(Settings& settings) {
  Settings* const s = &settings;
  Command command{
      "kv dump", "",
      "Runs a model over the beginning of a text and writes its KV cache as NumPy arrays:\n"
      "k, v [layers, tokens, channels] as cached (K after RoPE; float16, or float32 for other\n"
      "caches), inv_freq [pairs] (radians a position; absent where RoPE is not known),\n"
      "positions and token_ids [tokens].",
      s->input.Options()};
  command.options.insert(
      command.options.end(),
      {{"out", "FILE", "The .npz to write.",
        ReadText([s](std::string v) { s->out = std::move(v); })},
       {"tokens", "N", "Tokens, with BOS. Default: the text, as far as the model's context goes.",
        ReadUint32([s](uint32_t v) { s->tokens = v; })}});
  return command;
}

/// BOS, where the model wants it, and the text's beginning.
absl::StatusOr<std::vector<int32_t>> ChooseTokens(const workers::Model& model,
                                                  const Settings& settings) {
  ASSIGN_OR_RETURN(const std::string text, LoadText(settings.input));
  std::vector<int32_t> tokens = model.Tokenize(text, /*add_special=*/false);
  if (const auto bos = model.BeginOfText()) tokens.insert(tokens.begin(), *bos);
  const size_t n = settings.tokens != 0
                       ? settings.tokens
                       : std::min<size_t>(tokens.size(), model.training_context_tokens());
  if (n == 0 || n > tokens.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--tokens is ", settings.tokens, ": the text has ", tokens.size()));
  }
  tokens.resize(n);
  return tokens;
}

/// A dump's array has one shape and one type of number for all layers.
absl::Status CheckDumpable(const KvLayout& layout) {
  if (layout.opaque) {
    return absl::FailedPreconditionError("this model's memory is not a plain KV cache");
  }
  const size_t half = layout.planes.size() / 2;
  for (size_t i = 0; i < layout.planes.size(); ++i) {
    const kvstore::PlaneLayout& plane = layout.planes[i];
    if (plane.type != "f16" && plane.type != "bf16" && plane.type != "f32") {
      return absl::InvalidArgumentError(
          absl::StrCat("the cache is ", plane.type, "; f16, bf16 and f32 can be dumped"));
    }
    if (plane != layout.planes[i < half ? 0 : half]) {
      return absl::FailedPreconditionError("this model's layers have KV of different widths");
    }
  }
  return absl::OkStatus();
}

uint64_t ElementBytes(const kvstore::PlaneLayout& plane) { return plane.type == "f32" ? 4 : 2; }

/// Rows of tokens, whichever way the plane lies.
std::vector<uint8_t> TokenMajor(std::span<const uint8_t> bytes, const kvstore::PlaneLayout& plane,
                                uint32_t n_tokens) {
  if (plane.element_bytes == 0) return {bytes.begin(), bytes.end()};
  const uint64_t width = plane.element_bytes, channels = plane.row_bytes / width;
  std::vector<uint8_t> rows(bytes.size());
  for (uint64_t channel = 0; channel < channels; ++channel) {
    for (uint64_t token = 0; token < n_tokens; ++token) {
      std::memcpy(&rows[(token * channels + channel) * width],
                  &bytes[(channel * n_tokens + token) * width], width);
    }
  }
  return rows;
}

void AppendBf16AsFloat(std::span<const uint8_t> rows, std::vector<uint8_t>& out) {
  for (size_t i = 0; i < rows.size(); i += 2) {
    const uint8_t wide[] = {0, 0, rows[i], rows[i + 1]};
    out.insert(out.end(), std::begin(wide), std::end(wide));
  }
}

/// Adds planes [first, first + n) of the whole text as one array.
absl::Status AddPlanes(std::string_view name, const KvLayout& layout, size_t first, size_t n,
                       const KvChunk& chunk, NpzWriter& npz) {
  const kvstore::PlaneLayout& plane = layout.planes[first];
  const auto planes = PlanesOf(layout, chunk);
  std::vector<uint8_t> array;
  for (size_t i = first; i < first + n; ++i) {
    const std::vector<uint8_t> rows = TokenMajor(planes[i], plane, chunk.n_tokens);
    if (plane.type == "bf16") {
      AppendBf16AsFloat(rows, array);
    } else {
      array.insert(array.end(), rows.begin(), rows.end());
    }
  }
  const uint64_t shape[] = {n, chunk.n_tokens, plane.row_bytes / ElementBytes(plane)};
  return npz.Add(name, plane.type == "f16" ? "<f2" : "<f4", shape, array);
}

template <typename Number>
absl::Status AddVector(std::string_view name, std::string_view type,
                       const std::vector<Number>& values, NpzWriter& npz) {
  static_assert(std::endian::native == std::endian::little && sizeof(Number) == 4);
  const uint64_t shape[] = {values.size()};
  return npz.Add(name, type, shape,
                 {reinterpret_cast<const uint8_t*>(values.data()), values.size() * sizeof(Number)});
}

absl::Status Compute(Engine& engine, std::span<const int32_t> tokens,
                     const std::atomic<bool>& stop) {
  for (size_t first = 0; first < tokens.size();) {
    if (stop) return absl::CancelledError("interrupted");
    const size_t n = std::min<size_t>(engine.options().step_tokens, tokens.size() - first);
    const Engine::StepItem item{.sequence = 0,
                                .first_position = static_cast<int32_t>(first),
                                .tokens = tokens.subspan(first, n)};
    RETURN_IF_ERROR(engine.Step({&item, 1}));
    first += n;
  }
  return absl::OkStatus();
}

absl::Status WriteDump(const KvLayout& layout, const KvChunk& chunk, const KvGeometry& geometry,
                       const std::vector<int32_t>& tokens, const std::string& path) {
  ASSIGN_OR_RETURN(NpzWriter npz, NpzWriter::Create(path));
  const size_t layers = geometry.layers.size();
  RETURN_IF_ERROR(AddPlanes("k", layout, 0, layers, chunk, npz));
  if (layout.planes.size() > layers) {
    RETURN_IF_ERROR(AddPlanes("v", layout, layers, layers, chunk, npz));
  }
  if (geometry.rope.style != kvstore::Rope::Style::kNone) {
    RETURN_IF_ERROR(AddVector("inv_freq", "<f4", geometry.rope.radians_per_position, npz));
  }
  std::vector<int32_t> positions;
  for (size_t i = 0; i < tokens.size(); ++i) positions.push_back(static_cast<int32_t>(i));
  RETURN_IF_ERROR(AddVector("positions", "<i4", positions, npz));
  RETURN_IF_ERROR(AddVector("token_ids", "<i4", tokens, npz));
  return npz.Finish();
}

absl::Status Dump(const Settings& settings, const std::atomic<bool>& stop,
                  const Terminal& terminal) {
  if (settings.out.empty()) return absl::InvalidArgumentError("--out is missing");
  ASSIGN_OR_RETURN(const auto model, LoadModel(settings.input));
  ASSIGN_OR_RETURN(const std::vector<int32_t> tokens, ChooseTokens(*model, settings));
  workers::EngineOptions options = settings.input.engine;
  options.use = workers::EngineOptions::Use::kPrefill;
  options.context_tokens = static_cast<uint32_t>(tokens.size());
  options.max_sequences = 1;
  options.step_tokens = kStepTokens;
  ASSIGN_OR_RETURN(const auto engine, Engine::Create(model, options));
  RETURN_IF_ERROR(CheckDumpable(engine->layout()));
  ASSIGN_OR_RETURN(const KvGeometry geometry, workers::GeometryOf(*engine));
  RETURN_IF_ERROR(Compute(*engine, tokens, stop));
  ASSIGN_OR_RETURN(const KvChunk chunk,
                   engine->Extract(0, 0, static_cast<uint32_t>(tokens.size())));
  RETURN_IF_ERROR(WriteDump(engine->layout(), chunk, geometry, tokens, settings.out));

  const KvGeometry::Layer& layer = geometry.layers[0];
  const kvstore::Rope& rope = geometry.rope;
  const char* const style = rope.style == kvstore::Rope::Style::kNone          ? "unknown"
                            : rope.style == kvstore::Rope::Style::kInterleaved ? "interleaved"
                                                                               : "half";
  terminal.out << absl::StrCat(settings.out, ": ", geometry.layers.size(), " layers, ",
                               tokens.size(), " tokens, ", layer.n_kv_heads, " KV heads, K ",
                               layer.k_head_dim, " and V ", layer.v_head_dim,
                               " channels a head, RoPE ", style, " of ", rope.n_rot, " channels\n");
  return absl::OkStatus();
}

}  // namespace

int RunKvDump(std::span<char* const> args, const Terminal& terminal) {
  Settings settings;
  return RunFlagsOnly(MakeCommand(settings), args, terminal, [&](const std::atomic<bool>& stop) {
    return Dump(settings, stop, terminal);
  });
}

}  // namespace tandem::cli
