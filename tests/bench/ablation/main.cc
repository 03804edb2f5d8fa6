// `./dev bench ablation`: what each part of the KV codec's method brings. Profiles are made without
// one part each, all else equal, and compared in bits per element at equal loss.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "workers/calibration/profile_builder.h"
#include "workers/calibration/step_allocation.h"

ABSL_FLAG(std::string, model, "models/demo-q8_0.gguf", "Whose KV");
ABSL_FLAG(std::string, text, "", "What the model reads, some 40,000 tokens");
ABSL_FLAG(uint32_t, windows, 12, "Contexts of 1,536 tokens of it");
ABSL_FLAG(std::string, only, "", "Only variants whose name contains this, besides the whole");
ABSL_FLAG(std::string, json, "", "Write the figures there");

namespace tandem::bench {
namespace {

using kvstore::codec::Prediction;
using workers::Ablation;

/// Losses at which variants are compared: KL divergence, nats.
constexpr double kLosses[] = {0.0005, 0.001, 0.0035};

struct Variant {
  const char* name;
  Ablation ablation;
  std::vector<double> bits;  // at kLosses
};

std::vector<Variant> Variants() {
  std::vector<Variant> variants = {{"everything", {}, {}}};
  const auto add = [&](const char* name, const auto& change) {
    variants.push_back({name, {}, {}});
    change(variants.back().ablation);
  };
  add("keys as they are rotated", [](Ablation& a) { a.unrotate = false; });
  add("transform within heads", [](Ablation& a) { a.mixing = Ablation::Mixing::kHead; });
  add("no transform", [](Ablation& a) { a.mixing = Ablation::Mixing::kNone; });
  add("no transform, keys rotated", [](Ablation& a) {
    a.mixing = Ablation::Mixing::kNone;
    a.unrotate = false;
  });
  add("no weights within blocks", [](Ablation& a) { a.metric = false; });
  add("one step for all planes", [](Ablation& a) { a.weigh_planes = false; });
  add("8 symbol tables", [](Ablation& a) { a.max_tables = 8; });
  add("16 symbol tables", [](Ablation& a) { a.max_tables = 16; });
  add("predict from the token before", [](Ablation& a) { a.prediction = Prediction::kPrevious; });
  add("predict from anchors", [](Ablation& a) { a.prediction = Prediction::kAnchor; });
  add("no exact first tokens", [](Ablation& a) { a.sink_tokens = 0; });
  add("4 exact first tokens", [](Ablation& a) { a.sink_tokens = 4; });
  return variants;
}

std::string ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream content;
  content << in.rdbuf();
  if (!in || content.str().empty()) {
    std::fprintf(stderr, "bench_ablation: --text: cannot read '%s'\n", path.c_str());
    std::exit(1);
  }
  return content.str();
}

void Measure(Variant& variant, const std::shared_ptr<const workers::Model>& model,
             const std::string& text) {
  workers::ProfileOptions options;
  options.replay.windows = absl::GetFlag(FLAGS_windows);
  options.ablation = variant.ablation;
  const auto profile = workers::BuildProfile(model, text, options, {.threads = 2});
  if (!profile.ok()) {
    std::fprintf(stderr, "bench_ablation: %s: %s\n", variant.name,
                 profile.status().ToString().c_str());
    std::exit(1);
  }
  // The levels are four points of the variant's curve: their loss is only about its target.
  std::vector<std::pair<double, double>> curve;
  for (const auto& level : profile->levels) {
    curve.emplace_back(1 / level->measured.bits_per_element, level->measured.kl_divergence);
  }
  for (const double loss : kLosses) {
    variant.bits.push_back(1 / workers::InverseInterpolate(curve, loss));
  }
}

int Main() {
  const std::string text = ReadFile(absl::GetFlag(FLAGS_text));
  auto model = workers::Model::Load({.path = absl::GetFlag(FLAGS_model)});
  if (!model.ok()) {
    std::fprintf(stderr, "bench_ablation: %s\n", model.status().ToString().c_str());
    return 1;
  }
  nlohmann::json json = {{"bench", "ablation"}, {"kl_divergence", kLosses}};
  std::vector<Variant> variants = Variants();
  std::printf("bits per element, all side information counted, at a KL divergence of\n%-30s",
              "without");
  for (const double loss : kLosses) std::printf("%9.4f       ", loss);
  std::printf("\n");
  const std::string only = absl::GetFlag(FLAGS_only);
  std::erase_if(variants, [&, first = &variants[0]](const Variant& variant) {
    return &variant != first && std::string(variant.name).find(only) == std::string::npos;
  });
  for (Variant& variant : variants) {
    Measure(variant, *model, text);
    std::printf("%-30s", variant.name);
    for (size_t i = 0; i < variant.bits.size(); ++i) {
      std::printf("%9.3f %+5.0f%%", variant.bits[i],
                  100 * (variant.bits[i] / variants[0].bits[i] - 1));
    }
    std::printf("\n");
    std::fflush(stdout);
    json["rows"].push_back({{"variant", variant.name}, {"bits_per_element", variant.bits}});
  }
  if (const std::string path = absl::GetFlag(FLAGS_json); !path.empty()) {
    std::ofstream(path) << json.dump(2) << "\n";
  }
  return 0;
}

}  // namespace
}  // namespace tandem::bench

int main(int argc, char** argv) {
  absl::ParseCommandLine(argc, argv);
  return tandem::bench::Main();
}
