#include "workers/calibration/level_search.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/status.h"

namespace tandem::workers {
namespace {

using kvstore::codec::kLossyLevels;
using kvstore::codec::Profile;

constexpr size_t kMaxGroups = 32;
constexpr uint32_t kSomeWindows = 8, kFewWindows = 4;
/// Bits an element, as predicted, at which families of steps are compared …
constexpr std::array kTriedBits = {5.0, 3.0, 2.2, 1.6, 1.2, 0.85, 0.6, 0.42, 0.28};
/// … and at which each plane's harm is measured. The first is so fine that it does none: what is
/// measured there is how far the engine's own rounding carries any change at all.
constexpr std::array kHarmBits = {4.0, 0.7, 0.2};
constexpr double kSinkBits = 0.9;
/// Sinks beyond the first cost bits in every short context; this much less loss pays for them.
constexpr double kSinkGain = 0.03;
constexpr std::array<uint32_t, 2> kSinks = {1, 4};
/// No plane's step is further than this from the mean: what was measured alone, at two steps, on a
/// few windows, is not known better.
constexpr double kSpread = 4;
constexpr double kLeastHarm = 0.1;
/// Weights must save this share of the bits to be believed.
constexpr double kWorthWeighting = 0.005;

std::vector<uint32_t> Spread(uint32_t n, uint32_t at_most) {
  const uint32_t m = std::min(n, at_most);
  std::vector<uint32_t> windows;
  for (uint32_t i = 0; i < m; ++i) windows.push_back((2 * i + 1) * n / (2 * m));
  return windows;
}

size_t PlanesPerGroup(size_t n_planes) { return (n_planes + kMaxGroups - 1) / kMaxGroups; }

}  // namespace

uint64_t SearchWork(uint32_t n_windows, size_t n_planes) {
  const size_t size = PlanesPerGroup(n_planes);
  const uint64_t groups = 2 * ((n_planes / 2 + size - 1) / size);
  return std::min(n_windows, kFewWindows) * (1 + kHarmBits.size() * groups) +
         std::min(n_windows, kSomeWindows) * (2 + kSinks.size() + 2 * kTriedBits.size()) +
         uint64_t{n_windows} * (1 + kLossyLevels);
}

LevelSearch::LevelSearch(Trials& trials, const Profile& base, const BlockHistograms& histograms,
                         uint32_t n_windows, const Ablation& ablation)
    : trials_(trials),
      base_(base),
      histograms_(histograms),
      ablation_(ablation),
      sink_tokens_(ablation.sink_tokens.value_or(kSinks[0])),
      some_windows_(Spread(n_windows, kSomeWindows)),
      few_windows_(Spread(n_windows, kFewWindows)) {
  all_windows_.resize(n_windows);
  std::iota(all_windows_.begin(), all_windows_.end(), 0u);
  const size_t n_planes = histograms.size(), n_keys = base.geometry.layers.size();
  const size_t size = PlanesPerGroup(n_planes);
  for (size_t p = 0; p < n_planes; ++p) {
    const size_t in_kind = p < n_keys ? p : p - n_keys;
    if (in_kind % size == 0) groups_.emplace_back();
    groups_.back().push_back(p);
  }
  for (const auto& blocks : base.planes) {
    for (const auto& block : blocks) elements_ += block.n_channels;
  }
  const auto bits = [this](std::span<const size_t> group, double step) {
    double sum = 0;
    for (const size_t p : group) {
      for (const ComponentHistograms& block : histograms_[p]) sum += block.BitsAt(step);
    }
    return sum;
  };
  // From practically lossless to practically nothing, for all planes.
  double finest = 1, coarsest = 1;
  std::vector<size_t> all(n_planes);
  std::iota(all.begin(), all.end(), size_t{0});
  while (bits(all, finest) < 5 * elements_ && finest > 1e-6) finest /= 4;
  while (bits(all, coarsest) > 0.05 * elements_ && coarsest < 1e6) coarsest *= 4;
  for (const auto& group : groups_) {
    curves_.emplace_back(finest, coarsest, [&](double step) { return bits(group, step); });
  }
}

std::vector<double> LevelSearch::Family::StepsAt(const LevelSearch& search,
                                                 double coarseness) const {
  if (harms.empty()) return std::vector<double>(search.groups_.size(), coarseness);
  return AllocateSteps(search.curves_, harms, 1 / coarseness, kSpread);
}

double LevelSearch::BitsPerElement(std::span<const double> group_steps) const {
  double bits = 0;
  for (size_t g = 0; g < curves_.size(); ++g) bits += curves_[g].BitsAt(group_steps[g]);
  return bits / elements_;
}

double LevelSearch::CoarsenessFor(const Family& family, double bits_per_element) const {
  // The price of harm has no natural unit; steps have that of the curves.
  const bool equal = family.harms.empty();
  return FindFalling(equal ? curves_[0].finest() : 1e-15, equal ? curves_[0].coarsest() : 1e6,
                     bits_per_element,
                     [&](double c) { return BitsPerElement(family.StepsAt(*this, c)); });
}

Profile LevelSearch::ProfileOf(std::span<const std::vector<double>> levels,
                               uint32_t sink_tokens) const {
  std::vector<LevelCounts> counts;
  for (const std::vector<double>& group_steps : levels) {
    std::vector<double> steps(histograms_.size());
    for (size_t g = 0; g < groups_.size(); ++g) {
      for (const size_t p : groups_[g]) steps[p] = group_steps[g];
    }
    counts.push_back(PredictCounts(histograms_, std::move(steps)));
  }
  Profile base = base_;
  base.sink_tokens = sink_tokens;
  return Assemble(base, counts, ablation_.max_tables);
}

absl::Status LevelSearch::MeasureHarms(Family& weighted) {
  const Family equal;
  std::vector<std::vector<double>> steps;
  for (const double bits : kHarmBits)
    steps.push_back(equal.StepsAt(*this, CoarsenessFor(equal, bits)));
  const auto profile = std::make_shared<const Profile>(ProfileOf(steps, sink_tokens_));
  ASSIGN_OR_RETURN(const auto kls, trials_.RunAlone("planes", few_windows_, profile, groups_));
  std::vector<double> rounding = kls[0];
  std::sort(rounding.begin(), rounding.end());
  const double floor = rounding[rounding.size() / 2];
  for (size_t g = 0; g < groups_.size(); ++g) {
    spdlog::debug("calibration harm group={} floor={} fine_kl={} coarse_kl={}", g, kls[0][g],
                  kls[1][g], kls[2][g]);
    // Harm that drowns in the rounding is not known to be less than a part of it.
    const auto above = [floor](double kl) { return std::max(kl - floor, kl * kLeastHarm); };
    weighted.harms.push_back(FitHarm(steps[1][g], above(kls[1][g]), steps[2][g], above(kls[2][g])));
  }
  return absl::OkStatus();
}

absl::Status LevelSearch::ChooseSinks(const Family& family) {
  const std::vector<double> steps = family.StepsAt(*this, CoarsenessFor(family, kSinkBits));
  std::vector<std::shared_ptr<const Profile>> profiles;
  for (const uint32_t sinks : kSinks) {
    profiles.push_back(std::make_shared<const Profile>(ProfileOf({&steps, 1}, sinks)));
  }
  ASSIGN_OR_RETURN(const auto results, trials_.Run("sinks", some_windows_, profiles));
  double best = HUGE_VAL;
  for (const TrialResult& result : results) best = std::min(best, result.summary.kl);
  size_t chosen = 0;
  while (results[chosen].summary.kl > best * (1 + kSinkGain)) ++chosen;
  sink_tokens_ = kSinks[chosen];
  spdlog::debug("calibration sinks kl1={} kl4={} chosen={}", results[0].summary.kl,
                results[1].summary.kl, sink_tokens_);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<LevelSearch::Point>> LevelSearch::MeasureFamilies(
    std::span<const Family> families) {
  std::vector<Point> points;
  std::vector<std::vector<double>> steps;
  for (const Family& family : families) {
    for (const double bits : kTriedBits) {
      points.push_back({.coarseness = CoarsenessFor(family, bits)});
      steps.push_back(family.StepsAt(*this, points.back().coarseness));
    }
  }
  std::vector<std::shared_ptr<const Profile>> profiles;
  for (size_t i = 0; i < steps.size(); i += kLossyLevels) {
    const auto some = std::span(steps).subspan(i, std::min(kLossyLevels, steps.size() - i));
    profiles.push_back(std::make_shared<const Profile>(ProfileOf(some, sink_tokens_)));
  }
  ASSIGN_OR_RETURN(const auto results, trials_.Run("steps", some_windows_, profiles));
  for (size_t i = 0; i < points.size(); ++i) {
    points[i].bits_per_element = results[i].bits_per_element;
    points[i].kl = std::max(results[i].summary.kl, 1e-9);
    spdlog::debug("calibration family={} bits={} kl={} ppl={}", i / kTriedBits.size(),
                  points[i].bits_per_element, points[i].kl, results[i].summary.perplexity_change);
  }
  return points;
}

absl::StatusOr<Profile> LevelSearch::Refine(const Family& family, std::span<const Point> points,
                                            const std::array<double, kLossyLevels>& kl_targets) {
  std::vector<std::pair<double, double>> curve;
  for (const Point& point : points) curve.emplace_back(point.coarseness, point.kl);
  std::vector<double> coarseness;
  std::vector<std::vector<double>> steps;
  for (const double target : kl_targets) {
    coarseness.push_back(InverseInterpolate(curve, target));
    steps.push_back(family.StepsAt(*this, coarseness.back()));
  }
  const auto tried = std::make_shared<const Profile>(ProfileOf(steps, sink_tokens_));
  ASSIGN_OR_RETURN(const auto results, trials_.Run("levels", all_windows_, {&tried, 1}));
  for (size_t l = 0; l < kLossyLevels; ++l) {
    // All windows say better what the loss is; how it grows, the search has told.
    const double missed = std::max(results[l].summary.kl, 1e-9) / kl_targets[l];
    const double here = InverseInterpolate(curve, kl_targets[l]);
    const double moved = InverseInterpolate(curve, kl_targets[l] / missed);
    coarseness[l] *= std::clamp(moved / here, 0.25, 4.0);
    steps[l] = family.StepsAt(*this, coarseness[l]);
  }
  return ProfileOf(steps, sink_tokens_);
}

absl::StatusOr<Profile> LevelSearch::Run(const std::array<double, kLossyLevels>& kl_targets) {
  Family families[2];
  Family &equal = families[0], &weighted = families[1];
  RETURN_IF_ERROR(MeasureHarms(weighted));
  if (!ablation_.sink_tokens) RETURN_IF_ERROR(ChooseSinks(equal));
  ASSIGN_OR_RETURN(const auto points, MeasureFamilies(families));
  const auto of_equal = std::span(points).first(kTriedBits.size());
  const auto of_weighted = std::span(points).last(kTriedBits.size());
  double gain = 0;
  for (const double target : kl_targets) {
    const auto bits_at = [target](std::span<const Point> some) {
      // Bits fall as the loss grows: their inverses ascend together.
      std::vector<std::pair<double, double>> curve;
      for (const Point& point : some) curve.emplace_back(1 / point.bits_per_element, point.kl);
      return 1 / InverseInterpolate(curve, target);
    };
    gain += std::log(bits_at(of_equal) / bits_at(of_weighted)) / kLossyLevels;
  }
  spdlog::debug("calibration weights gain={}", gain);
  const bool weights = ablation_.weigh_planes && gain > kWorthWeighting;
  return Refine(weights ? weighted : equal, weights ? of_weighted : of_equal, kl_targets);
}

}  // namespace tandem::workers
