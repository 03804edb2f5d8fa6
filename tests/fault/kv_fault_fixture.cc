#include "tests/fault/kv_fault_fixture.h"

#include <signal.h>

namespace tandem::e2e {

void KvFaultTest::Start(Setting setting) {
  cluster_.reset();
  cluster_.emplace(Cluster::Options{.model = setting.model,
                                    .worker_flags = {"--kv-floor", setting.floor},
                                    .prefill_flags = StoreOnly(setting.prefill_flags)});
}

void KvFaultTest::TearDown() {
  if (!cluster_ || HasFatalFailure()) return;
  const auto prompt = Text(9000, 700);
  Answer(prompt);
  EXPECT_TRUE(WaitMetric("tandem_kv_tier_chunks", "memory", 2));
  EXPECT_EQ(Cached(Answer(prompt).prompt_cache), 2 * kChunkTokens);
  EXPECT_TRUE(cluster_->client().WaitIdle());
  EXPECT_EQ(Metric("tandem_kv_pins"), 0);
  EXPECT_EQ(Metric("tandem_kv_leases"), 0);
}

void KvFaultTest::StopPrefill() {
  cluster_->prefill().process().Signal(SIGTERM);
  EXPECT_EQ(cluster_->prefill().process().Wait(), 0);
}

Generated KvFaultTest::Answer(const std::vector<int32_t>& prompt) {
  const Generated got = Ask(cluster_->client(), RequestFor(prompt, 16));
  if (got.status.ok()) ExpectFaithful(prompt, got.tokens);
  return got;
}

double KvFaultTest::Metric(const std::string& family, const std::string& label) {
  return MetricSum(cluster_->prefill().Metrics(), family, label).value_or(0);
}

bool KvFaultTest::WaitMetric(const std::string& family, const std::string& label, double at_least) {
  return WaitFor([&] { return Metric(family, label) >= at_least; });
}

std::vector<kvstore::ChunkId> KvFaultTest::IdsOf(const std::vector<int32_t>& prompt) {
  const v1::ListWorkersResponse workers = cluster_->client().Workers();
  for (const v1::WorkerState& worker : workers.workers()) {
    if (worker.info().kv_namespace().empty()) continue;
    return kvstore::ChunkIds(worker.info().kv_namespace(), "default", prompt, kChunkTokens);
  }
  ADD_FAILURE() << "no worker says how it names chunks";
  return {};
}

}  // namespace tandem::e2e
