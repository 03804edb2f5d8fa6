// The scrape endpoint, over a real socket.
#include "server/metrics_server.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <prometheus/registry.h>
#include <sys/socket.h>
#include <unistd.h>

#include "server/router_metrics.h"

namespace tandem::server {
namespace {

using testing::HasSubstr;

std::string Get(uint16_t port, const std::string& path) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  const std::string request = "GET " + path + " HTTP/1.0\r\n\r\n";
  EXPECT_EQ(write(fd, request.data(), request.size()), static_cast<ssize_t>(request.size()));
  std::string answer;
  char buffer[4096];
  for (ssize_t n; (n = read(fd, buffer, sizeof(buffer))) > 0;) answer.append(buffer, n);
  close(fd);
  return answer;
}

TEST(MetricsServer, ServesWhatIsRegistered) {
  auto server = MetricsServer::Start("127.0.0.1:0");
  ASSERT_TRUE(server.ok()) << server.status();
  ASSERT_NE((*server)->port(), 0);
  {
    RouterMetrics metrics(std::make_shared<prometheus::Registry>(), "m", {"default"});
    metrics.InFlight(3, 9);
    (*server)->Add(metrics.registry());
  }
  const std::string answer = Get((*server)->port(), "/metrics");
  EXPECT_THAT(answer, HasSubstr("200 OK"));
  EXPECT_THAT(answer, HasSubstr("tandem_router_requests_in_flight{model_name=\"m\"} 3"));
  EXPECT_THAT(Get((*server)->port(), "/"), HasSubstr("404"));
}

TEST(MetricsServer, SaysWhyAnAddressCannotBeHad) {
  auto first = MetricsServer::Start("127.0.0.1:0");
  ASSERT_TRUE(first.ok()) << first.status();
  const std::string taken = "127.0.0.1:" + std::to_string((*first)->port());
  const auto second = MetricsServer::Start(taken);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(std::string(second.status().message()),
            "metrics_listen: cannot listen on " + taken + ": Address already in use");

  const auto foreign = MetricsServer::Start("192.0.2.1:9");
  EXPECT_THAT(std::string(foreign.status().message()),
              HasSubstr("Cannot assign requested address"));
  EXPECT_EQ(MetricsServer::Start("nonsense").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(MetricsServer, FreesItsPort) {
  auto first = MetricsServer::Start("127.0.0.1:0");
  ASSERT_TRUE(first.ok());
  const std::string address = "127.0.0.1:" + std::to_string((*first)->port());
  first->reset();
  EXPECT_TRUE(MetricsServer::Start(address).ok());
}

}  // namespace
}  // namespace tandem::server
