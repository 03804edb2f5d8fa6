// The planner in real processes: workers that are given no phase get one, take over from each
// other, and follow the requests, and no request notices.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <fstream>
#include <sstream>
#include <thread>

#include "tests/e2e/harness.h"

namespace tandem::e2e {
namespace {

using testing::AllOf;
using testing::AnyOf;
using testing::HasSubstr;

v1::GenerateRequest Request(uint32_t prompt_tokens, uint32_t max_tokens, uint32_t seed = 0) {
  v1::GenerateRequest request;
  for (uint32_t i = 0; i < prompt_tokens; ++i) {
    request.mutable_prompt_tokens()->add_ids(static_cast<int>(300 + (seed * 31 + i * 7) % 3500));
  }
  request.set_max_tokens(max_tokens);
  request.mutable_sampling()->set_temperature(0);
  request.mutable_sampling()->set_ignore_eos(true);
  return request;
}

class PlannerTest : public testing::Test {
 protected:
  void StartRouter(std::vector<std::string> flags = {}) {
    flags.insert(flags.end(), {"--role", "router", "--model", DemoModel(), "--listen",
                               "127.0.0.1:0", "--planner-interval", "100ms"});
    routers_.push_back(std::make_unique<DaemonProcess>(flags));
    clients_.push_back(std::make_unique<Client>(routers_.back()->RouterAddress()));
  }
  /// A worker of no phase, named w0, w1, …
  void StartWorker(std::vector<std::string> flags = {}) {
    std::string addresses;
    for (const auto& router : routers_) {
      addresses += (addresses.empty() ? "" : ",") + router->RouterAddress();
    }
    flags.insert(flags.end(), {"--role", "worker", "--name", "w" + std::to_string(workers_.size()),
                               "--model", DemoModel(), "--routers", addresses, "--threads", "1",
                               "--report-interval", "20ms"});
    workers_.push_back(std::make_unique<DaemonProcess>(flags));
  }
  v1::GetPlanResponse Plan(size_t router = 0) {
    v1::GetPlanResponse response;
    grpc::ClientContext context;
    const auto stub = v1::ClusterService::NewStub(clients_[router]->channel());
    EXPECT_TRUE(stub->GetPlan(&context, {}, &response).ok());
    return response;
  }
  /// Workers that have this phase and are not on their way to another.
  int Having(v1::Phase phase) {
    const auto workers = clients_[0]->Workers();
    return static_cast<int>(
        std::count_if(workers.workers().begin(), workers.workers().end(), [&](const auto& each) {
          return each.load().phase() == phase && !each.load().phase_unassigned() &&
                 each.load().changing_to() == v1::PHASE_UNSPECIFIED;
        }));
  }
  std::string NameWith(v1::Phase phase) {
    const auto workers = clients_[0]->Workers();
    for (const auto& worker : workers.workers()) {
      if (worker.load().phase() == phase) return worker.info().name();
    }
    return "";
  }
  DaemonProcess& Worker(const std::string& name) {
    return *workers_[static_cast<size_t>(std::stoi(name.substr(1)))];
  }
  std::vector<std::string> Outcomes(size_t router = 0) {
    std::vector<std::string> outcomes;
    const v1::GetPlanResponse plan = Plan(router);
    for (const auto& decision : plan.decisions()) outcomes.push_back(decision.outcome());
    return outcomes;
  }

  std::vector<std::unique_ptr<DaemonProcess>> routers_, workers_;
  std::vector<std::unique_ptr<Client>> clients_;
};

/// Clients that send one request after the other until they are told to stop.
class Traffic {
 public:
  Traffic(const std::string& router, int n_clients, uint32_t prompt_tokens, uint32_t max_tokens) {
    for (int i = 0; i < n_clients; ++i) {
      threads_.emplace_back([=, this] {
        Client client(router);
        for (uint32_t k = 0; !stop_; ++k) {
          const Generated got = client.Generate(
              Request(prompt_tokens + k % 5, max_tokens, static_cast<uint32_t>(i) * 10000 + k));
          if (!got.status.ok()) {
            ADD_FAILURE() << got.status.error_message();
            ++failed_;
          } else {
            ++served_;
          }
        }
      });
    }
  }
  ~Traffic() { Stop(); }
  void Stop() {
    stop_ = true;
    for (std::thread& thread : threads_) {
      if (thread.joinable()) thread.join();
    }
  }
  int served() const { return served_; }
  int failed() const { return failed_; }

 private:
  std::atomic<bool> stop_{false};
  std::atomic<int> served_{0}, failed_{0};
  std::vector<std::thread> threads_;
};

/// Requests that come at a rate, whether those before have ended or not.
class Stream {
 public:
  Stream(const std::string& router, double rate_rps, uint32_t prompt_tokens, uint32_t max_tokens) {
    source_ = std::thread([=, this] {
      for (uint32_t k = 0; !stop_; ++k) {
        calls_.emplace_back([=, this] {
          Client client(router);
          const Generated got = client.Generate(Request(prompt_tokens + k % 5, max_tokens, 7 + k),
                                                nullptr, 5 * kWaitLimitS);
          if (got.status.ok()) return;
          ADD_FAILURE() << got.status.error_message();
          ++failed_;
        });
        WaitFor([this] { return stop_.load(); }, 1 / rate_rps);
      }
    });
  }
  ~Stream() { Stop(); }
  /// Waits for those that are under way.
  void Stop() {
    stop_ = true;
    if (source_.joinable()) source_.join();
    for (std::thread& call : calls_) {
      if (call.joinable()) call.join();
    }
  }
  int failed() const { return failed_; }

 private:
  std::atomic<bool> stop_{false};
  std::atomic<int> failed_{0};
  std::vector<std::thread> calls_;  // of source_, while it runs
  std::thread source_;
};

TEST_F(PlannerTest, WorkersThatAreGivenNoPhaseGetOne) {
  StartRouter();
  StartWorker();
  ASSERT_TRUE(clients_[0]->WaitWorkers(1));
  EXPECT_TRUE(clients_[0]->Generate(Request(100, 5)).status.ok()) << "one does everything";
  StartWorker();
  EXPECT_TRUE(WaitFor([&] { return Having(v1::PHASE_PREFILL) == 1; }));
  EXPECT_TRUE(WaitFor([&] { return Having(v1::PHASE_DECODE) == 1; }));
  StartWorker();
  EXPECT_TRUE(WaitFor([&] { return Having(v1::PHASE_DECODE) == 2; }));
  EXPECT_TRUE(clients_[0]->Generate(Request(100, 5)).status.ok());
  EXPECT_EQ(MetricSum(routers_[0]->Metrics(), "tandem_router_plan_decisions_total", "\"joined\""),
            3);
  EXPECT_EQ(MetricSum(routers_[0]->Metrics(), "tandem_router_plan_leader"), 1);
}

TEST_F(PlannerTest, SomebodyTakesOverWhenTheLastDecodeWorkerDies) {
  StartRouter();
  StartWorker();
  StartWorker();
  ASSERT_TRUE(WaitFor([&] { return Having(v1::PHASE_PREFILL) == 1; }));
  StartWorker({"--phase", "prefill"});
  ASSERT_TRUE(WaitFor([&] { return Having(v1::PHASE_DECODE) == 1; }));
  ASSERT_TRUE(WaitFor([&] { return Having(v1::PHASE_PREFILL) == 2; }));
  Traffic traffic(routers_[0]->RouterAddress(), 2, 200, 40);
  ASSERT_TRUE(WaitFor([&] { return traffic.served() > 4; }));
  const std::string last = NameWith(v1::PHASE_DECODE);
  Worker(last).process().Signal(SIGKILL);
  EXPECT_TRUE(WaitFor([&] { return Having(v1::PHASE_DECODE) == 1; }));
  EXPECT_NE(NameWith(v1::PHASE_DECODE), "w2") << "its phase was given";
  const int before = traffic.served();
  EXPECT_TRUE(WaitFor([&] { return traffic.served() > before + 4; }));
  traffic.Stop();
  EXPECT_EQ(traffic.failed(), 0);
  EXPECT_TRUE(WaitFor([&] {
    const std::vector<std::string> outcomes = Outcomes();
    return std::count(outcomes.begin(), outcomes.end(), "rescued") > 0;
  }));
}

TEST_F(PlannerTest, TheRequestsAreFollowedAndNoneFails) {
  StartRouter({"--planner-min-dwell", "2s", "--planner-min-gain", "100", "--ttft-objective", "10s",
               "--tpot-objective", "1s"});
  for (int i = 0; i < 3; ++i) StartWorker({"--no-prefill-on-decode"});
  ASSERT_TRUE(WaitFor([&] { return Having(v1::PHASE_DECODE) == 2; }));
  ASSERT_TRUE(WaitFor([&] { return Having(v1::PHASE_PREFILL) == 1; }));
  {
    Traffic chat(routers_[0]->RouterAddress(), 2, 60, 60);
    EXPECT_TRUE(WaitFor([&] { return Plan().goodput_rps() > 0; }, 120));
    chat.Stop();
    EXPECT_EQ(chat.failed(), 0);
  }
  EXPECT_EQ(Having(v1::PHASE_PREFILL), 1) << "they carry the requests";
  // Twice what one worker can compute, by the best of three: something else may run beside one.
  double alone_s = HUGE_VAL;
  for (int i = 0; i < 3; ++i) {
    const Generated alone = clients_[0]->Generate(Request(1500, 3, i));
    ASSERT_TRUE(alone.status.ok()) << alone.status.error_message();
    alone_s = std::min(alone_s, alone.timings.total_s());
  }
  Stream summaries(routers_[0]->RouterAddress(), 2 / alone_s, 1500, 3);
  EXPECT_TRUE(
      WaitFor([&] { return Having(v1::PHASE_PREFILL) + Having(v1::PHASE_MIXED) >= 2; }, 180))
      << routers_[0]->process().Log();
  EXPECT_TRUE(WaitFor([&] {  // it tells when it is done
    const std::vector<std::string> outcomes = Outcomes();
    return std::count(outcomes.begin(), outcomes.end(), "changed") > 0;
  }));
  summaries.Stop();
  EXPECT_EQ(summaries.failed(), 0);
}

TEST_F(PlannerTest, AnOperatorsWordHoldsUntilItIsTakenBack) {
  StartRouter();
  StartWorker();
  StartWorker();
  StartWorker();
  ASSERT_TRUE(WaitFor([&] { return Having(v1::PHASE_DECODE) == 2; }));
  const auto assign = [&](v1::Phase phase) {
    v1::AssignPhaseRequest request;
    request.set_worker("w0");
    request.set_phase(phase);
    v1::AssignPhaseResponse response;
    grpc::ClientContext context;
    return v1::ClusterService::NewStub(clients_[0]->channel())
        ->AssignPhase(&context, request, &response);
  };
  const auto planned = [&] {
    const auto workers = clients_[0]->Workers();
    for (const auto& worker : workers.workers()) {
      if (worker.info().name() == "w0") return worker.load().phase_planned();
    }
    return false;
  };
  EXPECT_TRUE(planned());
  ASSERT_TRUE(assign(v1::PHASE_MIXED).ok());
  EXPECT_TRUE(WaitFor([&] { return !planned() && Having(v1::PHASE_MIXED) == 1; }));
  ASSERT_TRUE(assign(v1::PHASE_AUTO).ok());
  EXPECT_TRUE(WaitFor(planned));
  EXPECT_EQ(Having(v1::PHASE_MIXED), 1) << "nothing has changed yet";
}

TEST_F(PlannerTest, OfSeveralRoutersOneDecides) {
  StartRouter();
  StartRouter();
  for (int i = 0; i < 3; ++i) StartWorker();
  EXPECT_TRUE(WaitFor([&] { return !Plan(0).leader().empty() && !Plan(1).leader().empty(); }));
  EXPECT_TRUE(WaitFor([&] { return Plan(0).leader() == Plan(1).leader(); }));
  const size_t first = Plan(0).leader() == Plan(0).router_id() ? 0 : 1;
  EXPECT_EQ(Plan(first).leader(), Plan(first).router_id());
  EXPECT_TRUE(WaitFor([&] { return Having(v1::PHASE_DECODE) == 2; }));
  EXPECT_TRUE(WaitFor([&] { return Having(v1::PHASE_PREFILL) == 1; }));
  EXPECT_EQ(MetricSum(routers_[first]->Metrics(), "tandem_router_plan_leader"), 1);
  EXPECT_EQ(MetricSum(routers_[1 - first]->Metrics(), "tandem_router_plan_leader"), 0);
  // The other one takes its place.
  routers_[first]->process().Signal(SIGKILL);
  EXPECT_TRUE(WaitFor([&] { return Plan(1 - first).leader() == Plan(1 - first).router_id(); }));
}

TEST_F(PlannerTest, ADryRunChangesNothing) {
  StartRouter({"--planner", "dry-run"});
  StartWorker();
  StartWorker();
  EXPECT_TRUE(WaitFor([&] { return !Outcomes().empty(); }));
  EXPECT_THAT(Outcomes(), testing::Each("dry_run"));
  const auto workers = clients_[0]->Workers();
  for (const auto& worker : workers.workers()) EXPECT_TRUE(worker.load().phase_unassigned());
}

TEST_F(PlannerTest, TheWorkloadCanBeSavedAndPlannedFor) {
  StartRouter();
  StartWorker();
  ASSERT_TRUE(clients_[0]->WaitWorkers(1));
  for (uint32_t i = 0; i < 3; ++i) {
    ASSERT_TRUE(clients_[0]->Generate(Request(50 + i, 4, i)).status.ok());
  }
  const std::string csv = TemporaryPath(".csv");
  Process saves({BinaryPath("tandem"), "plan", "workload", "--router", routers_[0]->RouterAddress(),
                 "--out", csv},
                TemporaryPath(".log"));
  EXPECT_EQ(saves.Wait(), 0) << saves.Log();
  EXPECT_THAT(saves.Log(), HasSubstr("3 requests"));
  std::ifstream file(csv);
  std::stringstream text;
  text << file.rdbuf();
  EXPECT_THAT(text.str(),
              HasSubstr("arrival_s,prompt_tokens,output_tokens,cached_tokens\n0,50,4,"));
  Process tells(
      {BinaryPath("tandem"), "plan", "decisions", "--router", routers_[0]->RouterAddress()},
      TemporaryPath(".log"));
  EXPECT_EQ(tells.Wait(), 0) << tells.Log();
  EXPECT_THAT(tells.Log(), AnyOf(HasSubstr("this router decides"), HasSubstr("nobody decides")));
}

TEST_F(PlannerTest, ARunningClusterIsPlannedAndSaved) {
  StartRouter({"--planner", "off"});
  StartWorker({"--phase", "prefill"});
  StartWorker({"--phase", "decode"});
  ASSERT_TRUE(clients_[0]->WaitWorkers(2));
  const auto plan = [&](std::vector<std::string> arguments, int exit_code) {
    arguments.insert(arguments.begin(), {BinaryPath("tandem"), "plan"});
    Process process(arguments, TemporaryPath(".log"));
    EXPECT_EQ(process.Wait(), exit_code) << process.Log();
    return process.Log();
  };
  const std::string router = routers_[0]->RouterAddress();
  const std::string cluster = TemporaryPath(".yaml"), workload = TemporaryPath(".csv");
  EXPECT_THAT(plan({"cluster", "--router", router}, 1), HasSubstr("no worker has measured yet"));
  const auto measured = [&] {
    const auto workers = clients_[0]->Workers();
    uint64_t prefill = 0, decode = 0;
    for (const auto& worker : workers.workers()) {
      prefill += worker.load().latency().prefill_samples();
      decode += worker.load().latency().decode_samples();
    }
    return prefill > 0 && decode > 0;
  };
  for (uint32_t i = 0; i < 3 || (i < 100 && !measured()); ++i) {
    ASSERT_TRUE(clients_[0]->Generate(Request(400 + i, 10, i)).status.ok());
  }
  ASSERT_TRUE(WaitFor(measured));
  EXPECT_THAT(plan({"search", "--router", router, "--ttft-slo=5", "--tpot-slo=1"}, 0),
              HasSubstr("all mixed"));
  plan({"cluster", "--router", router, "--out", cluster}, 0);
  plan({"workload", "--router", router, "--out", workload}, 0);
  std::ifstream file(cluster);
  std::stringstream text;
  text << file.rdbuf();
  EXPECT_THAT(text.str(), HasSubstr("kv_bytes_per_token: "));
  EXPECT_THAT(text.str(), AllOf(HasSubstr("w0"), HasSubstr("w1")));
  routers_[0]->process().Signal(SIGKILL);
  EXPECT_THAT(
      plan({"search", "--cluster", cluster, "--workload", workload, "--ttft-slo=5", "--tpot-slo=1"},
           0),
      HasSubstr("all mixed"))
      << text.str();
}

}  // namespace
}  // namespace tandem::e2e
