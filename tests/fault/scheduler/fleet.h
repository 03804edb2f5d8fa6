// A router with two prefill and two decode workers, each on a host of its own where networks can be
// made, and what can happen to a worker.
#pragma once

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "tests/e2e/harness.h"
#include "tests/e2e/netlab.h"

namespace tandem::e2e {

enum class Fault {
  /// kill -9, and a new process at once.
  kKilled,
  /// SIGSTOP for a while: connected and silent.
  kStopped,
  /// Its engine hangs for a while: it reports, and makes no step.
  kStalled,
  /// Its network swallows everything for a while.
  kCutOff,
  /// A prefill and a decode worker do not reach each other for a while; the router reaches both.
  kPairCut,
};
const char* FaultName(Fault fault);

/// Not thread-safe, but for client addresses.
class Fleet {
 public:
  Fleet(std::vector<std::string> router_flags, std::vector<std::string> worker_flags);

  std::string RouterAddress() const { return router_->RouterAddress(); }
  Client& client() { return *client_; }
  /// All workers are registered.
  bool WaitWhole() { return client_->WaitWorkers(static_cast<int>(workers_.size())); }
  /// Those that this machine can make.
  std::vector<Fault> Possible() const;
  /// Lets it happen to a worker and be over. Takes `duration_s` for those that last a while.
  void Strike(Fault fault, std::mt19937& random, double duration_s);
  /// Open descriptors: of the router, then of the worker that has most.
  std::vector<size_t> OpenFiles() const;
  /// No worker's metrics know of KV, sequences or waiting requests.
  bool WaitEmpty();

 private:
  static constexpr int kRouterHost = 1;
  struct Worker {
    std::string phase;
    DaemonHost host;
    int host_number = 0;
    std::unique_ptr<DaemonProcess> daemon;
  };
  void Start(Worker& worker);

  const std::vector<std::string> worker_flags_;
  std::unique_ptr<Netlab> lab_;  // outlives the daemons
  std::unique_ptr<DaemonProcess> router_;
  std::unique_ptr<Client> client_;
  std::vector<Worker> workers_;  // prefill, prefill, decode, decode
};

}  // namespace tandem::e2e
