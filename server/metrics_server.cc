#include "server/metrics_server.h"

#include <netdb.h>
#include <prometheus/exposer.h>
#include <prometheus/registry.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <exception>
#include <future>

#include "base/status.h"
#include "server/config_values.h"

namespace tandem::server {
namespace {

struct FreeAddresses {
  void operator()(addrinfo* addresses) const { freeaddrinfo(addresses); }
};
using Addresses = std::unique_ptr<addrinfo, FreeAddresses>;

/// The socket addresses of `address`; `error` is getaddrinfo's result.
Addresses Resolve(const HostPort& address, int& error) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  error = getaddrinfo(address.host.c_str(), std::to_string(address.port).c_str(), &hints, &found);
  return Addresses(error == 0 ? found : nullptr);
}

/// Why `address` cannot be bound, which the HTTP server does not say: a second try, by hand.
std::string BindFault(const HostPort& address) {
  int error = 0;
  const Addresses found = Resolve(address, error);
  if (!found) return gai_strerror(error);
  std::string fault = "the HTTP server did not start";
  const int fd = socket(found->ai_family, found->ai_socktype | SOCK_CLOEXEC, 0);
  const int reuse = 1;
  if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &reuse, sizeof(reuse)) != 0 ||
      bind(fd, found->ai_addr, found->ai_addrlen) != 0 || listen(fd, 1) != 0) {
    fault = std::strerror(errno);
  }
  if (fd >= 0) close(fd);
  return fault;
}

/// Connects and closes. The HTTP server looks only every two seconds whether it is to stop, and
/// upon every connection.
void Poke(const HostPort& address) {
  int error = 0;
  const Addresses found = Resolve(address, error);
  if (!found) return;
  const int fd = socket(found->ai_family, found->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return;
  // Whether it succeeds does not matter: a refused one means that the listener is gone.
  (void)connect(fd, found->ai_addr, found->ai_addrlen);
  close(fd);
}

}  // namespace

absl::StatusOr<std::unique_ptr<MetricsServer>> MetricsServer::Start(std::string_view address) {
  const auto parsed = ParseHostPort(address);
  if (!parsed.ok()) {
    return Annotate(parsed.status(), absl::StrCat("metrics_listen is '", View(address), "'"));
  }
  auto server = std::unique_ptr<MetricsServer>(new MetricsServer());
  try {
    // Two threads: one scrape may hang without blocking the next.
    server->exposer_ = std::make_unique<prometheus::Exposer>(std::string(address), 2);
    const std::vector<int> ports = server->exposer_->GetListeningPorts();
    if (ports.empty()) return absl::InternalError("metrics: the HTTP server has no port");
    server->host_ = parsed->host;
    server->port_ = static_cast<uint16_t>(ports[0]);
  } catch (const std::exception&) {
    return absl::UnavailableError(
        absl::StrCat("metrics_listen: cannot listen on ", View(address), ": ", BindFault(*parsed)));
  }
  return server;
}

MetricsServer::~MetricsServer() {
  const auto stopped = std::async(std::launch::async, [this] { exposer_.reset(); });
  while (stopped.wait_for(std::chrono::milliseconds(5)) != std::future_status::ready) {
    Poke({host_, port_});
  }
}

void MetricsServer::Add(std::shared_ptr<prometheus::Registry> registry) {
  exposer_->RegisterCollectable(registry);
  registries_.push_back(std::move(registry));
}

}  // namespace tandem::server
