// The router's queue over a real view of a cluster: who gets his turn, and who has to go.
#include "server/request_queue.h"

#include <gtest/gtest.h>

#include "absl/time/clock.h"

namespace tandem::server {
namespace {

class Request final : public QueuedRequest {
 public:
  void OnTurn() override { ++turns; }
  void OnRemoved(scheduler::Refusal reason, double) override { removed = reason; }
  int turns = 0;
  scheduler::Refusal removed = scheduler::Refusal::kNone;
};

class RequestQueueTest : public testing::Test {
 protected:
  RequestQueueTest() {
    for (const auto& [id, phase] :
         {std::pair("p", v1::PHASE_PREFILL), std::pair("d", v1::PHASE_DECODE)}) {
      v1::WorkerInfo info;
      info.set_worker_id(id);
      info.set_phase(phase);
      info.set_max_sequences(8);
      info.set_kv_capacity_tokens(1 << 20);
      registrations_[id] = view_.Add(info, absl::Now());
    }
  }
  void Busy(uint64_t tokens) {
    v1::WorkerLoad load;
    load.mutable_prefill()->set_running(1);
    load.mutable_prefill()->set_tokens_to_compute(tokens);
    view_.Report("p", load, absl::Now());
  }
  RequestQueue Queue(RequestQueue::Options options = {}) {
    return RequestQueue(options, &view_, [this] { ++wakes_; });
  }
  static scheduler::Arrival From(const std::string& tenant) {
    return {.tenant = tenant, .work_tokens = 100};
  }

  scheduler::ClusterView view_{{.worker_timeout = absl::Hours(1), .seed = 1}, nullptr};
  std::map<std::string, uint64_t> registrations_;
  int wakes_ = 0;
};

TEST_F(RequestQueueTest, HoldsRequestsBackWhileTheWorkerHasEnough) {
  RequestQueue queue = Queue();
  auto first = std::make_shared<Request>(), second = std::make_shared<Request>();
  Busy(100'000);
  const auto ticket = queue.Enqueue(first, From("a")).ticket;
  queue.Enqueue(second, From("a"));
  queue.Pump();
  EXPECT_EQ(first->turns, 1) << "with nothing running there is nothing to wait for";
  EXPECT_EQ(second->turns, 0);
  EXPECT_EQ(queue.queued(), 1u);
  Busy(0);
  queue.Pump();
  EXPECT_EQ(second->turns, 1);
  queue.Leave(ticket);
  EXPECT_EQ(queue.queued(), 0u);
}

TEST_F(RequestQueueTest, ATenantDoesNotWaitForRoomThatAFloodHasTaken) {
  RequestQueue queue = Queue();
  auto run = [&](const std::string& tenant) {
    const auto ticket = queue.Enqueue(std::make_shared<Request>(), From(tenant)).ticket;
    queue.Pump();
    queue.Prefilled(ticket);
  };
  run("steady");
  for (int i = 0; i < 4; ++i) run("flood");
  Busy(100'000);
  auto waits = std::make_shared<Request>();
  queue.Enqueue(waits, From("flood"));
  auto first = std::make_shared<Request>(), second = std::make_shared<Request>();
  queue.Enqueue(first, From("steady"));
  queue.Enqueue(second, From("steady"));
  queue.Pump();
  EXPECT_EQ(first->turns, 1);
  EXPECT_EQ(second->turns, 1);
  EXPECT_EQ(waits->turns, 0);
}

TEST_F(RequestQueueTest, FirstTokensOfATenantBelowItsShareArePredictedWithoutOthers) {
  RequestQueue queue = Queue();
  auto run = [&](const std::string& tenant) {
    const auto ticket = queue.Enqueue(std::make_shared<Request>(), From(tenant)).ticket;
    queue.Pump();
    return ticket;
  };
  queue.Prefilled(run("steady"));
  for (int i = 0; i < 4; ++i) run("flood");
  Busy(100'000);
  const auto forecast = view_.Predict({.prompt_tokens = 100}, absl::Now());
  ASSERT_TRUE(forecast.ok());
  EXPECT_GT(forecast->queue_s, 10 * queue.PredictFirstToken("steady", *forecast));
  EXPECT_EQ(queue.PredictFirstToken("flood", *forecast), forecast->ttft_s);
}

TEST_F(RequestQueueTest, ATenantThatFillsTheQueueMakesRoomForAnother) {
  RequestQueue queue = Queue({.max_requests = 3});
  std::vector<std::shared_ptr<Request>> flood;
  Busy(100'000);
  for (int i = 0; i < 3; ++i) {
    flood.push_back(std::make_shared<Request>());
    ASSERT_NE(queue.Enqueue(flood.back(), From("flood")).ticket, 0u);
    queue.Pump();
  }
  const auto refused = queue.Enqueue(std::make_shared<Request>(), From("flood"));
  EXPECT_EQ(refused.refusal, scheduler::Refusal::kQueueFull);
  EXPECT_GE(refused.retry_after_s, 1);
  EXPECT_NE(queue.Enqueue(std::make_shared<Request>(), From("other")).ticket, 0u);
  queue.Pump();
  EXPECT_EQ(flood.back()->removed, scheduler::Refusal::kDisplaced);
  EXPECT_EQ(flood.front()->removed, scheduler::Refusal::kNone);
}

TEST_F(RequestQueueTest, RequestsWhoseDeadlineHasPassedAreRemoved) {
  RequestQueue queue = Queue();
  Busy(100'000);
  auto running = std::make_shared<Request>(), late = std::make_shared<Request>();
  queue.Enqueue(running, From("a"));
  queue.Pump();
  scheduler::Arrival arrival = From("a");
  arrival.deadline_s = absl::ToDoubleSeconds(absl::Now() - absl::UnixEpoch()) + 0.5;
  ASSERT_NE(queue.Enqueue(late, arrival).ticket, 0u);
  queue.Pump();
  EXPECT_EQ(late->removed, scheduler::Refusal::kNone);
  const absl::Time limit = absl::Now() + absl::Seconds(30);
  while (late->removed == scheduler::Refusal::kNone && absl::Now() < limit) queue.Pump();
  EXPECT_EQ(late->removed, scheduler::Refusal::kTooLate);
  EXPECT_EQ(late->turns, 0);
}

TEST_F(RequestQueueTest, WithoutAWorkerRequestsWaitForAWhile) {
  RequestQueue patient = Queue(), hasty = Queue({.patience = absl::ZeroDuration()});
  auto waits = std::make_shared<Request>(), hears = std::make_shared<Request>();
  const absl::Time now = absl::Now();
  EXPECT_FALSE(patient.MayBeServed(false, now)) << "there have never been workers";
  EXPECT_TRUE(patient.MayBeServed(true, now));
  patient.Enqueue(waits, From("a"));
  hasty.Enqueue(hears, From("a"));
  view_.Remove("p", registrations_["p"]);
  patient.Pump();
  hasty.Pump();
  EXPECT_EQ(waits->turns, 0);
  EXPECT_EQ(hears->turns, 1) << "to be told that there is no worker";
  EXPECT_TRUE(patient.MayBeServed(false, now)) << "whoever comes now waits like the others";
  EXPECT_FALSE(patient.MayBeServed(false, now + absl::Seconds(60)));
}

TEST_F(RequestQueueTest, ALimitOfRunningRequestsHoldsATenantBack) {
  RequestQueue queue = Queue({.tenants = {{"a", {.max_running = 1}}}});
  auto first = std::make_shared<Request>(), second = std::make_shared<Request>();
  const auto ticket = queue.Enqueue(first, From("a")).ticket;
  queue.Enqueue(second, From("a"));
  queue.Pump();
  EXPECT_EQ(first->turns, 1);
  EXPECT_EQ(second->turns, 0);
  queue.Leave(ticket);
  EXPECT_EQ(wakes_, 1);
  queue.Pump();
  EXPECT_EQ(second->turns, 1);
}

}  // namespace
}  // namespace tandem::server
