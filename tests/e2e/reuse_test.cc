// Prefixes that are never computed twice, as a client of real processes sees it: a chat's second
// turn, a shared document, restarts, another node's chunks, tenants, and a source that dies.
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <optional>

#include "tests/e2e/reuse_fixture.h"

namespace tandem::e2e {
namespace {

TEST(Reuse, SecondTurnOfAChatComputesOnlyWhatIsNew) {
  for (const bool store_only : {false, true}) {
    Cluster cluster({.worker_flags = {"--kv-floor", "lossless"},
                     .prefill_flags = store_only ? StoreOnly() : std::vector<std::string>{}});
    Client& client = cluster.client();
    Ask(client, RequestFor(Text(1, 600), 2));  // the engine is warm
    // The best of three chats: what other processes do to one is not ours.
    double ratio = 1;
    for (uint32_t chat = 0; chat < 3; ++chat) {
      std::vector<int32_t> history = Text(10 + chat, 1800);
      const Generated first = Ask(client, RequestFor(history, 24));
      EXPECT_EQ(Cached(first.prompt_cache), 0u);
      ASSERT_TRUE(WaitChunks(cluster.router(), 7 * (chat + 1)));
      history.insert(history.end(), first.tokens.begin(), first.tokens.end());
      const auto question = Text(20 + chat, 20);
      history.insert(history.end(), question.begin() + 1, question.end());
      const Generated second = Ask(client, RequestFor(history, 16));
      EXPECT_GE(Cached(second.prompt_cache), 1792u);
      EXPECT_EQ(second.prompt_cache.level(), "lossless");
      if (store_only) {
        EXPECT_EQ(second.prompt_cache.memory_tokens(), 1792u);
      } else {
        EXPECT_EQ(second.prompt_cache.engine_tokens(), 1800u);
      }
      ExpectFaithful(history, second.tokens);
      ratio = std::min(ratio, second.timings.ttft_s() / first.timings.ttft_s());
    }
    EXPECT_LE(ratio, 0.2) << (store_only ? "from the store" : "from the engine");
  }
}

TEST(Reuse, LossyChunksServeWhoAcceptsThemAndLosslessOnesTheOthers) {
  Cluster cluster({.prefill_flags = StoreOnly()});
  Client& client = cluster.client();
  const auto prompt = Text(2, 1000);
  Ask(client, RequestFor(prompt, 4));
  ASSERT_TRUE(WaitChunks(cluster.router(), 3));
  v1::GenerateRequest exact = RequestFor(prompt, 16);
  exact.set_kv_floor("lossless");
  const Generated got = Ask(client, exact);
  EXPECT_EQ(Cached(got.prompt_cache), 768u);
  EXPECT_EQ(got.prompt_cache.level(), "lossless");
  ExpectFaithful(prompt, got.tokens);
  exact.set_kv_floor("best");
  EXPECT_EQ(client.Generate(exact).status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST(Reuse, BypassNeitherUsesNorKeeps) {
  Cluster cluster;
  Client& client = cluster.client();
  v1::GenerateRequest request = RequestFor(Text(3, 800), 4);
  request.set_bypass_cache(true);
  Ask(client, request);
  EXPECT_EQ(Cached(Ask(client, request).prompt_cache), 0u);
  request.set_bypass_cache(false);
  EXPECT_EQ(Cached(Ask(client, request).prompt_cache), 0u) << "somebody kept it";
  EXPECT_GT(Cached(Ask(client, request).prompt_cache), 0u);
}

TEST(Reuse, TenantsShareNothing) {
  Cluster cluster({.router_flags = {"--tenants", "ann,bob"}});
  Client& client = cluster.client();
  v1::GenerateRequest request = RequestFor(Text(4, 1000), 4);
  request.set_tenant("ann");
  Ask(client, request);
  ASSERT_TRUE(WaitChunks(cluster.router(), 3));
  EXPECT_GT(Cached(Ask(client, request).prompt_cache), 0u);
  request.set_tenant("bob");
  EXPECT_EQ(Cached(Ask(client, request).prompt_cache), 0u);
}

TEST(Reuse, ATenantCannotTellByTheTimeWhatAnotherHasCached) {
  Cluster cluster({.router_flags = {"--tenants", "ann,bob"}});
  Client& client = cluster.client();
  const auto ttft_s = [&](const char* tenant, uint32_t seed) {
    v1::GenerateRequest request = RequestFor(Text(seed, 1500), 1);
    request.set_tenant(tenant);
    return Ask(client, request).timings.ttft_s();
  };
  ttft_s("bob", 40);  // the engine is warm
  // The best of some each: what other processes do to one is not ours.
  double known = 1e9, unknown = 1e9, own = 1e9;
  for (uint32_t i = 0; i < 5; ++i) {
    ttft_s("ann", 50 + i);
    known = std::min(known, ttft_s("bob", 50 + i));
    unknown = std::min(unknown, ttft_s("bob", 60 + i));
    own = std::min(own, ttft_s("bob", 50 + i));
  }
  // A hit takes a tenth of the time.
  EXPECT_LT(own, 0.4 * known);
  EXPECT_GT(known, 0.6 * unknown);
  EXPECT_LT(known, 1.6 * unknown);
}

/// A router, both workers and a store node with a disk.
class WithStore : public testing::Test {
 protected:
  void SetUp() override {
    StartCluster();
    StartStore();
  }
  void StartCluster() {
    cluster_.emplace(
        Cluster::Options{.worker_flags = {"--kv-floor", "lossless"}, .prefill_flags = StoreOnly()});
  }
  void StartStore() {
    store_.emplace(std::vector<std::string>{"--role", "store", "--routers",
                                            cluster_->router().RouterAddress(), "--report-interval",
                                            "20ms", "--kv-disk-path", disk_});
    ASSERT_TRUE(WaitFor([&] {
      const auto workers = cluster_->client().Workers();
      return std::any_of(workers.workers().begin(), workers.workers().end(),
                         [](const auto& each) { return each.info().phase() == v1::PHASE_STORE; });
    }));
  }
  /// Chunks came from the store: not always all of them, since the worker computes those that it
  /// would wait longer for, as it may on a busy machine.
  static void ExpectFromStore(const Generated& got) {
    EXPECT_GE(got.prompt_cache.peer_tokens(), kChunkTokens);
  }
  double StoreChunks() {
    return MetricSum(store_->Metrics(), "tandem_kv_tier_chunks", "disk").value_or(0);
  }

  const std::string disk_ = TemporaryPath(".kv");
  std::optional<Cluster> cluster_;
  std::optional<DaemonProcess> store_;
};

TEST_F(WithStore, ChunksOutliveTheWorkerThatMadeThem) {
  const auto prompt = Text(5, 1500);
  const Generated before = Ask(cluster_->client(), RequestFor(prompt, 16));
  ASSERT_TRUE(WaitFor([&] { return StoreChunks() >= 5; }));
  cluster_->RestartPrefill();
  ASSERT_TRUE(WaitChunks(cluster_->router(), 5));
  const Generated after = Ask(cluster_->client(), RequestFor(prompt, 16));
  ExpectFromStore(after);
  ExpectFaithful(prompt, after.tokens);
  // What it fetched, or computed, it holds from now on.
  EXPECT_EQ(Ask(cluster_->client(), RequestFor(prompt, 16)).prompt_cache.memory_tokens(), 1280u);
}

TEST_F(WithStore, ChunksOutliveARestartOfEveryProcess) {
  const auto prompt = Text(6, 1500);
  Ask(cluster_->client(), RequestFor(prompt, 16));
  ASSERT_TRUE(WaitFor([&] { return StoreChunks() >= 5; }));
  store_->process().Signal(SIGKILL);
  store_.reset();
  cluster_.reset();
  StartCluster();
  StartStore();
  ASSERT_TRUE(WaitChunks(cluster_->router(), 5));
  const Generated after = Ask(cluster_->client(), RequestFor(prompt, 16));
  ExpectFromStore(after);
  ExpectFaithful(prompt, after.tokens);
}

TEST_F(WithStore, AStoreThatIsGoneCostsNoRequest) {
  const auto prompt = Text(7, 1500);
  Ask(cluster_->client(), RequestFor(prompt, 4));
  ASSERT_TRUE(WaitFor([&] { return StoreChunks() >= 5; }));
  cluster_->RestartPrefill();
  ASSERT_TRUE(WaitChunks(cluster_->router(), 5));
  // Frozen, it still counts as there: the connection is made and nothing comes.
  store_->process().Signal(SIGSTOP);
  const Generated frozen = Ask(cluster_->client(), RequestFor(prompt, 16));
  EXPECT_EQ(Cached(frozen.prompt_cache), 0u);
  ExpectFaithful(prompt, frozen.tokens);
  store_->process().Signal(SIGKILL);
  EXPECT_TRUE(cluster_->client().WaitIdle());
}

TEST(Reuse, RestartedWorkerFindsItsOwnDisk) {
  const std::string disk = TemporaryPath(".kv");
  Cluster cluster({.worker_flags = {"--kv-floor", "lossless"},
                   .prefill_flags = StoreOnly({"--kv-disk-path", disk})});
  const auto prompt = Text(8, 1500);
  Ask(cluster.client(), RequestFor(prompt, 16));
  ASSERT_TRUE(WaitFor([&] {
    return MetricSum(cluster.prefill().Metrics(), "tandem_kv_tier_chunks", "disk").value_or(0) >= 5;
  }));
  cluster.prefill().process().Signal(SIGKILL);
  cluster.RestartPrefill();
  const Generated after = Ask(cluster.client(), RequestFor(prompt, 16));
  EXPECT_EQ(after.prompt_cache.disk_tokens(), 1280u);
  ExpectFaithful(prompt, after.tokens);
}

}  // namespace
}  // namespace tandem::e2e
