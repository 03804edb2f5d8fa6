// The systems under test, as processes on two pinned cores.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "tests/bench/goodput/load_client.h"

namespace tandem::bench {

struct SystemOptions {
  std::string model;
  uint32_t context_tokens = 2048;
  /// Sequences of a llama.cpp server, and of Tandem's decode engines.
  uint32_t sequences = 8;
  /// Objectives, which Tandem's scheduler is told; 0: its defaults.
  double ttft_slo_s = 0, tpot_slo_s = 0;
  /// Further flags of each llama.cpp server, of each worker, of the router.
  std::vector<std::string> llama_flags, worker_flags, router_flags;
};

/// Running from its making until its end.
class System {
 public:
  virtual ~System() = default;
  virtual LoadClient& client() = 0;
  /// Resident memory of all its processes.
  virtual uint64_t ResidentBytes() const = 0;
  /// Of Tandem's router; empty for a peer.
  virtual std::string RouterAddress() const { return ""; }
};

/// llama-2x1: two llama.cpp servers with a core each behind HAProxy's leastconn; llama-1x2: one
/// with both cores; split: Tandem's router, a prefill and a decode worker, a core each; mixed: a
/// router and two workers that do both, a core each. Besides these, planned: a router and two
/// workers that are given no phase.
std::vector<std::string> SystemNames();
bool IsPeer(const std::string& name);
/// Ends the program with a message when it cannot be started.
std::unique_ptr<System> StartSystem(const std::string& name, const SystemOptions& options);

}  // namespace tandem::bench
