#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "tests/bench/goodput/attainment.h"
#include "tests/bench/goodput/load_client.h"

namespace tandem::bench {
namespace {

constexpr uint32_t kUnloadedRequests = 7;

}  // namespace

Unloaded MeasureUnloaded(LoadClient& client, const Workload& workload) {
  std::vector<double> ttft, tpot;
  for (uint32_t i = 0; i < kUnloadedRequests; ++i) {
    const Arrival arrival{
        .prompt =
            RandomPrompt(static_cast<uint32_t>(std::lround(workload.prompt_tokens)), 1000 + i),
        .output_tokens = static_cast<uint32_t>(std::lround(workload.output_tokens))};
    const std::vector<Outcome> outcomes = client.Run({&arrival, 1}, 1);
    if (!outcomes[0].complete()) {
      std::fprintf(stderr, "a lone request failed: %s\n", outcomes[0].error.c_str());
      std::exit(1);
    }
    ttft.push_back(outcomes[0].ttft_s());
    tpot.push_back(outcomes[0].tpot_s());
  }
  return {.ttft_s = Quantile(ttft, 0.5), .tpot_s = Quantile(tpot, 0.5)};
}

double ServedAloneRps(const Unloaded& alone, const Workload& workload) {
  return 1 / (alone.ttft_s + workload.output_tokens * alone.tpot_s);
}

}  // namespace tandem::bench
