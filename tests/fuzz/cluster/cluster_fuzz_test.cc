// Drives the fuzz target with seeds and with mutations of them that are the same in every run.
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "cli/plan_cluster.h"
#include "tests/support/text_mutations.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace tandem::cli {
namespace {

constexpr char kSpeed[] =
    "{prefill_base_s: 0.018, prefill_per_token_s: 1e-4, decode_base_s: 0.02,\n"
    "     decode_per_sequence_s: 4e-5, kv_capacity_tokens: 65536}";

std::string Cluster(const std::string& nodes, const std::string& kind = kSpeed) {
  return absl::StrCat(
      "kv_bytes_per_token: 100e3\nwire_share: 0.4\nkinds:\n  big: ", kind, "\nnodes:\n", nodes,
      "links: {within: {bytes_per_s: 1e9}, between: {bytes_per_s: 1e8, rtt_s: 1e-3}}\n");
}

std::string WithPairs(const std::string& pairs) {
  std::string text = Cluster("  - {kind: big, group: a}\n  - {kind: big, group: b}\n");
  return text.insert(text.rfind('}'), absl::StrCat(", pairs: [", pairs, "]"));
}

void Fuzz(const std::string& text) {
  LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(text.data()), text.size());
}

std::vector<std::string> Seeds() {
  const std::string widths =
      absl::StrCat("{devices: 4, widths: {1: ", kSpeed, ", 4: ", kSpeed, "}}");
  return {Cluster("  - {kind: big, count: 3, group: a}\n  - {kind: big, group: b}\n"),
          Cluster("  - {kind: big, count: 2}\n", widths),
          Cluster("  - {kind: big}\n", absl::StrCat(std::string(kSpeed, sizeof(kSpeed) - 2),
                                                    ", decode_factors: [1, 0.5, 1.2]}")),
          WithPairs("{from: a, to: b, bytes_per_s: 1e6}, {from: b, to: b, bytes_per_s: 1e7}"),
          "",
          "&a [*a]",
          "kinds: &k {x: *k}\n",
          "nodes: [[[[]]]]\nkinds: {}\n",
          std::string("kv_bytes_per_token: a\0b\n", 24)};
}

TEST(ClusterFuzz, SeedsAndMutations) {
  const std::vector<std::string> words = {"nan",      ".nan",       "inf",
                                          "-1",       "0",          "1e400",
                                          "1e-320",   "4294967296", "18446744073709551616",
                                          "2.5",      "{}",         "[]",
                                          "\n",       ": ",         "- ",
                                          "&a ",      "*a",         "!!binary ",
                                          "~",        "widths",     "count: ",
                                          "pairs: [", "devices: ",  "local: {bytes_per_s: 1}"};
  for (const std::string& seed : Seeds()) Fuzz(seed);
  ForEachMutation(Seeds(), words, 4000, Fuzz);
}

TEST(ClusterFuzz, DeepNestingAndLongNames) {
  for (const char* opening : {"[", "{", "- ", "? ", "a: ", "&a ", "{a: "}) {
    std::string text;
    for (int i = 0; i < 20'000; ++i) text += opening;
    Fuzz(text);
    Fuzz("kinds: " + text);
  }
  const std::string name(1 << 20, 'x');
  Fuzz(absl::StrCat("kinds: {", name, ": ", kSpeed, "}\n"));
  Fuzz(Cluster(absl::StrCat("  - {kind: ", name, "}\n")));
  Fuzz(Cluster(absl::StrCat("  - {kind: big, group: ", name, "}\n")));
  Fuzz(absl::StrCat(name, ": 1\n"));
}

std::string Fault(const std::string& text) {
  return std::string(ParseCluster(text, "c").status().message());
}

TEST(ClusterFile, PairsOfGroupsHaveLinksOfTheirOwn) {
  const auto task = ParseCluster(
      WithPairs("{from: b, to: a, bytes_per_s: 1e6}, {from: b, to: b, bytes_per_s: 1e7, rtt_s: 1}"),
      "c");
  ASSERT_TRUE(task.ok()) << task.status();
  EXPECT_EQ(task->links, (std::vector<planner::Link>{{.bytes_per_s = 1e9},
                                                     {.bytes_per_s = 1e8, .rtt_s = 1e-3},
                                                     {.bytes_per_s = 1e6, .rtt_s = 1e-3},
                                                     {.bytes_per_s = 1e7, .rtt_s = 1}}));
  EXPECT_EQ(Fault(WithPairs("{from: a, to: c, bytes_per_s: 1e6}")),
            "c: links: pairs: there is no group 'c'");
  EXPECT_EQ(Fault(WithPairs("{from: a, bytes_per_s: 1e6}")), "c: links: pairs: to is missing");
  EXPECT_EQ(Fault(WithPairs("{from: a, to: b}")), "c: links: pairs: bytes_per_s is missing");
  EXPECT_EQ(
      Fault(WithPairs("{from: a, to: b, bytes_per_s: 1e6}, {from: a, to: b, bytes_per_s: 1e6}")),
      "c: links: pairs: from a to b is there twice");
  EXPECT_EQ(Fault(WithPairs("1")), "c: links: pairs: is not a mapping");
}

TEST(ClusterFile, DecodeFactorsAreChecked) {
  const std::string speed(kSpeed, sizeof(kSpeed) - 2);
  for (const char* factors :
       {"1", "[nan]", "[0.01]", "[21]", "[a]", "[[1]]",
        "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]"}) {
    EXPECT_EQ(Fault(Cluster("  - {kind: big}\n",
                            absl::StrCat(speed, ", decode_factors: ", factors, "}"))),
              "c: kinds: big: decode_factors must be a list of at most 32 numbers from 0.05 to 20");
  }
}

TEST(ClusterFile, AbsurdSizesAreFaults) {
  EXPECT_EQ(Fault(Cluster("  - {kind: big, count: 10001}\n")),
            "c: nodes: count must be a whole number from 1 to 10000");
  EXPECT_EQ(Fault(Cluster("  - {kind: big, count: 1.5}\n")),
            "c: nodes: count must be a whole number from 1 to 10000");
  EXPECT_EQ(
      Fault(Cluster("  - {kind: big, count: 6000}\n  - {kind: big, count: 6000, group: b}\n")),
      "c: nodes: there are more than 10000 nodes");
  std::string groups;
  for (int i = 0; i < 1001; ++i) absl::StrAppend(&groups, "  - {kind: big, group: g", i, "}\n");
  EXPECT_EQ(Fault(Cluster(groups)), "c: nodes: there are more than 1000 groups");
  EXPECT_EQ(
      Fault(Cluster("  - {kind: big}\n", absl::StrCat("{devices: 64, widths: {1: ", kSpeed, "}}"))),
      "c: kinds: big: widths: 1: a node would run 64 workers; 32 are the most");
  EXPECT_EQ(Fault(Cluster("  - {kind: big}\n", absl::StrCat("{devices: 2, widths: {1: ", kSpeed,
                                                            ", 1: ", kSpeed, "}}"))),
            "c: kinds: big: widths: 1 is there twice");
  EXPECT_EQ(Fault(Cluster("  - {kind: \"big\\a\"}\n")),
            "c: nodes: kind must be a text of at most 100 characters without control characters");
  EXPECT_EQ(Fault(std::string((4 << 20) + 1, '\n')), "c: is larger than 4 MiB");
}

}  // namespace
}  // namespace tandem::cli
