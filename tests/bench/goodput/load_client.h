// Clients of the systems under test: open loop, streaming, one thread, with the same clock for all.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "tests/bench/goodput/workload.h"

namespace tandem::bench {

/// What a client saw of one request; seconds from the run's beginning.
struct Outcome {
  /// When it was due, which is when its time begins to count.
  double due_s = 0;
  /// When the client, whose timers are in milliseconds, got round to sending it; Tandem only.
  double sent_s = 0;
  /// Of each message with tokens, and how many those were.
  std::vector<double> token_at_s = {};
  std::vector<uint32_t> token_counts = {};
  double end_s = 0;
  uint32_t prompt_tokens = 0, wanted_tokens = 0, tokens = 0;
  /// Empty: it ended as it should.
  std::string error = {};
  /// Refused at once because there was no room; the delay until the next try that it was told, or
  /// a negative number.
  bool refused = false;
  double retry_after_s = -1;
  /// Where the server says that the time went; Tandem only.
  struct Parts {
    double router_queue_s = 0, prefill_queue_s = 0, prefill_s = 0;
    double decode_queue_s = 0, handoff_s = 0, decode_s = 0;
  } parts = {};

  bool complete() const { return error.empty() && tokens == wanted_tokens; }
  double ttft_s() const;
  /// Mean time per token after the first, as DistServe measures it; 0 with one token.
  double tpot_s() const;
};

class LoadClient {
 public:
  virtual ~LoadClient() = default;
  /// Sends each request at its time divided by `rate` and waits for all of them.
  virtual std::vector<Outcome> Run(std::span<const Arrival> trace, double rate) = 0;
};

struct Unloaded {
  double ttft_s = 0, tpot_s = 0;
};
/// Medians over requests of the workload's mean lengths, one at a time. Ends the program when one
/// fails.
Unloaded MeasureUnloaded(LoadClient& client, const Workload& workload);
/// What one worker serves a second when nobody waits.
double ServedAloneRps(const Unloaded& alone, const Workload& workload);

/// gRPC, to a router.
std::unique_ptr<LoadClient> MakeTandemClient(const std::string& address);
/// HTTP with server-sent events, to llama.cpp's server or a balancer in front of several.
std::unique_ptr<LoadClient> MakeLlamaClient(int port);

}  // namespace tandem::bench
