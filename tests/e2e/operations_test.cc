// What operators and load balancers see: health, reflection, metrics, logs, ports.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <filesystem>
#include <fstream>

#include "tests/e2e/harness.h"

namespace tandem::e2e {
namespace {

using testing::HasSubstr;

/// grpc.health.v1's answer, by the bytes that load balancers look at.
enum class Serving { kUnknown = 0, kYes = 1, kNo = 2 };
Serving Health(Client& client, const std::string& service) {
  std::string request;
  if (!service.empty())
    request = "\x0a" + std::string(1, static_cast<char>(service.size())) + service;
  const RawReply reply = RawCall(client, "/grpc.health.v1.Health/Check", request);
  if (reply.bytes.size() != 2 || reply.bytes[0] != 0x08) return Serving::kUnknown;
  return static_cast<Serving>(reply.bytes[1]);
}

TEST(OperationsTest, HealthFollowsTheWorkers) {
  DaemonProcess router({"--role", "router", "--model", DemoModel(), "--listen", "127.0.0.1:0"});
  Client client(router.RouterAddress());
  EXPECT_EQ(Health(client, ""), Serving::kNo);
  const Generated refused = client.Generate(Greedy("hello", 2));
  EXPECT_EQ(refused.status.error_code(), grpc::UNAVAILABLE);
  EXPECT_THAT(refused.status.error_message(), HasSubstr("no prefill worker"));

  auto worker = [&](const std::string& phase) {
    return std::make_unique<DaemonProcess>(
        std::vector<std::string>{"--role", "worker", "--phase", phase, "--model", DemoModel(),
                                 "--routers", router.RouterAddress(), "--threads", "1"});
  };
  auto prefill = worker("prefill"), decode = worker("decode");
  auto serving = [&](const std::string& service, Serving wanted) {
    return WaitFor([&] { return Health(client, service) == wanted; });
  };
  EXPECT_TRUE(serving("", Serving::kYes));
  EXPECT_TRUE(serving("tandem.v1.InferenceService", Serving::kYes));
  decode.reset();
  EXPECT_TRUE(serving("", Serving::kNo));
}

TEST(OperationsTest, ReflectionNamesTheServices) {
  DaemonProcess router({"--role", "router", "--model", DemoModel(), "--listen", "127.0.0.1:0"});
  Client client(router.RouterAddress());
  // ServerReflectionRequest{list_services: "*"}
  const RawReply reply = RawCall(
      client, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "\x3a\x01*");
  EXPECT_THAT(reply.bytes, HasSubstr("tandem.v1.InferenceService"));
  EXPECT_THAT(reply.bytes, HasSubstr("tandem.v1.ClusterService"));
}

TEST(OperationsTest, EveryRoleExportsMetricsThatCount) {
  Cluster cluster;
  constexpr int kRequests = 3;
  for (int i = 0; i < kRequests; ++i) {
    ASSERT_TRUE(cluster.client().Generate(Greedy("The king said", 10)).status.ok());
  }
  ASSERT_TRUE(cluster.client().WaitIdle());
  const std::string router = Scrape(cluster.router().metrics_port());
  EXPECT_EQ(MetricSum(router, "tandem_router_ttft_seconds_count"), kRequests) << router;
  EXPECT_EQ(MetricSum(router, "tandem_router_tpot_seconds_count"), kRequests);
  EXPECT_EQ(MetricSum(router, "tandem_router_requests_total", "code=\"OK\""), kRequests);
  const std::string prefill = Scrape(cluster.prefill().metrics_port());
  EXPECT_EQ(MetricSum(prefill, "vllm:request_prefill_time_seconds_count"), kRequests) << prefill;
  const std::string decode = Scrape(cluster.decode().metrics_port());
  EXPECT_EQ(MetricSum(decode, "vllm:request_decode_time_seconds_count"), kRequests) << decode;
  EXPECT_EQ(MetricSum(decode, "vllm:generation_tokens_total"), kRequests * 9);
}

TEST(OperationsTest, SpeedIsMeasuredOnceAndKept) {
  const std::string folder = TemporaryPath(".speed");
  const std::vector<std::string> flags = {"--role",
                                          "all",
                                          "--model",
                                          DemoModel(),
                                          "--listen",
                                          "127.0.0.1:0",
                                          "--threads",
                                          "1",
                                          "--profile-at-start",
                                          "1s",
                                          "--speed-cache-path",
                                          folder};
  const auto start = [&](uint64_t* samples) {
    DaemonProcess daemon(flags);
    Client client(daemon.RouterAddress());
    EXPECT_TRUE(WaitFor([&] {
      *samples = 0;
      const v1::ListWorkersResponse response = client.Workers();
      for (const v1::WorkerState& worker : response.workers()) {
        *samples += worker.load().latency().decode_samples();
      }
      return *samples > 0;
    })) << "the router hears nothing of it";
    daemon.process().Signal(SIGTERM);
    EXPECT_EQ(daemon.process().Wait(), 0);
    return daemon.process().Log();
  };
  uint64_t measured = 0, known = 0;
  const std::string first = start(&measured), second = start(&known);
  EXPECT_THAT(first, HasSubstr("speed measured steps=decode"));
  EXPECT_THAT(second, HasSubstr("speed known from an earlier start steps=decode"));
  EXPECT_THAT(second, testing::Not(HasSubstr("speed measured")));
  EXPECT_EQ(known, measured);
  std::filesystem::remove_all(folder);
}

TEST(OperationsTest, TheMetricsPortIsRefusedWhenItIsTaken) {
  DaemonProcess first({"--role", "router", "--model", DemoModel(), "--listen", "127.0.0.1:0"});
  for (const auto& [flag, port] : {std::pair("--listen", first.router_port()),
                                   std::pair("--metrics-listen", first.metrics_port())}) {
    Process second({BinaryPath("tandemd"), "--role", "router", "--model", DemoModel(), "--listen",
                    "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", flag,
                    "127.0.0.1:" + std::to_string(port)},
                   testing::TempDir() + "tandem-second.log");
    EXPECT_EQ(second.Wait(), 1);
    EXPECT_THAT(second.Log(), HasSubstr(std::to_string(port)));
  }
}

TEST(OperationsTest, RefusesToListenOpenly) {
  Process open({BinaryPath("tandemd"), "--model", DemoModel(), "--listen", "0.0.0.0:0"},
               testing::TempDir() + "tandem-open.log");
  EXPECT_EQ(open.Wait(), 1);
  EXPECT_THAT(open.Log(), HasSubstr("insecure"));
}

TEST(OperationsTest, AWorkerWithAnotherModelIsRefused) {
  DaemonProcess router({"--role", "router", "--model", DemoModel(), "--listen", "127.0.0.1:0"});
  const std::string other = testing::TempDir() + "other.gguf";
  {
    // The same weights with one byte more behind them are another file.
    std::ifstream in(DemoModel(), std::ios::binary);
    std::ofstream out(other, std::ios::binary);
    out << in.rdbuf() << '\0';
  }
  DaemonProcess worker({"--role", "worker", "--phase", "decode", "--model", other, "--routers",
                        router.RouterAddress(), "--threads", "1"});
  EXPECT_TRUE(WaitFor([&] {
    return worker.process().Log().find("model: the worker serves 'other'") != std::string::npos;
  })) << worker.process().Log();
  EXPECT_EQ(Client(router.RouterAddress()).Workers().workers_size(), 0);
}

TEST(OperationsTest, TwoRoutersShareTheWorkers) {
  DaemonProcess first({"--role", "router", "--model", DemoModel(), "--listen", "127.0.0.1:0"});
  DaemonProcess second({"--role", "router", "--model", DemoModel(), "--listen", "127.0.0.1:0"});
  const std::string routers = first.RouterAddress() + "," + second.RouterAddress();
  std::vector<std::unique_ptr<DaemonProcess>> workers;
  for (const std::string phase : {"prefill", "decode"}) {
    workers.push_back(std::make_unique<DaemonProcess>(
        std::vector<std::string>{"--role", "worker", "--phase", phase, "--model", DemoModel(),
                                 "--routers", routers, "--threads", "1"}));
  }
  std::vector<int32_t> tokens;
  for (DaemonProcess* router : {&first, &second}) {
    Client client(router->RouterAddress());
    ASSERT_TRUE(client.WaitWorkers(2));
    const Generated got = client.Generate(Greedy("The king said", 8));
    ASSERT_TRUE(got.status.ok()) << got.status.error_message();
    if (tokens.empty()) tokens = got.tokens;
    EXPECT_EQ(got.tokens, tokens);
  }
}

}  // namespace
}  // namespace tandem::e2e
