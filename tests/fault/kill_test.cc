// A worker that is killed or stopped, or hangs, in the middle of a stream: the request goes on
// elsewhere, and without anybody left it waits, and then ends with a clean UNAVAILABLE. Nothing is
// stranded.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <atomic>
#include <thread>

#include "base/clock.h"
#include "tests/e2e/harness.h"
#include "tests/fault/engine_stall.h"

namespace tandem::e2e {
namespace {

using testing::HasSubstr;

v1::GenerateRequest LongRequest(int n_prompt, uint32_t max_tokens) {
  v1::GenerateRequest request;
  for (int i = 0; i < n_prompt; ++i) request.mutable_prompt_tokens()->add_ids(300 + i);
  request.set_max_tokens(max_tokens);
  request.mutable_sampling()->set_temperature(0);
  request.mutable_sampling()->set_ignore_eos(true);
  return request;
}

/// Kills the decode worker upon its first token.
class KillDecode {
 public:
  explicit KillDecode(Cluster& cluster) : cluster_(cluster) {}
  void operator()(grpc::ClientContext&, const v1::GenerateResponse& message) {
    // The first message comes from the prefill worker.
    if (killed_ || !message.request_id().empty()) return;
    cluster_.decode().process().Signal(SIGKILL);
    killed_ = true;
  }
  bool killed() const { return killed_; }

 private:
  Cluster& cluster_;
  bool killed_ = false;
};

TEST(KillTest, ARequestWaitsForADecodeWorkerAndGoesOn) {
  Cluster cluster;
  std::thread restart;
  KillDecode kill(cluster);
  const Generated got = cluster.client().Generate(
      LongRequest(300, 900), [&](grpc::ClientContext& context, const v1::GenerateResponse& m) {
        const bool was_killed = kill.killed();
        kill(context, m);
        if (kill.killed() && !was_killed) restart = std::thread([&] { cluster.RestartDecode(); });
      });
  ASSERT_TRUE(restart.joinable());
  restart.join();
  EXPECT_TRUE(got.status.ok()) << got.status.error_message();
  EXPECT_EQ(got.tokens.size(), 900u);
  EXPECT_EQ(got.terminal_messages, 1);
  EXPECT_EQ(got.usage.prompt_tokens(), 300u);
  EXPECT_EQ(got.usage.generated_tokens(), 900u);
  EXPECT_GE(got.timings.resumptions(), 1u);
  EXPECT_GE(MetricSum(cluster.router().Metrics(), "tandem_router_resumptions_total"), 1);
  EXPECT_TRUE(cluster.client().WaitIdle()) << "the prefill worker holds KV for the dead one";
}

TEST(KillTest, WithNobodyLeftItFailsCleanly) {
  Cluster cluster({.router_flags = {"--resume-timeout", "1s"}});
  KillDecode kill(cluster);
  const Generated got = cluster.client().Generate(
      LongRequest(300, 1500), [&](auto& context, const auto& message) { kill(context, message); });
  EXPECT_TRUE(kill.killed());
  EXPECT_EQ(got.status.error_code(), grpc::UNAVAILABLE) << got.status.error_message();
  EXPECT_THAT(got.status.error_message(), HasSubstr("no decode worker"));
  EXPECT_THAT(got.status.error_message(), HasSubstr("resume_timeout"));
  EXPECT_EQ(got.trailers.find("grpc-retry-pushback-ms")->second, "-1") << "text was sent";
  EXPECT_LT(got.tokens.size(), 1500u);
  cluster.RestartDecode();
  EXPECT_TRUE(cluster.client().WaitIdle());
  EXPECT_TRUE(cluster.client().Generate(LongRequest(300, 20)).status.ok());
}

TEST(KillTest, PrefillWorkerKilledBeforeTheFirstToken) {
  Cluster cluster;
  // Enough requests that the worker cannot have finished them all.
  std::vector<std::thread> clients;
  for (int i = 0; i < 6; ++i) {
    clients.emplace_back([&] {
      Client client(cluster.router().RouterAddress());
      const Generated got = client.Generate(LongRequest(1500, 10));
      EXPECT_TRUE(got.status.ok()) << got.status.error_message();
      EXPECT_EQ(got.tokens.size(), 10u);
      EXPECT_EQ(got.terminal_messages, 1);
    });
  }
  EXPECT_TRUE(WaitFor([&] {
    const auto workers = cluster.client().Workers();
    return std::any_of(workers.workers().begin(), workers.workers().end(), [](const auto& worker) {
      return worker.info().phase() == v1::PHASE_PREFILL && worker.assigned() > 0;
    });
  }));
  cluster.prefill().process().Signal(SIGKILL);
  cluster.RestartPrefill();
  for (std::thread& client : clients) client.join();
  EXPECT_GE(MetricSum(cluster.router().Metrics(), "tandem_router_resumptions_total"), 1);
  EXPECT_TRUE(cluster.client().WaitIdle()) << "the decode worker waits for a dead one";
}

TEST(KillTest, DecodeWorkerStoppedWhileKvWaitsForIt) {
  // SIGSTOP: the peer is there and silent. The router gives it up when its reports stay away.
  Cluster cluster({.router_flags = {"--worker-timeout", "500ms", "--resume-timeout", "1s"}});
  cluster.decode().process().Signal(SIGSTOP);
  const Generated got = cluster.client().Generate(LongRequest(600, 50));
  EXPECT_EQ(got.status.error_code(), grpc::UNAVAILABLE) << got.status.error_message();
  EXPECT_TRUE(WaitFor([&] {
    return MetricSum(Scrape(cluster.prefill().metrics_port()), "tandem_pd_handoff_held_bytes") == 0;
  }));
  cluster.decode().process().Signal(SIGCONT);
  EXPECT_TRUE(WaitFor([&] {
    return MetricSum(cluster.router().Metrics(), "tandem_router_workers", "decode") == 1;
  }));
  EXPECT_TRUE(cluster.client().WaitIdle());
  EXPECT_TRUE(cluster.client().Generate(LongRequest(300, 20)).status.ok());
}

/// A report of the decode worker has come so long after `since` that it was made after that, too.
bool ReportsAfter(Cluster& cluster, const Stopwatch& since) {
  constexpr double kTwoReportsS = 0.5;
  const double passed_s = since.seconds();
  const auto workers = cluster.client().Workers();
  return std::any_of(workers.workers().begin(), workers.workers().end(), [&](const auto& worker) {
    return worker.info().phase() == v1::PHASE_DECODE &&
           worker.report_age_s() < passed_s - kTwoReportsS;
  });
}

TEST(KillTest, AnEngineThatHangsIsFoundOutThoughItsWorkerReports) {
  Cluster cluster({.router_flags = {"--stall-timeout", "1s", "--worker-timeout", "1m"}});
  const pid_t worker = cluster.decode().process().pid();
  if (!EngineStall(worker).made()) GTEST_SKIP() << "NOT TESTED: ptrace is not permitted";
  std::unique_ptr<DaemonProcess> other;
  std::atomic<bool> ended{false};
  std::thread hang;
  constexpr int kUnderWay = 20;
  int messages = 0;
  const Generated got = cluster.client().Generate(
      LongRequest(300, 900), [&](grpc::ClientContext&, const v1::GenerateResponse&) {
        if (++messages != kUnderWay) return;
        hang = std::thread([&] {
          auto stall = std::make_unique<EngineStall>(worker);
          for (Stopwatch since; !WaitFor([&] { return ReportsAfter(cluster, since); }, 2);
               since = Stopwatch()) {
            stall.reset();  // it had a lock
            stall = std::make_unique<EngineStall>(worker);
          }
          other = std::make_unique<DaemonProcess>(std::vector<std::string>{
              "--role", "worker", "--phase", "decode", "--name", "other", "--model", DemoModel(),
              "--routers", cluster.router().RouterAddress(), "--threads", "1"});
          EXPECT_TRUE(WaitFor([&] { return ended.load(); }));
        });
      });
  ended = true;
  ASSERT_TRUE(hang.joinable());
  hang.join();
  EXPECT_TRUE(got.status.ok()) << got.status.error_message();
  EXPECT_EQ(got.tokens.size(), 900u);
  EXPECT_EQ(got.terminal_messages, 1);
  EXPECT_EQ(got.timings.resumptions(), 1u);
  EXPECT_EQ(got.timings.decode_worker(), "other");
  EXPECT_EQ(MetricSum(cluster.router().Metrics(), "tandem_router_resumptions_total", "\"lost\""),
            1);
  EXPECT_THAT(cluster.router().process().Log(), HasSubstr("has made no step for"));
  // It goes on, finds that nobody wants its sequence any more, and is a worker like any other.
  EXPECT_TRUE(cluster.client().WaitIdle());
  EXPECT_TRUE(WaitFor([&] {
    return MetricSum(cluster.router().Metrics(), "tandem_router_workers", "decode") == 2;
  }));
}

TEST(KillTest, ARequestThatHasKilledTwoWorkersIsRefused) {
  Cluster cluster;
  std::thread second_death;
  KillDecode first(cluster);
  const Generated got = cluster.client().Generate(
      LongRequest(300, 1500), [&](grpc::ClientContext& context, const v1::GenerateResponse& m) {
        const bool was_killed = first.killed();
        first(context, m);
        if (was_killed || !first.killed()) return;
        second_death = std::thread([&] {
          cluster.RestartDecode();
          // It dies as soon as it has made a step for this request.
          EXPECT_TRUE(WaitFor([&] {
            return MetricSum(cluster.decode().Metrics(), "tandem_worker_requests_running") > 0;
          }));
          cluster.RestartDecode();
        });
      });
  ASSERT_TRUE(second_death.joinable());
  second_death.join();
  EXPECT_EQ(got.status.error_code(), grpc::INTERNAL) << got.status.error_message();
  EXPECT_THAT(got.status.error_message(), HasSubstr("running on two workers that died"));
  EXPECT_EQ(
      MetricSum(cluster.router().Metrics(), "tandem_router_resumptions_refused_total", "poisoned"),
      1);
  EXPECT_TRUE(cluster.client().WaitIdle());
  EXPECT_TRUE(cluster.client().Generate(LongRequest(300, 20)).status.ok());
}

TEST(KillTest, RouterKilledFreesTheWorkers) {
  Cluster cluster;
  bool killed = false;
  const Generated got = cluster.client().Generate(
      LongRequest(300, 1500), [&](grpc::ClientContext&, const v1::GenerateResponse&) {
        if (!killed) cluster.router().process().Signal(SIGKILL);
        killed = true;
      });
  EXPECT_EQ(got.status.error_code(), grpc::UNAVAILABLE) << got.status.error_message();
  for (DaemonProcess* worker : {&cluster.prefill(), &cluster.decode()}) {
    EXPECT_TRUE(WaitFor([&] {
      return MetricSum(Scrape(worker->metrics_port()), "tandem_worker_kv_used_tokens") == 0;
    }));
  }
}

TEST(KillTest, ARouterThatIsStoppedTellsItsClients) {
  Cluster cluster({.router_flags = {"--drain-timeout", "0s"}});
  bool told = false;
  const Generated got = cluster.client().Generate(
      LongRequest(300, 1500), [&](grpc::ClientContext&, const v1::GenerateResponse&) {
        if (!told) cluster.router().process().Signal(SIGTERM);
        told = true;
      });
  EXPECT_EQ(got.status.error_code(), grpc::UNAVAILABLE) << got.status.error_message();
  EXPECT_THAT(got.status.error_message(), HasSubstr("shutting down"));
  EXPECT_EQ(got.trailers.find("grpc-retry-pushback-ms")->second, "-1") << "text was sent";
  EXPECT_EQ(cluster.router().process().Wait(), 0) << cluster.router().process().Log();
  for (DaemonProcess* worker : {&cluster.prefill(), &cluster.decode()}) {
    EXPECT_TRUE(WaitFor([&] {
      return MetricSum(Scrape(worker->metrics_port()), "tandem_worker_kv_used_tokens") == 0;
    }));
  }
}

}  // namespace
}  // namespace tandem::e2e
