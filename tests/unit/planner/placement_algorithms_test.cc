// The paper's algorithms over made-up goodputs.
#include "scheduler/planner/placement_algorithms.h"

#include <gtest/gtest.h>

#include <map>

namespace tandem::planner {
namespace {

using Devices = std::pair<int32_t, int32_t>;

/// Only what is in the table can be had.
PhaseGoodput FromTable(std::map<Devices, double> table) {
  return [table = std::move(table)](Parallelism p) -> absl::StatusOr<std::optional<double>> {
    const auto found = table.find({p.intra_op, p.inter_op});
    if (found == table.end()) return std::nullopt;
    return found->second;
  };
}

TEST(HighAffinityPlacement, TakesTheBestOfEachPhaseAsOftenAsNeeded) {
  const auto plan =
      HighAffinityPlacement(1, 4, 10, FromTable({{{1, 1}, 1}, {{2, 1}, 2}, {{4, 1}, 2}}),
                            FromTable({{{1, 2}, 0.6}, {{1, 4}, 0.5}}));
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->prefill.parallelism, (Parallelism{2, 1})) << "the first of equals";
  EXPECT_EQ(plan->prefill.instances, 3) << "4 rps each";
  EXPECT_EQ(plan->decode.parallelism, (Parallelism{1, 2}));
  EXPECT_EQ(plan->decode.instances, 9) << "1.2 rps each";
  EXPECT_EQ(plan->devices(), 3 * 2 + 9 * 2);
}

TEST(HighAffinityPlacement, InstancesMaySpanNodes) {
  // 2 x 2 devices: two of each node may be one instance of two stages.
  const auto plan =
      HighAffinityPlacement(2, 2, 1, FromTable({{{2, 2}, 1}}), FromTable({{{4, 1}, 1}}));
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->prefill.instances, 1);
  EXPECT_EQ(plan->decode.instances, 0) << "no layer is shared over nodes";
}

TEST(LowAffinityPlacement, BothSegmentsOfAStageShareANode) {
  std::map<std::pair<Devices, Devices>, int> asked;
  const auto choice = LowAffinityPlacement(
      2, 4, 5, [&](Parallelism p, Parallelism d) -> absl::StatusOr<std::optional<double>> {
        ++asked[{{p.intra_op, p.inter_op}, {d.intra_op, d.inter_op}}];
        EXPECT_LE(p.devices() + d.devices(), 8);
        if (p == Parallelism{2, 2} && d == Parallelism{1, 4}) return 0.25;
        return std::nullopt;
      });
  ASSERT_TRUE(choice.ok()) << choice.status();
  EXPECT_EQ(choice->segments, 2);
  EXPECT_EQ(choice->prefill, (Parallelism{2, 1}));
  EXPECT_EQ(choice->decode, (Parallelism{1, 2}));
  EXPECT_EQ(choice->devices(), 8);
  EXPECT_EQ(choice->pairs, 3) << "2 rps each";
  EXPECT_FALSE(asked.contains({{2, 1}, {3, 1}})) << "too many for a node";
}

TEST(PlacementAlgorithms, RefuseWhatIsNotPositive) {
  const PhaseGoodput any = FromTable({});
  EXPECT_EQ(HighAffinityPlacement(0, 1, 1, any, any).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(HighAffinityPlacement(1, 1, 0, any, any).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(LowAffinityPlacement(1, 0, 1, {}).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(PlacementAlgorithms, PassErrorsOn) {
  const PhaseGoodput bad = [](Parallelism) -> absl::StatusOr<std::optional<double>> {
    return absl::InternalError("x");
  };
  EXPECT_EQ(HighAffinityPlacement(1, 1, 1, bad, bad).status().code(), absl::StatusCode::kInternal);
}

}  // namespace
}  // namespace tandem::planner
