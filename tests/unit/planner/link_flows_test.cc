// Transfers that share links.
#include "scheduler/planner/link_flows.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace tandem::planner {
namespace {

using Due = LinkFlows::Due;

TEST(LinkFlows, AFlowAloneHasTheLink) {
  const LinkTable links(2, {.bytes_per_s = 100});
  LinkFlows flows(links);
  std::vector<Due> due;
  const auto id = flows.Begin(0, 1, 50, 7, 10, due);
  ASSERT_EQ(due.size(), 1u);
  EXPECT_EQ(due[0].end_s, 10.5);
  EXPECT_EQ(flows.End(id, due[0].version, 10.5, due), 7u);
  EXPECT_EQ(due.size(), 1u);
}

TEST(LinkFlows, PortsAreShared) {
  const LinkTable links(4, {.bytes_per_s = 100});
  LinkFlows flows(links);
  std::vector<Due> due;
  const auto first = flows.Begin(0, 1, 100, 1, 0, due);
  const auto outdated = due[0].version;
  due.clear();
  // Another to the same receiver: both have half from now on, and 50 bytes are done.
  const auto second = flows.Begin(2, 1, 100, 2, 0.5, due);
  ASSERT_EQ(due.size(), 2u);
  EXPECT_EQ(due[0].flow == first ? due[0].end_s : due[1].end_s, 1.5);
  EXPECT_FALSE(flows.End(first, outdated, 1, due).has_value());
  const uint32_t version = due[0].flow == first ? due[0].version : due[1].version;
  due.clear();
  EXPECT_EQ(flows.End(first, version, 1.5, due), 1u);
  // The second one has it all again, with 50 bytes left.
  ASSERT_EQ(due.size(), 1u);
  EXPECT_EQ(due[0].flow, second);
  EXPECT_EQ(due[0].end_s, 2);
  due.clear();
  flows.Begin(3, 0, 100, 3, 1.75, due);
  EXPECT_EQ(due.size(), 1u) << "elsewhere: nobody else is touched";
}

TEST(LinkFlows, CancelledFlowsLeaveTheirShare) {
  const LinkTable links(3, {.bytes_per_s = 100});
  LinkFlows flows(links);
  std::vector<Due> due;
  const auto first = flows.Begin(0, 1, 100, 1, 0, due);
  flows.Begin(0, 2, 100, 2, 0, due);
  due.clear();
  flows.Cancel(first, 1, due);
  ASSERT_EQ(due.size(), 1u);
  EXPECT_EQ(due[0].end_s, 1.5);
}

TEST(LinkTable, KnowsGroupsInEachDirection) {
  const LinkTable links(
      {0, 0, 1},
      {{.bytes_per_s = 1000}, {.bytes_per_s = 10}, {.bytes_per_s = 20}, {.bytes_per_s = 500}});
  EXPECT_EQ(links.Between(0, 1).bytes_per_s, 1000);
  EXPECT_EQ(links.Between(1, 2).bytes_per_s, 10);
  EXPECT_EQ(links.Between(2, 1).bytes_per_s, 20);
  EXPECT_EQ(links.PortBytesPerSecond(2), 500);
}

}  // namespace
}  // namespace tandem::planner
