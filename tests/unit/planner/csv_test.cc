// Numbers from CSV text.
#include "scheduler/planner/csv.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace tandem::planner {
namespace {

using testing::ElementsAre;

constexpr CsvColumn kColumns[] = {
    {.name = "b", .min = 1, .max = 10, .whole = true}, {.name = "a"}, {.name = "c", .fallback = 7}};

std::string Error(std::string_view text) {
  return std::string(ReadCsv(text, "x.csv", kColumns).status().message());
}

TEST(ReadCsv, FindsColumnsByName) {
  const auto rows = ReadCsv(
      "\xEF\xBB\xBF"
      "a, b ,other\r\n1.5,2,x\r\n\r\n2e1,3,y",
      "x.csv", kColumns);
  ASSERT_TRUE(rows.ok()) << rows.status();
  EXPECT_THAT(*rows, ElementsAre(ElementsAre(2, 1.5, 7), ElementsAre(3, 20, 7)));
}

TEST(ReadCsv, NamesTheFault) {
  EXPECT_EQ(Error(""), "x.csv:1: there is no heading");
  EXPECT_EQ(Error("a,c\n"), "x.csv:1: no column 'b'");
  EXPECT_EQ(Error("a,b\n1,2\n1"), "x.csv:3: no value for 'b'");
  EXPECT_EQ(Error("a,b\n1,2.5"), "x.csv:2: 'b' is '2.5'; it must be a whole number from 1 to 10");
  EXPECT_EQ(Error("a,b\n1,11"), "x.csv:2: 'b' is '11'; it must be a whole number from 1 to 10");
  EXPECT_EQ(Error("a,b\nnan,2"), "x.csv:2: 'a' is 'nan'; it must be a number from 0 to 1e+15");
  EXPECT_EQ(Error("a,b\n1 2,2"), "x.csv:2: 'a' is '1 2'; it must be a number from 0 to 1e+15");
}

}  // namespace
}  // namespace tandem::planner
