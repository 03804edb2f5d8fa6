// What a journal keeps over interruption and damage.
#include "workers/calibration/journal.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

namespace tandem::workers {
namespace {

using testing::ElementsAre;
using testing::Pointee;

class JournalTest : public testing::Test {
 protected:
  JournalTest() : path_(testing::TempDir() + std::to_string(getpid()) + "-journal") {}
  ~JournalTest() override { std::filesystem::remove(path_); }
  Journal Open(const std::string& binding = "a model") {
    auto journal = Journal::Open(path_, binding);
    EXPECT_TRUE(journal.ok()) << journal.status();
    return *std::move(journal);
  }
  const std::string path_;
};

TEST_F(JournalTest, KeepsResults) {
  {
    Journal journal = Open();
    EXPECT_EQ(journal.Find("one"), nullptr);
    ASSERT_TRUE(journal.Put("one", {1, 2, 3}).ok());
    ASSERT_TRUE(journal.Put("two", {}).ok());
    ASSERT_TRUE(journal.Put("one", {4}).ok());
    EXPECT_THAT(journal.Find("one"), Pointee(ElementsAre(4)));
  }
  {
    Journal journal = Open();
    EXPECT_THAT(journal.Find("one"), Pointee(ElementsAre(4)));
    EXPECT_THAT(journal.Find("two"), Pointee(ElementsAre()));
    ASSERT_TRUE(journal.Put("three", {5}).ok());
  }
  Journal journal = Open();
  EXPECT_THAT(journal.Find("three"), Pointee(ElementsAre(5)));
  journal.Remove();
  EXPECT_FALSE(std::filesystem::exists(path_));
}

TEST_F(JournalTest, OfSomethingElseIsBegunAnew) {
  ASSERT_TRUE(Open().Put("one", {1}).ok());
  EXPECT_EQ(Open("another model").Find("one"), nullptr);
  EXPECT_EQ(Open().Find("one"), nullptr);
}

TEST_F(JournalTest, WhatIsWholeSurvivesACut) {
  ASSERT_TRUE(Open().Put("one", {1}).ok());
  const auto whole = std::filesystem::file_size(path_);
  ASSERT_TRUE(Open().Put("two", {2, 2, 2}).ok());
  for (auto size = std::filesystem::file_size(path_) - 1; size > whole; --size) {
    std::filesystem::resize_file(path_, size);
    Journal journal = Open();
    EXPECT_THAT(journal.Find("one"), Pointee(ElementsAre(1)));
    EXPECT_EQ(journal.Find("two"), nullptr);
  }
  ASSERT_TRUE(Open().Put("three", {3}).ok());
  EXPECT_THAT(Open().Find("three"), Pointee(ElementsAre(3)));
}

TEST_F(JournalTest, DamageIsNoticed) {
  ASSERT_TRUE(Open().Put("one", {1, 2, 3}).ok());
  {
    std::fstream file(path_, std::ios::binary | std::ios::in | std::ios::out);
    file.seekp(-10, std::ios::end);
    file.put(9);
  }
  EXPECT_EQ(Open().Find("one"), nullptr);
}

TEST_F(JournalTest, WithoutAFileNothingIsKept) {
  auto journal = Journal::Open("", "a model");
  ASSERT_TRUE(journal.ok());
  ASSERT_TRUE(journal->Put("one", {1}).ok());
  EXPECT_THAT(journal->Find("one"), Pointee(ElementsAre(1)));
  EXPECT_EQ(Journal::Open("/nowhere/at/all", "").status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace tandem::workers
