// Flags of the sub-commands.
#include "cli/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace tandem::cli {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

struct Seen {
  std::string text;
  bool on = false;
  int32_t number = 0;
  std::vector<std::string> many;
};

Command Example(Seen& seen) {
  return {"try",
          "THING",
          "Tries.",
          {{"text", "T", "A text.", ReadText([&seen](std::string v) { seen.text = v; })},
           {"on", "", "A switch.", ReadSwitch([&seen] { seen.on = true; })},
           {"top-k", "K", "A number.", ReadInt32([&seen](int32_t v) { seen.number = v; })},
           {"stop", "S", "Several.",
            ReadText([&seen](std::string v) { seen.many.push_back(std::move(v)); })}}};
}

absl::StatusOr<std::vector<std::string>> Parse(std::vector<std::string> args, Seen& seen) {
  std::vector<char*> pointers;
  for (std::string& arg : args) pointers.push_back(arg.data());
  return ParseOptions(Example(seen), pointers);
}

std::string Error(std::vector<std::string> args) {
  Seen seen;
  return std::string(Parse(std::move(args), seen).status().message());
}

TEST(ParseOptions, ReadsEveryForm) {
  Seen seen;
  const auto operands = Parse({"--text=a=b", "one", "--on", "--top_k", "-1", "--stop", "--x",
                               "--stop=", "-2", "--", "--text"},
                              seen);
  ASSERT_TRUE(operands.ok()) << operands.status();
  EXPECT_THAT(*operands, ElementsAre("one", "-2", "--text"));
  EXPECT_EQ(seen.text, "a=b");
  EXPECT_TRUE(seen.on);
  EXPECT_EQ(seen.number, -1);
  EXPECT_THAT(seen.many, ElementsAre("--x", ""));
}

TEST(ParseOptions, NamesTheFault) {
  EXPECT_EQ(Error({"--nope=1"}), "unknown flag '--nope'; see tandem try --help");
  EXPECT_EQ(Error({"--text"}), "--text needs a value: --text=T");
  EXPECT_EQ(Error({"--on=yes"}), "--on takes no value");
  EXPECT_EQ(Error({"--top-k=many"}), "--top-k is 'many': not a whole number of 32 bits");
  EXPECT_EQ(Error({"--top-k=3000000000"}),
            "--top-k is '3000000000': not a whole number of 32 bits");
}

TEST(HelpText, ShowsEveryFlag) {
  Seen seen;
  const std::string help = HelpText(Example(seen));
  EXPECT_THAT(help, HasSubstr("Usage: tandem try [FLAG]... THING\n\nTries.\n"));
  EXPECT_THAT(help, HasSubstr("\n  --text=T   A text.\n  --on       A switch.\n"));
}

}  // namespace
}  // namespace tandem::cli
