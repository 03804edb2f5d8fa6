// Profile files: written and read again, and refused for what is wrong with them.
#include "kvstore/codec/profile.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/codec_fixture.h"

namespace tandem::kvstore::codec {
namespace {

std::span<const uint8_t> Bytes(const std::string& file) {
  return {reinterpret_cast<const uint8_t*>(file.data()), file.size()};
}

TEST(Profile, ComesBackAsItWas) {
  const auto profile = MakeProfile(MakeModel(2, 3, 48), 1);
  const std::string file = SerializeProfile(*profile);
  const auto read = ParseProfile(Bytes(file));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(SerializeProfile(*read), file);
  EXPECT_EQ(read->id, profile->id);
  EXPECT_EQ(read->planes, profile->planes);
  EXPECT_EQ(read->levels, profile->levels);
  EXPECT_EQ(read->geometry, profile->geometry);
}

TEST(Profile, AMissingLevelStaysMissing) {
  Profile profile = *MakeProfile(MakeModel(1, 1, 16), 1);
  profile.levels[2].reset();
  const std::string file = SerializeProfile(profile);
  const auto read = ParseProfile(Bytes(file));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_FALSE(read->levels[2]);
  EXPECT_TRUE(read->levels[3]);
}

TEST(Profile, DamageIsNoticedWherever) {
  const std::string file = SerializeProfile(*MakeProfile(MakeModel(1, 1, 16), 1));
  for (size_t i = 0; i < file.size(); i += 7) {
    std::string damaged = file;
    damaged[i] ^= 4;
    EXPECT_FALSE(ParseProfile(Bytes(damaged)).ok()) << i;
    EXPECT_FALSE(ParseProfile(Bytes(file).first(i)).ok()) << i;
  }
}

TEST(Profile, AnotherVersionSaysWhatToDo) {
  std::string file = SerializeProfile(*MakeProfile(MakeModel(1, 1, 16), 1));
  file[4] = 9;
  const auto read = ParseProfile(Bytes(file));
  EXPECT_EQ(read.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(read.status().message()), testing::HasSubstr("tandem kv profile"));
}

TEST(Profile, ContradictionsAreRefused) {
  const Profile good = *MakeProfile(MakeModel(1, 1, 16), 1);
  const auto refused = [](const Profile& profile) {
    const std::string file = SerializeProfile(profile);
    return ParseProfile(Bytes(file)).status().code() == absl::StatusCode::kInvalidArgument;
  };
  EXPECT_FALSE(refused(good));
  Profile bad = good;
  bad.planes[0][0].basis[5] = 64;
  EXPECT_TRUE(refused(bad)) << "basis out of range";
  bad = good;
  bad.levels[0]->planes[0].step = 0;
  EXPECT_TRUE(refused(bad)) << "no step";
  bad = good;
  bad.levels[0]->planes[0].blocks[0].tables[0] = 200;
  EXPECT_TRUE(refused(bad)) << "no such table";
  bad = good;
  bad.levels[0]->planes[0].blocks[0].tables.resize(17);
  EXPECT_TRUE(refused(bad)) << "more components than channels";
  bad = good;
  bad.tables[1].lowest = 1;
  EXPECT_TRUE(refused(bad)) << "zero cannot be coded";
  bad = good;
  bad.planes[1][0].mean[0] = std::nanf("");
  EXPECT_TRUE(refused(bad)) << "not finite";
}

TEST(BlockLayout, WholeHeadsOfAbout128Channels) {
  using Blocks = std::vector<std::pair<uint32_t, uint32_t>>;
  EXPECT_EQ(BlockLayout(2, 64), (Blocks{{0, 128}}));
  EXPECT_EQ(BlockLayout(3, 64), (Blocks{{0, 128}, {128, 64}}));
  EXPECT_EQ(BlockLayout(2, 80), (Blocks{{0, 80}, {80, 80}}));
  EXPECT_EQ(BlockLayout(1, 256), (Blocks{{0, 256}}));
  EXPECT_EQ(BlockLayout(1, 576), (Blocks{{0, 128}, {128, 128}, {256, 128}, {384, 128}, {512, 64}}));
  EXPECT_EQ(BlockLayout(8, 16), (Blocks{{0, 128}}));
}

}  // namespace
}  // namespace tandem::kvstore::codec
