#include "kvstore/transfer/link_table.h"

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"

namespace tandem::kvstore {
namespace {

constexpr uint64_t kMiB = 1 << 20;

TEST(LinkTableTest, OneOddPullDoesNotMoveTheEstimate) {
  LinkTable links;
  absl::Time now = absl::UnixEpoch();
  for (int i = 0; i < 4; ++i) links.Add("a:1", 10 * kMiB, 1, 0.02, now += absl::Seconds(1));
  links.Add("a:1", 100 * kMiB, 0.001, 0.02, now += absl::Seconds(1));
  links.Add("a:1", kMiB, 100, 0.02, now += absl::Seconds(1));
  const auto list = links.List();
  ASSERT_EQ(list.size(), 1u);
  EXPECT_EQ(list[0].address, "a:1");
  EXPECT_DOUBLE_EQ(list[0].bytes_per_s, 10 * kMiB);
  EXPECT_NEAR(list[0].rtt_s, 0.02, 1e-9);
  EXPECT_EQ(list[0].samples, 6u);
  EXPECT_EQ(list[0].measured, now);
}

TEST(LinkTableTest, FollowsALinkThatHasChanged) {
  LinkTable links;
  const absl::Time now = absl::UnixEpoch();
  for (int i = 0; i < 20; ++i) links.Add("a:1", 10 * kMiB, 1, 0, now);
  for (int i = 0; i < 5; ++i) links.Add("a:1", 2 * kMiB, 1, 0, now);
  EXPECT_DOUBLE_EQ(links.List()[0].bytes_per_s, 2 * kMiB);
}

TEST(LinkTableTest, LittleSaysNothingOfBandwidth) {
  LinkTable links;
  links.Add("a:1", LinkTable::kLeastBytes - 1, 1, 0.5, absl::UnixEpoch());
  links.Add("b:1", LinkTable::kLeastBytes - 1, 1, 0, absl::UnixEpoch());
  links.Add("c:1", kMiB, 0, 0, absl::UnixEpoch());
  const auto list = links.List();
  ASSERT_EQ(list.size(), 1u);
  EXPECT_EQ(list[0].bytes_per_s, 0);
  EXPECT_DOUBLE_EQ(list[0].rtt_s, 0.5);
}

TEST(LinkTableTest, ForgetsTheOldestWhenThereAreTooMany) {
  LinkTable links;
  for (int i = 0; i < 2000; ++i) {
    links.Add(absl::StrCat("host-", i, ":1"), kMiB, 1, 0, absl::UnixEpoch() + absl::Seconds(i));
  }
  const auto list = links.List();
  EXPECT_EQ(list.size(), 1024u);
  for (const LinkEstimate& link : list)
    EXPECT_GE(link.measured, absl::UnixEpoch() + absl::Seconds(976));
}

}  // namespace
}  // namespace tandem::kvstore
