// How fast a link is believed to be, by what TCP says of it.
#include "kvstore/transfer/send_state.h"

#include <gtest/gtest.h>

namespace tandem::kvstore {
namespace {

TEST(BelievedRate, AFullLinkIsAsFastAsItIs) {
  BelievedRate rate;
  EXPECT_EQ(rate.Update({.bytes_per_s = 5e5}), 5e5);
  EXPECT_EQ(rate.Update({.bytes_per_s = 1e8}), 1e8);
  EXPECT_EQ(rate.Update({.bytes_per_s = 0}), 1e8) << "nothing was measured";
}

TEST(BelievedRate, ABurstTellsNothingAtFirstAndOnlyDoublesLater) {
  BelievedRate rate;
  EXPECT_EQ(rate.Update({.bytes_per_s = 6e8, .starved = true}), 0);
  EXPECT_EQ(rate.Update({.bytes_per_s = 6e5}), 6e5);
  EXPECT_EQ(rate.Update({.bytes_per_s = 6e8, .starved = true}), 1.2e6);
  EXPECT_EQ(rate.Update({.bytes_per_s = 6e8, .starved = true}), 2.4e6);
  EXPECT_EQ(rate.Update({.bytes_per_s = 1e6, .starved = true}), 1e6) << "it may have become slower";
}

}  // namespace
}  // namespace tandem::kvstore
