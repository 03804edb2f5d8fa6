// `tandem kv eval`: what each level saves, what it costs the model, and how fast it is, on a text.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "base/status.h"
#include "cli/kv.h"
#include "cli/svg_plot.h"
#include "kvstore/codec/codec.h"
#include "workers/calibration/replay.h"
#include "workers/calibration/trials.h"
#include "workers/engine/geometry.h"

namespace tandem::cli {
namespace {

using kvstore::KvChunk;
using kvstore::codec::Codec;
using kvstore::codec::Level;

struct Settings {
  KvInput input;
  workers::ReplayOptions replay;
  std::string profile_path, json_path, plot_path;
  std::vector<Level> levels;  // empty: all that can be used
};

Command MakeCommand(Settings& settings) {
  Settings* const s = &settings;
  Command command{
      "kv eval", "",
      "Replays a text: contexts are computed, their KV is encoded and decoded at each level, and\n"
      "the text that follows is scored with it and with the unchanged KV. Prints for each level\n"
      "bits per element (all side information counted), ratio to f16, bytes of KV a token, change\n"
      "of perplexity with its standard error, agreement on the likeliest token, KL divergence of\n"
      "the next-token distribution (nats), and the codec's speed in one thread.",
      s->input.Options()};
  const auto replay = ReplayFlags(s->replay);
  command.options.insert(command.options.end(), replay.begin(), replay.end());
  const auto add_levels = [s](const std::string& names) -> absl::Status {
    for (const auto& name : absl::StrSplit(names, ',')) {
      ASSIGN_OR_RETURN(s->levels.emplace_back(),
                       kvstore::codec::ParseLevel({name.data(), name.size()}));
    }
    return absl::OkStatus();
  };
  command.options.insert(
      command.options.end(),
      {{"level", "NAMES", "lossless, q1 ... q4, comma-separated or repeated. Default: all usable.",
        add_levels},
       {"profile", "FILE",
        "The model's KV profile. Default: the model's path with .kvprofile, if there is one.",
        ReadText([s](std::string v) { s->profile_path = std::move(v); })},
       {"json", "FILE", "Write the results as JSON.",
        ReadText([s](std::string v) { s->json_path = std::move(v); })},
       {"plot", "FILE", "Draw rate against loss as SVG.",
        ReadText([s](std::string v) { s->plot_path = std::move(v); })}});
  return command;
}

/// One level over all windows so far.
struct Tally {
  Level level;
  uint64_t encoded_bytes = 0;
  std::vector<workers::WindowScore> scores;
  /// Seconds an element, a chunk each.
  std::vector<double> encode_seconds, decode_seconds;
};

double Median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

/// One level as printed.
struct Row {
  std::string name;
  double bits_per_element, ratio_to_f16, kv_bytes_per_token;
  workers::Summary summary;
  double encode_symbols_per_s, decode_symbols_per_s;
};

class Evaluation {
 public:
  static absl::StatusOr<std::unique_ptr<Evaluation>> Create(const Settings& settings) {
    ASSIGN_OR_RETURN(const std::string text, LoadText(settings.input));
    ASSIGN_OR_RETURN(const auto model, LoadModel(settings.input));
    ASSIGN_OR_RETURN(auto replayer, workers::Replayer::Create(model, text, settings.replay,
                                                              settings.input.engine));
    ASSIGN_OR_RETURN(const auto geometry, workers::GeometryOf(replayer->engine()));
    const std::string path = settings.profile_path.empty()
                                 ? DefaultProfilePath(settings.input.model_path)
                                 : settings.profile_path;
    std::shared_ptr<const kvstore::codec::Profile> profile;
    if (!settings.profile_path.empty() || std::filesystem::exists(path)) {
      ASSIGN_OR_RETURN(profile, LoadProfile(path));
    }
    ASSIGN_OR_RETURN(Codec codec,
                     Codec::Create(replayer->layout(), geometry, model->fingerprint(), profile));
    std::unique_ptr<Evaluation> evaluation(new Evaluation(std::move(replayer), std::move(codec)));
    for (const auto& layer : geometry.layers) {
      evaluation->elements_per_token_ += layer.n_kv_heads * (layer.k_head_dim + layer.v_head_dim);
    }
    for (const Level level : settings.levels) {
      RETURN_IF_ERROR(evaluation->codec_.CheckLevel(level));
      evaluation->tallies_.push_back({.level = level});
    }
    for (const Level level : kvstore::codec::kAllLevels) {
      if (!settings.levels.empty() || !evaluation->codec_.CheckLevel(level).ok()) continue;
      evaluation->tallies_.push_back({.level = level});
    }
    return evaluation;
  }

  absl::Status Run(const std::atomic<bool>& stop,
                   const std::function<void(uint32_t window)>& progress) {
    for (uint32_t window = 0; window < replayer_->n_windows(); ++window) {
      progress(window);
      RETURN_IF_ERROR(replayer_->LoadWindow(window));
      for (Tally& tally : tallies_) {
        if (stop) return absl::CancelledError("interrupted");
        const auto codec = [&](const KvChunk& chunk) { return RoundTrip(chunk, tally); };
        ASSIGN_OR_RETURN(tally.scores.emplace_back(), replayer_->Score(codec));
      }
    }
    return absl::OkStatus();
  }

  std::vector<Row> Rows() const {
    std::vector<Row> rows;
    const double elements = elements_per_token_;
    const double tokens = 1.0 * replayer_->options().context_tokens * replayer_->n_windows();
    for (const Tally& tally : tallies_) {
      const double bytes = static_cast<double>(tally.encoded_bytes) / tokens;
      rows.push_back({.name = std::string(LevelName(tally.level)),
                      .bits_per_element = 8 * bytes / elements,
                      .ratio_to_f16 = 2 * elements / bytes,
                      .kv_bytes_per_token = bytes,
                      .summary = workers::Summarise(tally.scores),
                      .encode_symbols_per_s = 1 / Median(tally.encode_seconds),
                      .decode_symbols_per_s = 1 / Median(tally.decode_seconds)});
    }
    return rows;
  }

  /// Raw bytes an element.
  double ElementBytes() const {
    return static_cast<double>(codec_.layout().BytesPerToken()) / elements_per_token_;
  }
  double unchanged_perplexity() const {
    return workers::Summarise(tallies_[0].scores).unchanged_perplexity;
  }
  const kvstore::codec::Profile* profile() const { return codec_.profile(); }

 private:
  Evaluation(std::unique_ptr<workers::Replayer> replayer, Codec codec)
      : replayer_(std::move(replayer)), codec_(std::move(codec)) {}

  absl::StatusOr<KvChunk> RoundTrip(const KvChunk& chunk, Tally& tally) {
    using Clock = std::chrono::steady_clock;
    const auto seconds = [](Clock::time_point from) {
      return std::chrono::duration<double>(Clock::now() - from).count();
    };
    const double elements = elements_per_token_ * chunk.n_tokens;
    KvChunk decoded = chunk;
    const auto planes = PlanesOf(codec_.layout(), decoded);
    const auto start = Clock::now();
    ASSIGN_OR_RETURN(const auto bytes, codec_.Encode(chunk, {.level = tally.level}));
    tally.encode_seconds.push_back(seconds(start) / elements);
    const auto middle = Clock::now();
    RETURN_IF_ERROR(codec_.Decode(bytes, planes));
    tally.decode_seconds.push_back(seconds(middle) / elements);
    tally.encoded_bytes += bytes.size();
    return decoded;
  }

  const std::unique_ptr<workers::Replayer> replayer_;
  const Codec codec_;
  double elements_per_token_ = 0;
  std::vector<Tally> tallies_;
};

void Print(const std::vector<Row>& rows, double element_bytes, const Terminal& terminal) {
  terminal.out << "level     bits/elem  ratio  bytes/token  perplexity change    top-1       KL"
                  "     encode           decode\n";
  for (const Row& row : rows) {
    const workers::Summary& s = row.summary;
    terminal.out << absl::StrFormat(
        "%-8s  %9.3f  %5.2f  %11.0f  %+7.2f %% ± %4.2f %%  %5.1f %%  %.5f  %4.0f M/s %4.2f GB/s  "
        "%4.0f "
        "M/s %4.2f GB/s\n",
        row.name, row.bits_per_element, row.ratio_to_f16, row.kv_bytes_per_token,
        100 * s.perplexity_change, 100 * s.perplexity_change_se, 100 * s.top1_agreement, s.kl,
        row.encode_symbols_per_s / 1e6, row.encode_symbols_per_s * element_bytes / 1e9,
        row.decode_symbols_per_s / 1e6, row.decode_symbols_per_s * element_bytes / 1e9);
  }
}

nlohmann::json Json(const Settings& settings, const Evaluation& evaluation,
                    const std::vector<Row>& rows) {
  nlohmann::json levels = nlohmann::json::array();
  for (const Row& row : rows) {
    levels.push_back({{"name", row.name},
                      {"bits_per_element", row.bits_per_element},
                      {"ratio_to_f16", row.ratio_to_f16},
                      {"kv_bytes_per_token", row.kv_bytes_per_token},
                      {"perplexity_change", row.summary.perplexity_change},
                      {"perplexity_change_se", row.summary.perplexity_change_se},
                      {"top1_agreement", row.summary.top1_agreement},
                      {"kl_divergence", row.summary.kl},
                      {"encode_symbols_per_s", row.encode_symbols_per_s},
                      {"decode_symbols_per_s", row.decode_symbols_per_s}});
  }
  const workers::ReplayOptions& replay = settings.replay;
  return {{"model", settings.input.model_path},
          {"text", settings.input.text_path},
          {"profile_id",
           evaluation.profile() ? absl::StrFormat("%016x", evaluation.profile()->id) : ""},
          {"context_tokens", replay.context_tokens},
          {"continuation_tokens", replay.continuation_tokens},
          {"windows", replay.windows},
          {"chunk_tokens", replay.chunk_tokens},
          {"k_type", settings.input.engine.k_type},
          {"v_type", settings.input.engine.v_type},
          {"unchanged_perplexity", evaluation.unchanged_perplexity()},
          {"levels", levels}};
}

absl::Status WriteText(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text;
  file.close();
  if (file.good()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("cannot write ", path));
}

absl::Status Evaluate(const Settings& settings, const std::atomic<bool>& stop,
                      const Terminal& terminal) {
  ASSIGN_OR_RETURN(const auto evaluation, Evaluation::Create(settings));
  const absl::Status status = evaluation->Run(stop, [&](uint32_t window) {
    if (terminal.err_is_terminal) {
      terminal.err << "\r\33[Kwindow " << window + 1 << " of " << settings.replay.windows
                   << std::flush;
    }
  });
  if (terminal.err_is_terminal) terminal.err << "\r\33[K" << std::flush;
  RETURN_IF_ERROR(status);
  const std::vector<Row> rows = evaluation->Rows();
  Print(rows, evaluation->ElementBytes(), terminal);
  if (!settings.json_path.empty()) {
    RETURN_IF_ERROR(
        WriteText(settings.json_path, Json(settings, *evaluation, rows).dump(2) + "\n"));
  }
  if (settings.plot_path.empty()) return absl::OkStatus();
  std::vector<RateLossPoint> points;
  for (const Row& row : rows) {
    points.push_back({row.name, row.bits_per_element, row.summary.perplexity_change,
                      row.summary.perplexity_change_se});
  }
  const std::string name = std::filesystem::path(settings.input.model_path).stem();
  return WriteText(
      settings.plot_path,
      RateLossSvg(absl::StrCat(name, ", contexts of ", settings.replay.context_tokens, " tokens"),
                  points));
}

}  // namespace

int RunKvEval(std::span<char* const> args, const Terminal& terminal) {
  Settings settings;
  return RunFlagsOnly(MakeCommand(settings), args, terminal, [&](const std::atomic<bool>& stop) {
    return Evaluate(settings, stop, terminal);
  });
}

}  // namespace tandem::cli
