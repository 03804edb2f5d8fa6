// The geometry that the codec is given: heads, and how keys are rotated, for models of each kind.
#include "workers/engine/geometry.h"

#include <gmock/gmock.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>

#include "tests/integration/engine/engine_fixture.h"
#include "tests/support/tiny_model.h"

namespace tandem::workers {
namespace {

using kvstore::KvGeometry;
using kvstore::Rope;
using testing_models::TinyKind;

KvGeometry Geometry(const EngineOptions& options,
                    std::shared_ptr<const Model> model = DemoModel()) {
  const auto geometry = GeometryOf(*MakeEngine(options, std::move(model)));
  EXPECT_TRUE(geometry.ok()) << geometry.status();
  return geometry.value_or(KvGeometry());
}

KvGeometry GeometryOfTiny(TinyKind kind) {
  const std::string path = ::testing::TempDir() + std::to_string(getpid()) + "-geometry.gguf";
  EXPECT_TRUE(testing_models::WriteTinyModel(kind, DemoModelPath(), path).ok());
  const auto model = Model::Load({.path = path});
  std::filesystem::remove(path);
  if (!model.ok()) {
    ADD_FAILURE() << model.status();
    return {};
  }
  return Geometry(Options(EngineOptions::Use::kPrefill), *model);
}

TEST(GeometryTest, OfTheDemoModel) {
  for (const auto use : {EngineOptions::Use::kPrefill, EngineOptions::Use::kDecode}) {
    for (const bool flash_attention : {true, false}) {
      for (const std::string type : {"f16", "bf16", "f32"}) {
        EngineOptions options = Options(use);
        options.flash_attention = flash_attention;
        options.k_type = options.v_type = type;
        const KvGeometry geometry = Geometry(options);
        EXPECT_EQ(geometry.layers, std::vector(8, KvGeometry::Layer{2, 64, 64})) << type;
        EXPECT_EQ(geometry.rope.style, Rope::Style::kInterleaved) << type;
        EXPECT_EQ(geometry.rope.n_rot, 64u);
        ASSERT_EQ(geometry.rope.radians_per_position.size(), 32u);
        for (int i = 0; i < 32; ++i) {
          const double theta = std::pow(10000.0, -2.0 * i / 64);
          EXPECT_NEAR(geometry.rope.radians_per_position[i] / theta, 1, 1e-6);
        }
      }
    }
  }
}

TEST(GeometryTest, KeysOfAQuantisedCacheAreLeftAlone) {
  EngineOptions options = Options(EngineOptions::Use::kPrefill);
  options.k_type = options.v_type = "q8_0";
  const KvGeometry geometry = Geometry(options);
  EXPECT_EQ(geometry.layers, std::vector(8, KvGeometry::Layer{2, 64, 64}));
  EXPECT_EQ(geometry.rope, Rope());
}

TEST(GeometryTest, AnOpaqueMemoryHasNone) {
  EngineOptions options = Options(EngineOptions::Use::kPrefill);
  options.force_opaque = true;
  EXPECT_EQ(Geometry(options), KvGeometry());
}

TEST(GeometryTest, RotationInHalvesWithYarn) {
  const KvGeometry geometry = GeometryOfTiny(TinyKind::kHalves);
  EXPECT_EQ(geometry.layers, std::vector(2, KvGeometry::Layer{2, 32, 32}));
  EXPECT_EQ(geometry.rope.style, Rope::Style::kHalves);
  ASSERT_EQ(geometry.rope.radians_per_position.size(), 16u);
  // Fast pairs are as trained, slow ones four times slower.
  EXPECT_FLOAT_EQ(geometry.rope.radians_per_position[0], 1);
  EXPECT_NEAR(geometry.rope.radians_per_position[15] / std::pow(1e6, -30.0 / 32), 0.25, 1e-6);
}

TEST(GeometryTest, FrequencyFactors) {
  const KvGeometry geometry = GeometryOfTiny(TinyKind::kFactors);
  EXPECT_EQ(geometry.layers, std::vector(2, KvGeometry::Layer{2, 32, 32}));
  EXPECT_EQ(geometry.rope.style, Rope::Style::kInterleaved);
  ASSERT_EQ(geometry.rope.radians_per_position.size(), 16u);
  for (int i = 0; i < 16; ++i) {
    const double theta = std::pow(10000.0, -2.0 * i / 32) / (1 + i / 4.0);
    EXPECT_NEAR(geometry.rope.radians_per_position[i] / theta, 1, 1e-6);
  }
}

TEST(GeometryTest, AModelThatRotatesSomeLayersIsLeftAlone) {
  const KvGeometry geometry = GeometryOfTiny(TinyKind::kMixed);
  EXPECT_EQ(geometry.layers, std::vector(4, KvGeometry::Layer{2, 32, 32}));
  EXPECT_EQ(geometry.rope, Rope());
}

TEST(RotateTest, TurnsPairsAndBack) {
  const Rope pairs{Rope::Style::kInterleaved, 4, {1, 0.5f}};
  std::vector<float> head = {1, 0, 0, 2, 7};
  Rotate(pairs, head, 3, 1);
  EXPECT_FLOAT_EQ(head[0], std::cos(3.0f));
  EXPECT_FLOAT_EQ(head[1], std::sin(3.0f));
  EXPECT_FLOAT_EQ(head[2], -2 * std::sin(1.5f));
  EXPECT_FLOAT_EQ(head[3], 2 * std::cos(1.5f));
  EXPECT_EQ(head[4], 7) << "beyond n_rot";
  Rotate(pairs, head, 3, -1);
  EXPECT_NEAR(head[0], 1, 1e-6);
  EXPECT_NEAR(head[3], 2, 1e-6);

  const Rope halves{Rope::Style::kHalves, 4, {1, 0.5f}};
  head = {1, 0, 0, 2, 7};
  Rotate(halves, head, 3, 1);
  EXPECT_FLOAT_EQ(head[0], std::cos(3.0f));
  EXPECT_FLOAT_EQ(head[2], std::sin(3.0f));
  EXPECT_FLOAT_EQ(head[1], -2 * std::sin(1.5f));
  EXPECT_FLOAT_EQ(head[3], 2 * std::cos(1.5f));

  Rotate(Rope(), head, 3, 1);
  EXPECT_FLOAT_EQ(head[0], std::cos(3.0f));
}

}  // namespace
}  // namespace tandem::workers
