// What is left behind: nothing. Cancellation, deadlines, refusals and shutdown, with everything
// counted afterwards: KV, threads, descriptors. Run under AddressSanitizer as well.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <random>
#include <thread>

#include "base/clock.h"
#include "tests/e2e/harness.h"

namespace tandem::e2e {
namespace {

using testing::HasSubstr;

v1::GenerateRequest LongRequest(int seed, uint32_t max_tokens) {
  v1::GenerateRequest request;
  std::mt19937 random(static_cast<uint32_t>(seed));
  const int n = 5 + static_cast<int>(random() % 600);
  for (int i = 0; i < n; ++i) {
    request.mutable_prompt_tokens()->add_ids(300 + static_cast<int>(random() % 3500));
  }
  request.set_max_tokens(max_tokens);
  request.mutable_sampling()->set_temperature(0);
  request.mutable_sampling()->set_ignore_eos(true);
  return request;
}

struct Footprint {
  size_t threads, files;
};

Footprint Measure(Process& process) { return {process.Threads(), process.OpenFiles()}; }

// gRPC's own pollers come and go with its load; a thread left behind by each request, or by each
// client that leaves, would be many times this.
constexpr size_t kPollerThreads = 8;

// Connections between the workers that are kept for the next use, as many as were ever used at
// once: four at most for KV, and four for chunks. One left behind by each client that leaves would
// be many times this.
constexpr size_t kIdleConnections = 8;

/// The process has come back to what it had.
void ExpectBack(Process& process, const Footprint& before, const char* name) {
  EXPECT_TRUE(WaitFor([&] { return process.OpenFiles() <= before.files + kIdleConnections; }))
      << name << " had " << before.files << " descriptors, now " << process.OpenFiles();
  EXPECT_TRUE(WaitFor([&] { return process.Threads() <= before.threads + kPollerThreads; }))
      << name << " had " << before.threads << " threads, now " << process.Threads();
}

/// 64 clients at once, half of which leave at a random point.
void RunStorm(const std::string& router, int seed) {
  std::vector<std::thread> clients;
  for (int i = 0; i < 64; ++i) {
    clients.emplace_back([&, i] {
      Client client(router);
      const bool leaves = i % 2 == 0;
      std::mt19937 random(static_cast<uint32_t>(seed + i));
      size_t tokens = 0;
      const size_t leave_after = random() % 20;
      const uint32_t wanted = 24;
      if (leaves && leave_after == 0) {
        // Before the first token: a deadline that passes in the queue or in the prefill.
        const Generated got = client.Generate(LongRequest(seed + i, wanted), nullptr,
                                              static_cast<double>(random() % 200) * 1e-3);
        // The router refuses what it sees will be too late.
        EXPECT_TRUE(got.status.ok() || got.status.error_code() == grpc::DEADLINE_EXCEEDED ||
                    got.status.error_code() == grpc::RESOURCE_EXHAUSTED)
            << got.status.error_message();
        return;
      }
      const Generated got =
          client.Generate(LongRequest(seed + i, wanted),
                          [&](grpc::ClientContext& context, const v1::GenerateResponse& message) {
                            tokens += static_cast<size_t>(message.token_ids_size());
                            if (leaves && tokens >= leave_after) context.TryCancel();
                          });
      if (leaves) {
        EXPECT_EQ(got.status.error_code(), grpc::CANCELLED) << got.status.error_message();
      } else {
        EXPECT_TRUE(got.status.ok()) << got.status.error_message();
        EXPECT_EQ(got.terminal_messages, 1);
        EXPECT_EQ(got.tokens.size(), wanted);
      }
    });
  }
  for (std::thread& client : clients) client.join();
}

TEST(LifecycleTest, NothingIsLeftAfterClientsThatLeave) {
  Cluster cluster;
  RunStorm(cluster.router().RouterAddress(), 1);  // pools and connections reach their size
  ASSERT_TRUE(cluster.client().WaitIdle());
  const Footprint router = Measure(cluster.router().process());
  const Footprint prefill = Measure(cluster.prefill().process());
  const Footprint decode = Measure(cluster.decode().process());
  for (int round = 0; round < 2; ++round) {
    RunStorm(cluster.router().RouterAddress(), 1000 * (round + 1));
    EXPECT_TRUE(cluster.client().WaitIdle());
  }
  ExpectBack(cluster.router().process(), router, "router");
  ExpectBack(cluster.prefill().process(), prefill, "prefill");
  ExpectBack(cluster.decode().process(), decode, "decode");
  for (DaemonProcess* worker : {&cluster.prefill(), &cluster.decode()}) {
    EXPECT_TRUE(WaitFor([&] {
      const std::string metrics = Scrape(worker->metrics_port());
      return MetricSum(metrics, "tandem_worker_kv_used_tokens") == 0 &&
             MetricSum(metrics, "tandem_worker_requests_running") == 0;
    })) << Scrape(worker->metrics_port());
  }
  for (DaemonProcess* daemon : {&cluster.decode(), &cluster.prefill(), &cluster.router()}) {
    daemon->process().Signal(SIGTERM);
    EXPECT_EQ(daemon->process().Wait(), 0) << "leaks are reported at exit under ASan";
  }
}

TEST(LifecycleTest, DeadlineFreesBothWorkers) {
  Cluster cluster;
  v1::GenerateRequest request = LongRequest(3, 1400);
  request.set_timeout_s(0.3);
  const Generated got = cluster.client().Generate(request);
  EXPECT_EQ(got.status.error_code(), grpc::DEADLINE_EXCEEDED) << got.status.error_message();
  EXPECT_TRUE(cluster.client().WaitIdle());
}

TEST(LifecycleTest, RefusesWhatIsTooMuchAndSaysWhenToComeBack) {
  Cluster cluster({.router_flags = {"--max-requests", "1", "--retry-after", "1500ms"}});
  Client& client = cluster.client();
  Generated refused;
  const Generated first = client.Generate(
      LongRequest(4, 200), [&](grpc::ClientContext&, const v1::GenerateResponse& message) {
        if (refused.status.ok() && message.token_ids_size() > 0) {
          refused = client.Generate(LongRequest(5, 2));
        }
      });
  EXPECT_TRUE(first.status.ok()) << first.status.error_message();
  EXPECT_EQ(refused.status.error_code(), grpc::RESOURCE_EXHAUSTED);
  EXPECT_THAT(refused.status.error_message(), HasSubstr("max_requests"));
  EXPECT_THAT(refused.status.error_details(), HasSubstr("google.rpc.RetryInfo"));
  ASSERT_EQ(refused.trailers.count("grpc-retry-pushback-ms"), 1u);
  EXPECT_EQ(refused.trailers.find("grpc-retry-pushback-ms")->second, "1500");
  EXPECT_TRUE(client.Generate(LongRequest(5, 2)).status.ok());
}

TEST(LifecycleTest, SigtermLetsRunningRequestsFinishAndRefusesNewOnes) {
  DaemonProcess all({"--model", DemoModel(), "--listen", "127.0.0.1:0", "--threads", "1"});
  Client client(all.RouterAddress());
  bool told = false;
  Generated late;
  const Generated running =
      client.Generate(LongRequest(6, 400), [&](grpc::ClientContext&, const v1::GenerateResponse&) {
        if (told) return;
        told = true;
        all.process().Signal(SIGTERM);
        EXPECT_TRUE(WaitFor([&] {
          late = client.Generate(LongRequest(7, 2));
          return !late.status.ok();
        }));
      });
  EXPECT_TRUE(running.status.ok()) << running.status.error_message();
  EXPECT_EQ(running.tokens.size(), 400u);
  EXPECT_EQ(late.status.error_code(), grpc::UNAVAILABLE) << late.status.error_message();
  EXPECT_EQ(all.process().Wait(), 0) << all.process().Log();
}

TEST(LifecycleTest, ADrainingWorkerFinishesItsRequestsAndThenLeaves) {
  Cluster cluster({.router_flags = {"--resume-timeout", "1s"}});
  bool told = false;
  const Generated running = cluster.client().Generate(
      LongRequest(8, 400), [&](grpc::ClientContext&, const v1::GenerateResponse&) {
        if (!told) cluster.decode().process().Signal(SIGTERM);
        told = true;
      });
  EXPECT_TRUE(running.status.ok()) << running.status.error_message();
  EXPECT_EQ(running.tokens.size(), 400u);
  EXPECT_EQ(cluster.decode().process().Wait(), 0);
  EXPECT_TRUE(cluster.client().WaitWorkers(1));
  const Generated next = cluster.client().Generate(LongRequest(9, 2));
  EXPECT_EQ(next.status.error_code(), grpc::UNAVAILABLE);
  EXPECT_THAT(next.status.error_message(), HasSubstr("no decode worker"));
}

TEST(LifecycleTest, ASecondSigtermEndsTheProcessAtOnce) {
  DaemonProcess all({"--model", DemoModel(), "--listen", "127.0.0.1:0", "--threads", "1"});
  Client client(all.RouterAddress());
  bool told = false;
  const Generated running = client.Generate(
      LongRequest(10, 1400), [&](grpc::ClientContext&, const v1::GenerateResponse&) {
        if (told) return;
        told = true;
        all.process().Signal(SIGTERM);
        EXPECT_TRUE(
            WaitFor([&] { return all.process().Log().find("draining") != std::string::npos; }));
        all.process().Signal(SIGTERM);
      });
  EXPECT_EQ(running.status.error_code(), grpc::UNAVAILABLE) << running.status.error_message();
  EXPECT_EQ(all.process().Wait(), 128 + SIGTERM);
}

}  // namespace
}  // namespace tandem::e2e
