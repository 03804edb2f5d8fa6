#include "scheduler/core/admission.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <deque>
#include <map>
#include <random>

namespace tandem::scheduler {
namespace {

using testing::HasSubstr;

Arrival From(const std::string& tenant, double work = 100, int32_t priority = 0) {
  return {.tenant = tenant, .priority = priority, .work_tokens = work};
}

TEST(AdmissionTest, FirstComeFirstServedWithinATenant) {
  Admission admission({});
  const Ticket a = admission.Enqueue(From("t"), 0).ticket;
  const Ticket b = admission.Enqueue(From("t"), 0).ticket;
  const Ticket urgent = admission.Enqueue(From("t", 100, 5), 0).ticket;
  EXPECT_EQ(admission.Peek(), urgent);
  EXPECT_EQ(admission.Next(0), urgent);
  EXPECT_EQ(admission.Next(0), a);
  EXPECT_EQ(admission.Next(0), b);
  EXPECT_EQ(admission.Next(0), std::nullopt);
  EXPECT_EQ(admission.running("t"), 3u);
  for (const Ticket t : {a, b, urgent, a}) admission.Finish(t);
  EXPECT_EQ(admission.running(), 0u);
}

TEST(AdmissionTest, TenantsShareByWeight) {
  Admission admission({});
  admission.SetTenant("heavy", {.weight = 3});
  admission.SetTenant("light", {.weight = 1});
  std::map<Ticket, std::string> tenant;
  for (int i = 0; i < 200; ++i) {
    for (const char* name : {"heavy", "light"}) {
      tenant[admission.Enqueue(From(name), 0).ticket] = name;
    }
  }
  std::map<std::string, int> served;
  for (int i = 0; i < 200; ++i) ++served[tenant[*admission.Next(0)]];
  EXPECT_NEAR(served["heavy"], 150, 2);
}

TEST(AdmissionTest, AFloodDoesNotHoldAnotherTenantUp) {
  Admission admission({});
  for (int i = 0; i < 500; ++i) admission.Enqueue(From("flood"), 0);
  for (int i = 0; i < 50; ++i) admission.Next(0);
  const Ticket quiet = admission.Enqueue(From("quiet"), 1).ticket;
  int passed = 0;
  while (*admission.Next(1) != quiet) ++passed;
  EXPECT_LE(passed, 1);
}

TEST(AdmissionTest, WhoWasIdleSavesNothingUp) {
  Admission admission({});
  for (int i = 0; i < 100; ++i) admission.Enqueue(From("busy"), 0);
  for (int i = 0; i < 90; ++i) admission.Next(0);
  std::map<Ticket, bool> is_late;
  for (int i = 0; i < 20; ++i) is_late[admission.Enqueue(From("late"), 0).ticket] = true;
  int late = 0;
  for (int i = 0; i < 10; ++i) late += is_late.count(*admission.Next(0)) != 0;
  EXPECT_NEAR(late, 5, 1);
}

TEST(AdmissionTest, WhoHasLessThanItsShareGoesFirst) {
  Admission admission({.work_per_s = 10, .credit_s = 1});
  auto enqueue = [&](const std::string& tenant, double now_s) {
    return admission.Enqueue({.tenant = tenant}, now_s).ticket;
  };
  auto run = [&](const std::string& tenant, double now_s) {
    const Ticket ticket = enqueue(tenant, now_s);
    EXPECT_EQ(admission.Next(now_s), ticket);
    admission.Prefilled(ticket, now_s);
  };
  for (int i = 0; i < 20; ++i) run("steady", 0);
  Ticket own = enqueue("steady", 0);
  EXPECT_FALSE(admission.PeekBelowShare()) << "alone it has all there is";
  admission.Cancel(own);
  for (int i = 0; i < 40; ++i) run("flood", 1);
  for (int i = 0; i < 10; ++i) {
    own = enqueue("steady", 1);
    ASSERT_EQ(admission.PeekBelowShare(), own) << i << ": a second of all the work is kept for it";
    admission.Start(own);
    admission.Prefilled(own, 1);
  }
  enqueue("steady", 1);
  EXPECT_FALSE(admission.PeekBelowShare()) << "and no more than that";
}

TEST(AdmissionTest, WhoNeededLessThanHalfGoesBeforeAFloodThatBegins) {
  Admission admission({.work_per_s = 10, .credit_s = 2});
  auto run = [&](const std::string& tenant, double now_s) {
    const Ticket ticket = admission.Enqueue({.tenant = tenant}, now_s).ticket;
    EXPECT_EQ(admission.Next(now_s), ticket);
    admission.Prefilled(ticket, now_s);
    return ticket;
  };
  // Three of the ten a second that can be served, one after the other.
  double now_s = 0;
  for (int i = 0; i < 30; ++i, now_s += 1.0 / 3) admission.Finish(run("steady", now_s));
  for (int i = 0; i < 2; ++i) run("flood", now_s);
  for (int i = 0; i < 9; ++i) {
    const Ticket own = admission.Enqueue({.tenant = "steady"}, now_s).ticket;
    ASSERT_EQ(admission.PeekBelowShare(), own) << i;
    admission.Start(own);
    admission.Prefilled(own, now_s);
  }
  admission.Enqueue({.tenant = "steady"}, now_s);
  EXPECT_FALSE(admission.PeekBelowShare()) << "it has most of what runs";
}

TEST(AdmissionTest, AloneNobodyIsBelowItsShare) {
  Admission admission({.work_per_s = 10});
  const Ticket first = admission.Enqueue({.tenant = "only"}, 0).ticket;
  admission.Start(first);
  admission.Prefilled(first, 0);
  admission.Enqueue({.tenant = "only"}, 5);
  EXPECT_FALSE(admission.PeekBelowShare()) << "nobody else has taken the room that it waits for";
}

TEST(AdmissionTest, WhoHasComeBackHasNothingLeft) {
  Admission admission({.work_per_s = 10, .credit_s = 1, .credit_kept_s = 10});
  auto run = [&](const std::string& tenant, double now_s) {
    const Ticket ticket = admission.Enqueue({.tenant = tenant}, now_s).ticket;
    admission.Next(now_s);
    admission.Prefilled(ticket, now_s);
  };
  run("steady", 0);
  for (int i = 0; i < 40; ++i) run("flood", 1);
  admission.Enqueue({.tenant = "steady"}, 11);
  EXPECT_FALSE(admission.PeekBelowShare());
}

TEST(AdmissionTest, FewPromptsOfATenantGoBeforeOthers) {
  Admission admission({});
  admission.Enqueue(From("steady"), 0);
  admission.Prefilled(*admission.Next(0), 0);
  for (int i = 0; i < 3; ++i) {
    admission.Enqueue(From("flood", 300), 0);
    admission.Next(0);
  }
  for (int i = 0; i < 3; ++i) {
    admission.Enqueue(From("steady"), 0);
    const auto ticket = admission.PeekBelowShare();
    ASSERT_TRUE(ticket);
    admission.Start(*ticket);
  }
  admission.Enqueue(From("steady"), 0);
  EXPECT_FALSE(admission.PeekBelowShare()) << "as many are being computed as of the other tenant";
}

TEST(AdmissionTest, OfSeveralBelowTheirSharesTheOneWithLeastGoesFirst) {
  Admission admission({});
  auto run = [&](const std::string& tenant, double work) {
    admission.Enqueue(From(tenant, work), 0);
    admission.Prefilled(*admission.Next(0), 0);
  };
  run("a", 300);
  run("b", 100);
  for (int i = 0; i < 20; ++i) run("flood", 100);
  admission.Enqueue(From("a"), 0);
  const Ticket least = admission.Enqueue(From("b"), 0).ticket;
  EXPECT_EQ(admission.PeekBelowShare(), least) << "not the one whose name comes first";
}

TEST(AdmissionTest, FirstTokensOfATenantBelowItsShareDoNotWaitForOthers) {
  Admission admission({});
  const PredictedTtft ttft = {.seconds = 1, .queue_s = 0.8, .step_s = 0.1};
  admission.Enqueue(From("steady"), 0);
  admission.Prefilled(*admission.Next(0), 0);
  EXPECT_EQ(admission.PredictFirstToken("steady", ttft, 0), 1);
  for (int i = 0; i < 4; ++i) {
    admission.Enqueue(From("flood"), 0);
    admission.Next(0);
  }
  EXPECT_NEAR(admission.PredictFirstToken("steady", ttft, 0), 0.3, 1e-9);
  EXPECT_EQ(admission.PredictFirstToken("flood", ttft, 0), 1);
}

TEST(AdmissionTest, RateLimitIsATokenBucketWithAUsableDelay) {
  Admission admission({.min_retry_s = 0.01});
  admission.SetTenant("t", {.requests_per_s = 2, .burst = 3});
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(admission.Enqueue(From("t"), 100).status.ok());
  const Admitted refused = admission.Enqueue(From("t"), 100.1);
  EXPECT_EQ(refused.refusal, Refusal::kRate);
  EXPECT_EQ(refused.ticket, 0u);
  EXPECT_TRUE(absl::IsResourceExhausted(refused.status));
  EXPECT_THAT(std::string(refused.status.message()), HasSubstr("tenant 't'"));
  EXPECT_NEAR(refused.retry_after_s, 0.4, 1e-6);
  EXPECT_TRUE(admission.Enqueue(From("t"), 100.1 + refused.retry_after_s + 1e-6).status.ok());
  EXPECT_TRUE(admission.Enqueue(From("other"), 100.1).status.ok());
}

TEST(AdmissionTest, ConcurrencyLimitLeavesTheTurnToOthers) {
  Admission admission({});
  admission.SetTenant("t", {.max_running = 1});
  const Ticket a = admission.Enqueue(From("t"), 0).ticket;
  const Ticket b = admission.Enqueue(From("t"), 0).ticket;
  EXPECT_EQ(admission.Next(0), a);
  EXPECT_EQ(admission.Next(0), std::nullopt);
  const Ticket c = admission.Enqueue(From("u"), 0).ticket;
  EXPECT_EQ(admission.Next(0), c);
  admission.Finish(a);
  EXPECT_EQ(admission.Next(0), b);
}

TEST(AdmissionTest, TheQueueIsBoundedAndShared) {
  Admission admission({.max_queued = 4});
  std::deque<Ticket> flood;
  for (int i = 0; i < 4; ++i) flood.push_back(admission.Enqueue(From("flood"), 0).ticket);
  EXPECT_EQ(admission.Enqueue(From("flood"), 0).refusal, Refusal::kQueueFull);
  const Admitted quiet = admission.Enqueue(From("quiet"), 0);
  ASSERT_TRUE(quiet.status.ok());
  EXPECT_EQ(quiet.displaced, flood.back());
  EXPECT_FALSE(admission.Cancel(flood.back()));
  EXPECT_EQ(admission.queued(), 4u);
  EXPECT_EQ(admission.queued("flood"), 3u);
}

TEST(AdmissionTest, WhoCannotBeServedInTimeIsRefusedAtOnce) {
  Admission admission({.max_ttft_s = 2, .work_per_s = 100});
  for (int i = 0; i < 1; ++i) EXPECT_TRUE(admission.Enqueue(From("t", 150), 10).status.ok());
  EXPECT_NEAR(admission.PredictWait("t", 0, 0), 1.5, 1e-9);
  Arrival arrival = From("t", 100);
  arrival.ttft.seconds = 0.1;
  arrival.deadline_s = 11;
  const Admitted refused = admission.Enqueue(arrival, 10);
  EXPECT_EQ(refused.refusal, Refusal::kTooLate);
  EXPECT_NEAR(refused.retry_after_s, 0.6, 1e-9);
  arrival.deadline_s = 12;
  EXPECT_TRUE(admission.Enqueue(arrival, 10).status.ok());
  arrival.deadline_s = 100;
  EXPECT_EQ(admission.Enqueue(arrival, 10).refusal, Refusal::kTooLate);  // max_ttft
  arrival.priority = 9;                                                  // passes the others
  EXPECT_TRUE(admission.Enqueue(arrival, 10).status.ok());
  admission.SetCapacity(1000);
  arrival.priority = 0;
  EXPECT_TRUE(admission.Enqueue(arrival, 10).status.ok());
}

TEST(AdmissionTest, PredictionsThatFailAreAllowedFor) {
  Admission admission({.max_ttft_s = 1});
  auto serve = [&](double now_s, double predicted_s, double ttft_s) {
    const Ticket ticket =
        admission.Enqueue({.ttft = {.seconds = predicted_s, .queue_s = predicted_s}}, now_s).ticket;
    admission.Next(now_s);
    admission.Prefilled(ticket, now_s + ttft_s);
    admission.Finish(ticket);
  };
  for (int i = 0; i < 100; ++i) serve(i, 0.01, 0.1);
  EXPECT_EQ(admission.wait_error(""), 1) << "far from the limit";
  EXPECT_NE(admission.Enqueue({.ttft = {.seconds = 0.8, .queue_s = 0.8}}, 100).ticket, 0u);
  admission.Next(100);
  // One in five takes half as long again.
  for (int i = 0; i < 300; ++i) serve(100 + i, 0.4, i % 5 == 0 ? 0.6 : 0.4);
  EXPECT_NEAR(admission.wait_error(""), 1.5, 0.15);
  EXPECT_EQ(admission.Enqueue({.ttft = {.seconds = 0.8, .queue_s = 0.8}}, 400).refusal,
            Refusal::kTooLate);
  // One in fifty.
  for (int i = 0; i < 300; ++i) serve(400 + i, 0.4, i % 50 == 0 ? 0.6 : 0.4);
  EXPECT_LT(admission.wait_error(""), 1.15);
  EXPECT_NE(admission.Enqueue({.ttft = {.seconds = 0.8, .queue_s = 0.8}}, 700).ticket, 0u);
}

TEST(AdmissionTest, CancelAndExpireTakeRequestsOut) {
  Admission admission({});
  Arrival arrival = From("t");
  arrival.deadline_s = 5;
  const Ticket early = admission.Enqueue(arrival, 0).ticket;
  const Ticket other = admission.Enqueue(From("t"), 0).ticket;
  EXPECT_TRUE(admission.Expire(4.9).empty());
  EXPECT_THAT(admission.Expire(5), testing::ElementsAre(early));
  EXPECT_TRUE(admission.Cancel(other));
  EXPECT_FALSE(admission.Cancel(other));
  EXPECT_EQ(admission.queued(), 0u);
}

/// Random events from a seed: nothing is lost or served twice, the bounds hold, all counts return
/// to zero.
TEST(AdmissionTest, RandomEventsKeepTheBooks) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    std::mt19937_64 random(seed);
    Admission admission({.max_queued = 5, .max_ttft_s = random() % 2 ? 3.0 : 0, .work_per_s = 200});
    admission.SetTenant("a", {.weight = 2, .requests_per_s = 3, .burst = 4});
    admission.SetTenant("b", {.max_running = 2});
    std::map<Ticket, bool> alive;  // true: runs
    double now = 0;
    for (int i = 0; i < 300; ++i) {
      now += 0.01 * (random() % 20);
      switch (random() % 6) {
        case 0:
        case 1: {
          Arrival arrival = From(std::string(1, 'a' + random() % 3), 1 + random() % 100,
                                 static_cast<int32_t>(random() % 3));
          if (random() % 2) arrival.deadline_s = now + 0.1 * (random() % 20);
          const Admitted admitted = admission.Enqueue(arrival, now);
          ASSERT_EQ(admitted.ticket != 0, admitted.status.ok());
          if (admitted.displaced != 0) {
            ASSERT_EQ(alive.erase(admitted.displaced), 1u);
          }
          if (admitted.ticket == 0) {
            ASSERT_GT(admitted.retry_after_s, 0);
          } else {
            ASSERT_TRUE(alive.emplace(admitted.ticket, false).second);
          }
          break;
        }
        case 2:
          for (const Ticket ticket : admission.Expire(now)) ASSERT_EQ(alive.erase(ticket), 1u);
          break;
        case 3:
          if (const auto ticket = admission.Next(now)) {
            ASSERT_EQ(alive.count(*ticket), 1u);
            ASSERT_FALSE(alive[*ticket]);
            alive[*ticket] = true;
          }
          break;
        default:
          if (alive.empty()) break;
          auto any = std::next(alive.begin(), static_cast<long>(random() % alive.size()));
          ASSERT_EQ(admission.Cancel(any->first), !any->second);
          admission.Finish(any->first);
          alive.erase(any);
      }
      uint32_t running = 0;
      for (const auto& [ticket, runs] : alive) running += runs;
      ASSERT_EQ(admission.running(), running);
      ASSERT_EQ(admission.queued(), alive.size() - running);
      ASSERT_LE(admission.queued(), 5u);
      ASSERT_LE(admission.running("b"), 2u);
    }
    for (const auto& [ticket, runs] : alive) {
      runs ? admission.Finish(ticket) : static_cast<void>(admission.Cancel(ticket));
    }
    EXPECT_EQ(admission.queued() + admission.running(), 0u);
  }
}

TEST(RetryBudgetTest, AShareOfTheRequestsAndAFloor) {
  RetryBudget budget({.share = 0.5, .floor_per_s = 1, .most = 2});
  EXPECT_TRUE(budget.Spend(0));
  EXPECT_TRUE(budget.Spend(0));
  EXPECT_FALSE(budget.Spend(0));
  budget.Earn();
  EXPECT_FALSE(budget.Spend(0));
  budget.Earn();
  EXPECT_TRUE(budget.Spend(0));
  EXPECT_FALSE(budget.Spend(0.5));
  EXPECT_TRUE(budget.Spend(1.01));
  for (int i = 0; i < 100; ++i) budget.Earn();
  EXPECT_TRUE(budget.Spend(2));
  EXPECT_TRUE(budget.Spend(2));
  EXPECT_FALSE(budget.Spend(2));
}

}  // namespace
}  // namespace tandem::scheduler
