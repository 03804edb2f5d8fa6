// A cluster whose prefill worker takes known prefixes from where a test has broken something.
#pragma once

#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <vector>

#include "kvstore/chunk.h"
#include "tests/e2e/reuse_fixture.h"

namespace tandem::e2e {

/// Every test ends with a request that must be answered as if nothing had happened, and with
/// nothing left: no request, no KV, no pin.
class KvFaultTest : public testing::Test {
 protected:
  struct Setting {
    std::vector<std::string> prefill_flags;
    std::string floor = "lossless";
    std::string model;  // empty: the demo model
  };
  void Start() { Start(Setting{}); }
  void Start(Setting setting);
  void TearDown() override;
  /// Ends the prefill worker as an operator does: what is kept behind is written by then.
  void StopPrefill();

  /// The prompt's answer, which must be the bare engine's.
  Generated Answer(const std::vector<int32_t>& prompt);
  /// The prefill worker's; 0 when there is no such series.
  double Metric(const std::string& family, const std::string& label = "");
  bool WaitMetric(const std::string& family, const std::string& label, double at_least);
  /// The ids of the prompt's chunks.
  std::vector<kvstore::ChunkId> IdsOf(const std::vector<int32_t>& prompt);

  std::optional<Cluster> cluster_;
};

}  // namespace tandem::e2e
