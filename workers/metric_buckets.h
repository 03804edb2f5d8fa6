// Histogram buckets, exactly vLLM's, so that dashboards and alerts made for it fit. Used by the
// worker's and the router's metrics.
#pragma once

#include <cstdint>
#include <vector>

namespace tandem {

using Buckets = std::vector<double>;

/// Seconds to a first token; our steps, queues and handoffs are of the same order.
inline Buckets TtftBuckets() {
  return {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
          1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 2560};
}

/// Seconds between two tokens.
inline Buckets TokenIntervalBuckets() {
  return {.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80};
}

/// The same with room below: a small model's step takes a millisecond.
inline Buckets FineTokenIntervalBuckets() {
  Buckets buckets = TokenIntervalBuckets();
  buckets.insert(buckets.begin(), {.0005, .001, .0025, .005});
  return buckets;
}

/// Seconds of a whole request.
inline Buckets RequestBuckets() {
  return {.3, .5, .8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
          30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};
}

/// Seconds of a KV transfer.
inline Buckets TransferSecondsBuckets() {
  return {.005, .01, .025, .05, .075, .1, .2, .3, .5, .75, 1, 5};
}

/// Bytes of a KV transfer: 2^11, 2^13, … 2^33.
inline Buckets TransferBytesBuckets() {
  Buckets buckets;
  for (int power = 11; power <= 33; power += 2) {
    buckets.push_back(static_cast<double>(uint64_t{1} << power));
  }
  return buckets;
}

/// Tokens of a step.
inline Buckets StepTokensBuckets() {
  return {1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384};
}

/// Tokens of a request: 1, 2, 5, 10, … up to `context_tokens`.
inline Buckets RequestTokensBuckets(uint32_t context_tokens) {
  Buckets buckets;
  for (double decade = 1;; decade *= 10) {
    for (const double step : {1., 2., 5.}) {
      if (step * decade > context_tokens) return buckets;
      buckets.push_back(step * decade);
    }
  }
}

}  // namespace tandem
