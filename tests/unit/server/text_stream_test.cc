#include "server/text_stream.h"

#include <gtest/gtest.h>

#include <random>

namespace tandem::server {
namespace {

/// Feeds `text` in pieces of `piece` bytes and returns all that came out, with a mark between the
/// pieces when `marks`.
std::string Feed(TextStream& stream, std::string_view text, size_t piece) {
  std::string out;
  for (size_t i = 0; i < text.size() && !stream.stopped(); i += piece) {
    out += stream.AppendBytes(text.substr(i, piece));
    EXPECT_EQ(FindInvalidUtf8(out), std::string_view::npos) << "after byte " << i;
  }
  return stream.stopped() ? out : out + stream.Flush();
}

TEST(TextStreamTest, CharactersOfEveryWidthArriveWhole) {
  const std::string text = "aé世🌍 end";
  for (size_t piece = 1; piece < 8; ++piece) {
    TextStream stream(nullptr, {});
    EXPECT_EQ(Feed(stream, text, piece), text);
  }
}

TEST(TextStreamTest, AnIncompleteCharacterWaitsAndThenIsReplaced) {
  TextStream stream(nullptr, {});
  EXPECT_EQ(stream.AppendBytes("a\xF0\x9F"), "a");
  EXPECT_EQ(stream.AppendBytes("\x8C\x8D"), "🌍");
  EXPECT_EQ(stream.AppendBytes("\xE4\xB8"), "");
  EXPECT_EQ(stream.Flush(), "\uFFFD\uFFFD");
}

TEST(TextStreamTest, BrokenBytesAreReplacedAtOnce) {
  TextStream stream(nullptr, {});
  EXPECT_EQ(stream.AppendBytes("a\xFF"
                               "b"),
            "a\uFFFDb");
  EXPECT_EQ(stream.AppendBytes("\xC0\xAF"), "\uFFFD\uFFFD") << "an overlong form";
  EXPECT_EQ(stream.AppendBytes("\xED\xA0\x80"), "\uFFFD\uFFFD\uFFFD") << "a surrogate";
}

TEST(TextStreamTest, NothingOfAStopStringIsEverSent) {
  for (size_t piece = 1; piece < 12; ++piece) {
    TextStream stream(nullptr, {"STOP", "\n\n"});
    EXPECT_EQ(Feed(stream, "some STO and ST and then STOP and more", piece),
              "some STO and ST and then ");
    EXPECT_TRUE(stream.stopped());
  }
}

TEST(TextStreamTest, TheEarliestOfSeveralStopsCounts) {
  TextStream stream(nullptr, {"end", "the"});
  EXPECT_EQ(stream.AppendBytes("in the end"), "in ");
  EXPECT_TRUE(stream.stopped());
}

TEST(TextStreamTest, WhatLookedLikeAStopIsSentWhenItIsNone) {
  TextStream stream(nullptr, {"abcd"});
  EXPECT_EQ(stream.AppendBytes("xabc"), "x");
  EXPECT_EQ(stream.AppendBytes("x"), "abcx");
  EXPECT_EQ(stream.AppendBytes("abc"), "");
  EXPECT_EQ(stream.Flush(), "abc");
}

TEST(TextStreamTest, AnyBytesGiveValidTextHoweverTheyAreCut) {
  std::mt19937 random(1);
  for (int round = 0; round < 300; ++round) {
    std::string bytes;
    for (size_t n = random() % 60; bytes.size() < n;) {
      const std::string parts[] = {"a", "é", "世", "🌍",
                                   std::string(1, static_cast<char>(random()))};
      bytes += parts[random() % 5];
    }
    TextStream stream(nullptr, {"aé"});
    const std::string out = Feed(stream, bytes, 1 + random() % 7);
    EXPECT_EQ(out.find("aé"), std::string::npos);
    if (!stream.stopped()) {
      EXPECT_EQ(out, ToValidUtf8(bytes));
    }
  }
}

}  // namespace
}  // namespace tandem::server
