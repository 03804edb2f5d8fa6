// Where requests go, and that nobody notices when workers change what they do.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <thread>

#include "tests/e2e/harness.h"

namespace tandem::e2e {
namespace {

using testing::ContainsRegex;
using testing::HasSubstr;
using testing::MatchesRegex;
using testing::StartsWith;

v1::GenerateRequest LongRequest(uint32_t max_tokens) {
  v1::GenerateRequest request;
  for (int i = 0; i < 300; ++i) request.mutable_prompt_tokens()->add_ids(300 + i);
  request.set_max_tokens(max_tokens);
  request.mutable_sampling()->set_temperature(0);
  request.mutable_sampling()->set_ignore_eos(true);
  return request;
}

/// One router and workers with these phases, named w0, w1, …
class SchedulingTest : public testing::Test {
 protected:
  void Start(const std::vector<std::string>& phases, std::vector<std::string> worker_flags = {}) {
    router_ = std::make_unique<DaemonProcess>(std::vector<std::string>{
        "--role", "router", "--model", DemoModel(), "--listen", "127.0.0.1:0"});
    client_ = std::make_unique<Client>(router_->RouterAddress());
    cluster_ = v1::ClusterService::NewStub(client_->channel());
    for (const std::string& phase : phases) {
      std::vector<std::string> flags = {"--role",
                                        "worker",
                                        "--phase",
                                        phase,
                                        "--name",
                                        "w" + std::to_string(workers_.size()),
                                        "--model",
                                        DemoModel(),
                                        "--routers",
                                        router_->RouterAddress(),
                                        "--threads",
                                        "1",
                                        "--report-interval",
                                        "20ms"};
      flags.insert(flags.end(), worker_flags.begin(), worker_flags.end());
      workers_.push_back(std::make_unique<DaemonProcess>(std::move(flags)));
    }
    ASSERT_TRUE(client_->WaitWorkers(static_cast<int>(phases.size())));
  }
  grpc::Status Assign(const std::string& worker, v1::Phase phase, bool force = false) {
    grpc::ClientContext context;
    v1::AssignPhaseRequest request;
    request.set_worker(worker);
    request.set_phase(phase);
    request.set_force(force);
    v1::AssignPhaseResponse response;
    return cluster_->AssignPhase(&context, request, &response);
  }
  bool WaitPhase(const std::string& name, v1::Phase phase) {
    return WaitFor([&] {
      const auto workers = client_->Workers();
      return std::any_of(workers.workers().begin(), workers.workers().end(), [&](const auto& each) {
        return each.info().name() == name && each.load().phase() == phase &&
               each.load().changing_to() == v1::PHASE_UNSPECIFIED;
      });
    });
  }
  /// The name of the worker that decodes something.
  std::string Decoding() {
    std::string name;
    WaitFor([&] {
      const auto workers = client_->Workers();
      for (const auto& worker : workers.workers()) {
        if (worker.load().decode().running() > 0) name = worker.info().name();
      }
      return !name.empty();
    });
    return name;
  }

  /// What `tandem` writes to both streams when it is called with these arguments.
  std::string Tandem(std::vector<std::string> arguments, int exit_code) {
    arguments.insert(arguments.begin(), BinaryPath("tandem"));
    arguments.insert(arguments.end(), {"--router", router_->RouterAddress()});
    Process process(arguments, TemporaryPath(".log"));
    EXPECT_EQ(process.Wait(), exit_code) << process.Log();
    return process.Log();
  }

  std::unique_ptr<DaemonProcess> router_;
  std::unique_ptr<Client> client_;
  std::unique_ptr<v1::ClusterService::Stub> cluster_;
  std::vector<std::unique_ptr<DaemonProcess>> workers_;
};

TEST_F(SchedulingTest, EveryDispatchIsExplained) {
  Start({"prefill", "decode", "decode"});
  v1::GenerateRequest request = LongRequest(5);
  request.set_request_id("why");
  ASSERT_TRUE(client_->Generate(request).status.ok());
  v1::ExplainRequest explain;
  explain.set_request_id("why");
  v1::ExplainResponse response;
  grpc::ClientContext context;
  ASSERT_TRUE(cluster_->Explain(&context, explain, &response).ok());
  ASSERT_EQ(response.decisions_size(), 1);
  EXPECT_EQ(response.decisions(0).dispatch(), 1u);
  EXPECT_EQ(response.decisions(0).reason(), "new");
  EXPECT_EQ(response.decisions(0).prompt_tokens(), 300u);
  int chosen = 0;
  for (const v1::Candidate& candidate : response.decisions(0).candidates()) {
    chosen += candidate.chosen();
    EXPECT_GT(candidate.ttft_s(), 0);
    EXPECT_GT(candidate.tpot_s(), 0);
  }
  EXPECT_EQ(chosen, 1);
  explain.set_request_id("unknown");
  grpc::ClientContext second;
  EXPECT_EQ(cluster_->Explain(&second, explain, &response).error_code(), grpc::NOT_FOUND);
}

TEST_F(SchedulingTest, AWorkerThatChangesItsPhaseGivesItsSequencesAway) {
  Start({"prefill", "decode", "decode"});
  constexpr uint32_t kTokens = 1200;
  std::string left;
  std::thread assign;
  const Generated got = client_->Generate(
      LongRequest(kTokens), [&](grpc::ClientContext&, const v1::GenerateResponse& message) {
        if (assign.joinable() || !message.request_id().empty()) return;
        assign = std::thread([&] {
          left = Decoding();
          const grpc::Status status = Assign(left, v1::PHASE_PREFILL);
          EXPECT_TRUE(status.ok()) << status.error_message();
        });
      });
  ASSERT_TRUE(assign.joinable());
  assign.join();
  ASSERT_TRUE(got.status.ok()) << got.status.error_message();
  EXPECT_EQ(got.tokens.size(), kTokens);
  EXPECT_EQ(got.timings.resumptions(), 1u);
  EXPECT_NE(got.timings.decode_worker(), left);
  EXPECT_EQ(MetricSum(router_->Metrics(), "tandem_router_resumptions_total", "\"moved\""), 1);
  EXPECT_TRUE(WaitPhase(left, v1::PHASE_PREFILL));
  EXPECT_TRUE(client_->WaitIdle());
  const std::string explained = Tandem({"explain", got.request_id}, 0);
  EXPECT_THAT(explained, ContainsRegex("dispatch 1, [0-9.]+ s ago, new\n"));
  EXPECT_THAT(explained, ContainsRegex("dispatch 2, [0-9.]+ s ago, moved: "));
}

TEST_F(SchedulingTest, TheLastWorkerOfAPhaseKeepsItUnlessForced) {
  Start({"prefill", "decode"});
  const grpc::Status refused = Assign("w1", v1::PHASE_PREFILL);
  EXPECT_EQ(refused.error_code(), grpc::FAILED_PRECONDITION);
  EXPECT_THAT(refused.error_message(), HasSubstr("last one that decodes"));
  EXPECT_EQ(Assign("nobody", v1::PHASE_MIXED).error_code(), grpc::NOT_FOUND);
  EXPECT_EQ(Assign("w1", v1::PHASE_STORE).error_code(), grpc::INVALID_ARGUMENT);
  ASSERT_TRUE(Assign("w1", v1::PHASE_MIXED).ok());
  EXPECT_TRUE(WaitPhase("w1", v1::PHASE_MIXED));
  ASSERT_TRUE(Assign("w0", v1::PHASE_DECODE).ok()) << "the other one does both";
  EXPECT_TRUE(WaitPhase("w0", v1::PHASE_DECODE));
  EXPECT_TRUE(client_->Generate(LongRequest(20)).status.ok());
}

TEST_F(SchedulingTest, AMixedWorkerServesAlone) {
  Start({"mixed"});
  const Generated got = client_->Generate(LongRequest(50));
  ASSERT_TRUE(got.status.ok()) << got.status.error_message();
  EXPECT_EQ(got.tokens.size(), 50u);
  EXPECT_EQ(got.timings.prefill_worker(), "w0");
  EXPECT_EQ(got.timings.decode_worker(), "w0");
  EXPECT_TRUE(WaitFor(
      [&] { return MetricSum(router_->Metrics(), "tandem_router_workers", "mixed") == 1; }));
  EXPECT_TRUE(client_->WaitIdle());
}

TEST_F(SchedulingTest, ExplainPrintsTheCandidates) {
  Start({"prefill", "decode", "decode"});
  v1::GenerateRequest request = LongRequest(5);
  request.set_request_id("why");
  const Generated got = client_->Generate(request);
  ASSERT_TRUE(got.status.ok()) << got.status.error_message();
  const std::string told = Tandem({"explain", "why"}, 0);
  EXPECT_THAT(told, MatchesRegex("dispatch 1, [0-9.]+ s ago, new\n"
                                 "300 tokens to place; the request had waited [0-9.]+ ms in the "
                                 "router\n\n"
                                 " +PREFILL +DECODE +SCORE +TTFT MS +QUEUE +COMPUTE +LOAD +CACHED +"
                                 "TPOT MS +STEP +WAIT +HANDOFF *\n"
                                 "([* ] +w[0-2] +w[12]( +[0-9.]+){10} *\n)+\n"));
  EXPECT_THAT(told, ContainsRegex("\n[*] +" + got.timings.prefill_worker() + " +" +
                                  got.timings.decode_worker() + " "));
  EXPECT_EQ(std::count(told.begin(), told.end(), '*'), 1);
  EXPECT_THAT(Tandem({"explain", "--json", "why"}, 0),
              MatchesRegex("[{]\"decisions\":\\[[{]\"dispatch\":1,.*\"reason\":\"new\".*\n"));
}

TEST_F(SchedulingTest, ExplainSaysWhatIsWrong) {
  Start({"mixed"});
  EXPECT_THAT(Tandem({"explain", "unknown"}, 1),
              MatchesRegex("tandem: NOT_FOUND: request_id: 'unknown' was not dispatched by this "
                           "router, or is not among its last [0-9]+ requests\n"));
  for (const std::vector<std::string>& ids : {std::vector<std::string>{}, {"one", "two"}}) {
    std::vector<std::string> arguments = ids;
    arguments.insert(arguments.begin(), "explain");
    EXPECT_EQ(Tandem(arguments, 2), "tandem: explain: one request id is needed; see --help\n");
  }
  EXPECT_THAT(Tandem({"explain", "--help"}, 0), StartsWith("Usage: tandem explain "));
}

TEST_F(SchedulingTest, PhaseTellsAWorkerWhatToDo) {
  Start({"prefill", "decode"});
  const auto id = [&](const std::string& name) {
    const auto workers = client_->Workers();
    for (const auto& worker : workers.workers()) {
      if (worker.info().name() == name) return worker.info().worker_id();
    }
    return std::string();
  };
  EXPECT_EQ(Tandem({"phase", "w1", "mixed"}, 0), "w1 was told: mixed\n");
  EXPECT_TRUE(WaitPhase("w1", v1::PHASE_MIXED));
  EXPECT_EQ(Tandem({"phase", id("w1"), "decode"}, 0), id("w1") + " was told: decode\n");
  EXPECT_TRUE(WaitPhase("w1", v1::PHASE_DECODE));
  EXPECT_EQ(Tandem({"phase", "w1", "prefill"}, 1),
            "tandem: FAILED_PRECONDITION: worker: 'w1' is the last one that decodes; give another "
            "that phase first, or force\n");
  EXPECT_EQ(Tandem({"phase", "--force", "w1", "prefill"}, 0), "w1 was told: prefill\n");
  EXPECT_TRUE(WaitPhase("w1", v1::PHASE_PREFILL));
  EXPECT_EQ(Tandem({"phase", "w1", "auto"}, 0), "w1 was told: auto\n");
}

TEST_F(SchedulingTest, PhaseSaysWhatIsWrong) {
  Start({"mixed", "mixed"}, {"--phase-pinned", "--name", "twin"});
  EXPECT_EQ(
      Tandem({"phase", "twin", "decode"}, 1),
      "tandem: INVALID_ARGUMENT: worker: several have the name 'twin'; give its id instead\n");
  EXPECT_EQ(Tandem({"phase", "nobody", "decode"}, 1),
            "tandem: NOT_FOUND: worker: no worker 'nobody' is registered here; `tandem status` "
            "lists them\n");
  const std::string id = client_->Workers().workers(0).info().worker_id();
  EXPECT_EQ(Tandem({"phase", id, "decode"}, 1),
            "tandem: FAILED_PRECONDITION: worker: '" + id +
                "' keeps its phase, mixed (its phase_pinned is set)\n");
  EXPECT_EQ(Tandem({"phase", "twin", "store"}, 2),
            "tandem: phase: 'store' is not a phase; allowed are prefill, decode, mixed and auto\n");
  EXPECT_EQ(Tandem({"phase", "twin"}, 2),
            "tandem: phase: a worker and its phase are needed; see --help\n");
  EXPECT_THAT(Tandem({"phase", "--help"}, 0), StartsWith("Usage: tandem phase "));
}

}  // namespace
}  // namespace tandem::e2e
