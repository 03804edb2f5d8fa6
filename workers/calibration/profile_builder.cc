#include "workers/calibration/profile_builder.h"

#include <spdlog/spdlog.h>
#include <xxhash.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status.h"
#include "workers/calibration/level_search.h"
#include "workers/calibration/text_statistics.h"
#include "workers/calibration/transform_design.h"
#include "workers/engine/geometry.h"

namespace tandem::workers {
namespace {

using kvstore::KvGeometry;
using kvstore::codec::Block;
using kvstore::codec::BlockLayout;
using kvstore::codec::kLossyLevels;
using kvstore::codec::Profile;

/// Tokens of text that sensitivity is measured with; it is a mean over all of them.
constexpr size_t kSensitivityTokens = 4096;

/// What intermediate results depend on.
std::string Binding(const Model& model, std::string_view text, const ProfileOptions& options,
                    const EngineOptions& engine) {
  const ReplayOptions& replay = options.replay;
  return absl::StrCat(model.fingerprint(), ";text=", XXH3_64bits(text.data(), text.size()),
                      ";context=", replay.context_tokens,
                      ";continuation=", replay.continuation_tokens, ";windows=", replay.windows,
                      ";chunk=", replay.chunk_tokens, ";k=", engine.k_type, ";v=", engine.v_type,
                      ";fa=", engine.flash_attention,
                      ";kl=", absl::StrJoin(options.kl_targets, ","));
}

/// Counts pieces of work.
class Meter {
 public:
  Meter(const ProfileOptions& options, uint64_t total) : options_(options), total_(total) {}
  bool operator()(std::string_view stage, uint64_t units) {
    const bool go_on =
        !options_.progress || options_.progress({.stage = stage, .done = done_, .total = total_});
    done_ += units;
    return go_on;
  }

 private:
  const ProfileOptions& options_;
  const uint64_t total_;
  uint64_t done_ = 0;
};

absl::StatusOr<std::vector<std::vector<Block>>> DesignTransforms(
    const Replayer& replayer, const KvGeometry& geometry, std::string_view text,
    const EngineOptions& settings, const BlockMoments& moments, const Ablation& ablation) {
  const Model& model = replayer.engine().model();
  std::vector<int32_t> tokens = model.Tokenize(text, /*add_special=*/false);
  if (const auto bos = model.BeginOfText()) tokens.insert(tokens.begin(), *bos);
  tokens.resize(std::min(tokens.size(), kSensitivityTokens));
  ASSIGN_OR_RETURN(const Sensitivity sensitivity,
                   MeasureSensitivity(model, settings, geometry, tokens));
  ASSIGN_OR_RETURN(const auto analyser,
                   kvstore::codec::ChunkAnalyser::Create(replayer.layout(), geometry,
                                                         model.fingerprint(), nullptr));
  std::vector<std::vector<Block>> planes;
  const size_t n_layers = geometry.layers.size();
  for (size_t p = 0; p < moments.size(); ++p) {
    const auto& plane = analyser.planes()[p];
    auto& blocks = planes.emplace_back();
    for (const auto& [first, n] : BlockLayout(plane.n_heads, plane.head_dim)) {
      const Eigen::MatrixXd metric =
          ablation.metric
              ? BlockMetric(sensitivity, geometry.rope, plane, p % n_layers, p < n_layers, first, n)
              : Eigen::MatrixXd::Identity(n, n);
      const uint32_t mixed = ablation.mixing == Ablation::Mixing::kBlock  ? n
                             : ablation.mixing == Ablation::Mixing::kHead ? plane.head_dim
                                                                          : 1;
      blocks.push_back(DesignBlock(moments[p][blocks.size()], metric, first, mixed));
    }
  }
  return planes;
}

/// A level that costs so many times what it promises is none. The search comes closer than this,
/// unless no step that it may choose is fine enough.
constexpr double kTolerance = 2;

/// The profile's true rate and loss, over all windows. Levels that do not keep their promise are
/// left out.
absl::Status Measure(Trials& trials, uint32_t n_windows, const ProfileOptions& options,
                     Profile& profile) {
  std::vector<uint32_t> windows;
  for (uint32_t i = 0; i < n_windows; ++i) windows.push_back(i);
  const auto shared = std::make_shared<const Profile>(profile);
  ASSIGN_OR_RETURN(const auto results, trials.Run("measurement", windows, {&shared, 1}));
  for (size_t l = 0; l < kLossyLevels; ++l) {
    const Summary& summary = results[l].summary;
    profile.levels[l]->measured = {
        .bits_per_element = static_cast<float>(results[l].bits_per_element),
        .perplexity_change = static_cast<float>(summary.perplexity_change),
        .perplexity_change_se = static_cast<float>(summary.perplexity_change_se),
        .kl_divergence = static_cast<float>(summary.kl),
        .top1_agreement = static_cast<float>(summary.top1_agreement)};
    if (summary.kl <= kTolerance * options.kl_targets[l]) continue;
    spdlog::warn("level is left out: it costs this model too much level=q{} kl={} allowed={}",
                 l + 1, summary.kl, options.kl_targets[l]);
    profile.levels[l].reset();
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Profile> BuildProfile(std::shared_ptr<const Model> model, std::string_view text,
                                     const ProfileOptions& options, const EngineOptions& settings) {
  ASSIGN_OR_RETURN(const auto replayer, Replayer::Create(model, text, options.replay, settings));
  ASSIGN_OR_RETURN(KvGeometry geometry, GeometryOf(replayer->engine()));
  if (!options.ablation.unrotate) geometry.rope = {};
  ASSIGN_OR_RETURN(Journal journal,
                   Journal::Open(options.partial_path, Binding(*model, text, options, settings)));
  const uint32_t n_windows = options.replay.windows;
  // Moments, histograms, symbols; search; measurement.
  const uint64_t work = uint64_t{n_windows} * (3 + 1 + kLossyLevels) +
                        SearchWork(n_windows, replayer->layout().planes.size());
  const WorkMeter meter = [counter = std::make_shared<Meter>(options, work)](std::string_view stage,
                                                                             uint64_t units) {
    return (*counter)(stage, units);
  };
  TextStatistics statistics(*replayer, geometry, journal, meter);
  Trials trials(*replayer, geometry, journal, meter);

  Profile base{.model_fingerprint = model->fingerprint(), .geometry = geometry};
  ASSIGN_OR_RETURN(const BlockMoments moments, statistics.MeasureMoments());
  ASSIGN_OR_RETURN(base.planes, DesignTransforms(*replayer, geometry, text, settings, moments,
                                                 options.ablation));
  ASSIGN_OR_RETURN(const BlockHistograms histograms,
                   statistics.MeasureHistograms(base.planes, moments));
  LevelSearch search(trials, base, histograms, n_windows, options.ablation);
  ASSIGN_OR_RETURN(const Profile predicted, search.Run(options.kl_targets));
  ASSIGN_OR_RETURN(const auto counts,
                   statistics.CountIntegers(std::make_shared<const Profile>(predicted),
                                            options.ablation.prediction));
  base.sink_tokens = predicted.sink_tokens;
  Profile profile = Assemble(base, counts, options.ablation.max_tables);
  RETURN_IF_ERROR(Measure(trials, n_windows, options, profile));
  journal.Remove();
  return profile;
}

}  // namespace tandem::workers
