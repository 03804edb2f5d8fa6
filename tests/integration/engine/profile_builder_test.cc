// Profiles of the demo model, made with as little text as will do.
#include "workers/calibration/profile_builder.h"

#include <gmock/gmock.h>
#include <unistd.h>

#include <filesystem>
#include <set>

#include "kvstore/codec/codec.h"
#include "tests/integration/engine/engine_fixture.h"
#include "tests/support/tiny_model.h"
#include "workers/engine/geometry.h"

namespace tandem::workers {
namespace {

using kvstore::codec::kLossyLevels;
using kvstore::codec::Profile;
using ::testing::HasSubstr;

constexpr ReplayOptions kSmall{
    .context_tokens = 100, .continuation_tokens = 20, .windows = 2, .chunk_tokens = 64};

class ProfileBuilderTest : public testing::Test {
 protected:
  ProfileBuilderTest() : partial_(testing::TempDir() + std::to_string(getpid()) + "-partial") {}
  ~ProfileBuilderTest() override { std::filesystem::remove(partial_); }

  /// Stops when so much is done.
  absl::StatusOr<Profile> Build(uint64_t stop_at = UINT64_MAX, const EngineOptions& engine = {}) {
    ProfileOptions options{.replay = kSmall, .partial_path = partial_};
    stages_.clear();
    reports_ = 0;
    options.progress = [&](const ProfileProgress& progress) {
      EXPECT_LE(progress.done, progress.total);
      stages_.insert(std::string(progress.stage));
      ++reports_;
      total_ = progress.total;
      return progress.done < stop_at;
    };
    return BuildProfile(DemoModel(), DemoModel()->Detokenize(Prompt(400)), options, engine);
  }

  const std::string partial_;
  std::set<std::string> stages_;
  int reports_ = 0;
  uint64_t total_ = 0;
};

TEST_F(ProfileBuilderTest, MakesAUsableProfile) {
  const auto profile = Build();
  ASSERT_TRUE(profile.ok()) << profile.status();
  EXPECT_FALSE(std::filesystem::exists(partial_));
  EXPECT_EQ(stages_.size(), 8u);
  EXPECT_GE(profile->sink_tokens, 1u);
  EXPECT_LE(profile->tables.size(), 64u);
  double bits = 16, kl = 0;
  for (const auto& level : profile->levels) {
    ASSERT_TRUE(level.has_value());
    EXPECT_LT(level->measured.bits_per_element, bits);
    EXPECT_GT(level->measured.kl_divergence, kl);
    EXPECT_GT(level->measured.top1_agreement, 0.5);
    bits = level->measured.bits_per_element;
    kl = level->measured.kl_divergence;
  }
  const auto engine = MakeEngine(Options(EngineOptions::Use::kPrefill));
  const auto geometry = GeometryOf(*engine);
  ASSERT_TRUE(geometry.ok());
  const auto codec =
      kvstore::codec::Codec::Create(engine->layout(), *geometry, DemoModel()->fingerprint(),
                                    std::make_shared<const Profile>(*profile));
  ASSERT_TRUE(codec.ok()) << codec.status();
  EXPECT_TRUE(codec->CheckLevel(kvstore::codec::Level::kQ4).ok());
}

TEST_F(ProfileBuilderTest, GoesOnWhereItWasStopped) {
  const auto whole = Build();
  ASSERT_TRUE(whole.ok()) << whole.status();
  const int all = reports_;
  // In the statistics, in the search, in the measurement.
  for (const uint64_t stop_at : {uint64_t{1}, total_ / 2, total_ - 2}) {
    EXPECT_EQ(Build(stop_at).status().code(), absl::StatusCode::kCancelled);
    EXPECT_TRUE(std::filesystem::exists(partial_));
  }
  const auto resumed = Build();
  ASSERT_TRUE(resumed.ok()) << resumed.status();
  EXPECT_LT(reports_, all / 2) << "most of it was done before";
  EXPECT_EQ(SerializeProfile(*resumed), SerializeProfile(*whole));
}

TEST_F(ProfileBuilderTest, WithoutFlashAttentionValuesLieByChannel) {
  EngineOptions engine;
  engine.flash_attention = false;
  engine.k_type = "f32";
  EXPECT_TRUE(Build(UINT64_MAX, engine).ok());
}

TEST_F(ProfileBuilderTest, OfOtherShapes) {
  const std::string path = testing::TempDir() + std::to_string(getpid()) + "-shape.gguf";
  for (const auto kind : {testing_models::TinyKind::kHalves, testing_models::TinyKind::kMixed}) {
    ASSERT_OK(testing_models::WriteTinyModel(kind, DemoModelPath(), path));
    const auto model = Model::Load({.path = path});
    ASSERT_TRUE(model.ok()) << model.status();
    const auto profile =
        BuildProfile(*model, DemoModel()->Detokenize(Prompt(400)), {.replay = kSmall}, {});
    ASSERT_TRUE(profile.ok()) << profile.status();
    // With random weights a small change is a large one: such a model may have no level at all.
    for (const auto& level : profile->levels) {
      EXPECT_TRUE(!level || level->measured.bits_per_element < 16);
    }
  }
  std::filesystem::remove(path);
}

TEST_F(ProfileBuilderTest, SaysWhatIsImpossible) {
  const auto short_text = BuildProfile(DemoModel(), "Once upon a time", {.replay = kSmall}, {});
  EXPECT_EQ(short_text.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(short_text.status().message()), HasSubstr("it has 4 tokens"));
  EngineOptions quantised;
  quantised.k_type = "q8_0";
  const auto profile = Build(UINT64_MAX, quantised);
  EXPECT_EQ(profile.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(profile.status().message()), HasSubstr("q8_0"));
}

}  // namespace
}  // namespace tandem::workers
