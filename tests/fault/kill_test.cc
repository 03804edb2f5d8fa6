// A worker that is killed or stopped in the middle of a stream: the client gets a clean
// UNAVAILABLE, the router keeps serving once the worker is back, and nothing is stranded.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <atomic>
#include <thread>

#include "tests/e2e/harness.h"

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

TEST(KillTest, DecodeWorkerKilledWhileItGenerates) {
  Cluster cluster;
  bool killed = false;
  const Generated got = cluster.client().Generate(
      LongRequest(300, 1500), [&](grpc::ClientContext&, const v1::GenerateResponse& message) {
        // The first message comes from the prefill worker.
        if (!killed && message.request_id().empty()) {
          cluster.decode().process().Signal(SIGKILL);
          killed = true;
        }
      });
  EXPECT_TRUE(killed);
  EXPECT_EQ(got.status.error_code(), grpc::UNAVAILABLE) << got.status.error_message();
  EXPECT_THAT(got.status.error_message(), HasSubstr("decode worker"));
  EXPECT_LT(got.tokens.size(), 1500u);
  cluster.RestartDecode();
  EXPECT_TRUE(cluster.client().WaitIdle()) << "the prefill worker holds KV for the dead one";
  EXPECT_TRUE(cluster.client().Generate(LongRequest(300, 20)).status.ok());
}

TEST(KillTest, PrefillWorkerKilledBeforeTheFirstToken) {
  Cluster cluster;
  std::thread killer([&] {
    EXPECT_TRUE(WaitFor([&] {
      const auto workers = cluster.client().Workers();
      for (const auto& worker : workers.workers()) {
        if (worker.info().phase() == v1::PHASE_PREFILL && worker.assigned() > 0) return true;
      }
      return false;
    }));
    cluster.prefill().process().Signal(SIGKILL);
  });
  // Enough requests that the worker cannot have finished them all.
  std::vector<std::thread> clients;
  std::atomic<int> unavailable{0}, fine{0};
  for (int i = 0; i < 16; ++i) {
    clients.emplace_back([&] {
      Client client(cluster.router().RouterAddress());
      const Generated got = client.Generate(LongRequest(2000, 30));
      if (got.status.ok()) {
        ++fine;
      } else {
        EXPECT_EQ(got.status.error_code(), grpc::UNAVAILABLE) << got.status.error_message();
        ++unavailable;
      }
    });
  }
  killer.join();
  for (std::thread& client : clients) client.join();
  EXPECT_GT(unavailable, 0);
  cluster.RestartPrefill();
  EXPECT_TRUE(cluster.client().WaitIdle()) << "the decode worker waits for a dead one";
  EXPECT_TRUE(cluster.client().Generate(LongRequest(300, 20)).status.ok());
}

TEST(KillTest, DecodeWorkerStoppedWhileKvWaitsForIt) {
  // SIGSTOP: the peer is there and silent. The lease must end what waits for it.
  Cluster cluster({.prefill_flags = {"--handoff-lease", "1s"}});
  cluster.decode().process().Signal(SIGSTOP);
  v1::GenerateRequest request = LongRequest(600, 50);
  request.set_timeout_s(30);
  const Generated got = cluster.client().Generate(request);
  EXPECT_EQ(got.status.error_code(), grpc::UNAVAILABLE) << got.status.error_message();
  EXPECT_TRUE(WaitFor([&] {
    return MetricSum(Scrape(cluster.prefill().metrics_port()), "tandem_pd_handoff_held_bytes") == 0;
  }));
  cluster.decode().process().Signal(SIGCONT);
  EXPECT_TRUE(cluster.client().WaitWorkers(2));
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

}  // namespace
}  // namespace tandem::e2e
