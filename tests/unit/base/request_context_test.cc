#include "base/request_context.h"

#include <gtest/gtest.h>

namespace tandem {
namespace {

RequestContext Make(absl::Time deadline) { return RequestContext("id", "tenant", 0, deadline); }

TEST(RequestContextTest, TheFirstReasonStays) {
  RequestContext context = Make(absl::InfiniteFuture());
  EXPECT_TRUE(context.Check().ok());
  context.Cancel(absl::CancelledError("first"));
  context.Cancel(absl::UnavailableError("second"));
  EXPECT_EQ(context.Check(), absl::CancelledError("first"));
}

TEST(RequestContextTest, TheDeadlineIsARefusalToo) {
  const absl::Time deadline = absl::UnixEpoch() + absl::Seconds(100);
  RequestContext context = Make(deadline);
  EXPECT_TRUE(context.Check(deadline - absl::Milliseconds(1)).ok());
  EXPECT_EQ(context.Check(deadline).code(), absl::StatusCode::kDeadlineExceeded);
}

TEST(RequestContextTest, CallbacksRunOnceAlsoWhenTheyComeLate) {
  RequestContext context = Make(absl::InfiniteFuture());
  int early = 0, late = 0;
  context.OnCancel([&] { ++early; });
  EXPECT_EQ(early, 0);
  context.Cancel(absl::CancelledError("x"));
  context.Cancel(absl::CancelledError("y"));
  context.OnCancel([&] { ++late; });
  EXPECT_EQ(early, 1);
  EXPECT_EQ(late, 1);
}

}  // namespace
}  // namespace tandem
