// Router, prefill worker and decode worker on three hosts of a network of their own: the same words
// as without it, handoffs as fast as the link, and what happens when the link is cut.
#include "tests/e2e/netlab.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <thread>

#include "tests/e2e/harness.h"

namespace tandem::e2e {
namespace {

class NetlabTest : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = Netlab::WhyNot(); !why.empty()) GTEST_SKIP() << why;
    lab_ = std::make_unique<Netlab>(3);
    cluster_ = std::make_unique<Cluster>(Cluster::Options{.router_host = lab_->Host(kRouter),
                                                          .prefill_host = lab_->Host(kPrefill),
                                                          .decode_host = lab_->Host(kDecode)});
  }
  void TearDown() override {
    cluster_.reset();  // its daemons are in the lab's hosts
    lab_.reset();
  }

  static constexpr int kRouter = 1, kPrefill = 2, kDecode = 3;

  static v1::GenerateRequest LongRequest(int n_prompt, uint32_t max_tokens, int first_token = 300) {
    v1::GenerateRequest request;
    for (int i = 0; i < n_prompt; ++i) request.mutable_prompt_tokens()->add_ids(first_token + i);
    request.set_max_tokens(max_tokens);
    request.mutable_sampling()->set_temperature(0);
    request.mutable_sampling()->set_ignore_eos(true);
    return request;
  }
  Generated Generate(const v1::GenerateRequest& request) {
    Generated got = cluster_->client().Generate(request);
    EXPECT_TRUE(got.status.ok()) << got.status.error_message();
    return got;
  }

  std::unique_ptr<Netlab> lab_;
  std::unique_ptr<Cluster> cluster_;
};

TEST_F(NetlabTest, TheWordsAreThoseOfOneProcess) {
  lab_->Rate(kPrefill, "200mbit");
  lab_->Rate(kDecode, "200mbit");
  const DaemonProcess all(
      {"--role", "all", "--model", DemoModel(), "--listen", "127.0.0.1:0", "--threads", "1"});
  Client alone(all.RouterAddress());
  ASSERT_TRUE(alone.WaitWorkers(2));
  for (const std::string prompt :
       {"Once upon a time", "The king said", "In a little house by the sea, there lived"}) {
    const v1::GenerateRequest request = Greedy(prompt, 60);
    const Generated expected = alone.Generate(request);
    ASSERT_TRUE(expected.status.ok()) << expected.status.error_message();
    EXPECT_EQ(Generate(request).text, expected.text);
  }
  EXPECT_NE(cluster_->prefill().Metrics(), "");
}

TEST_F(NetlabTest, AHandoffIsAsFastAsItsLink) {
  Generate(LongRequest(100, 2));  // connections and code are warm
  struct Measured {
    double mbit_per_s, handoff_s;
    double rate() const { return bytes * 8 / 1e6 / handoff_s; }
    double bytes;
  };
  std::vector<Measured> measured;
  for (const double mbit : {10., 80.}) {
    lab_->Rate(kPrefill, kDecode, std::to_string(static_cast<int>(mbit)) + "mbit");
    v1::GenerateRequest request = LongRequest(1500, 2, mbit < 50 ? 300 : 2000);
    request.set_kv_floor("lossless");  // else the adapter would send less than the link takes
    const Generated got = Generate(request);
    measured.push_back({mbit, got.timings.handoff_s(), double(got.timings.handoff_bytes())});
    RecordProperty("mbit_" + std::to_string(static_cast<int>(mbit)),
                   std::to_string(measured.back().rate()));
  }
  for (const Measured& m : measured) {
    EXPECT_LT(m.rate(), 1.2 * m.mbit_per_s);
  }
  // The fast one's time holds the computing of the KV too.
  EXPECT_GT(measured[0].rate(), 0.5 * measured[0].mbit_per_s);
  EXPECT_GT(measured[1].rate(), 2 * measured[0].rate());
}

TEST_F(NetlabTest, AHandoffHidesBehindThePrefill) {
  lab_->Rate(kPrefill, kDecode, "1gbit");
  Generate(LongRequest(1000, 2, 400));  // connections and code are warm, speeds are measured
  // The best of a few: what other processes do to one is not ours.
  double chunks_late = 1e9;
  for (int i = 0; i < 5; ++i) {
    v1::GenerateRequest request = LongRequest(2000, 2, 300 + 100 * i);
    request.set_bypass_cache(true);
    const v1::Timings t = Generate(request).timings;
    const double late_s = t.decode_queue_s() + t.handoff_s() - t.prefill_s();
    const double chunk_s = t.prefill_s() * 256 / 2000;
    chunks_late = std::min(chunks_late, late_s / chunk_s);
  }
  RecordProperty("chunks_late", std::to_string(chunks_late));
  EXPECT_LE(chunks_late, 1) << "in times of computing a chunk after the prefill's end";
}

TEST_F(NetlabTest, ASlowLinkGetsCoarserLevels) {
  // So slow that computing, on however busy a machine, leaves no time for more.
  lab_->Rate(kPrefill, kDecode, "5mbit");
  Generate(LongRequest(600, 2, 400));  // TCP has measured the link
  v1::GenerateRequest request = LongRequest(700, 2);
  const v1::Timings lossy = Generate(request).timings;
  request = LongRequest(700, 2, 500);
  request.set_kv_floor("lossless");
  const v1::Timings lossless = Generate(request).timings;
  EXPECT_LT(lossy.handoff_bytes() * 2, lossless.handoff_bytes());
  EXPECT_LT(lossy.handoff_s(), lossless.handoff_s());
}

TEST_F(NetlabTest, ALinkCutDuringAHandoff) {
  lab_->Rate(kPrefill, kDecode, "2mbit");
  bool cut = false;
  std::thread healer;
  const Generated got = cluster_->client().Generate(
      LongRequest(1500, 50), [&](grpc::ClientContext&, const v1::GenerateResponse&) {
        if (cut) return;
        // The first token comes from the prefill worker, long before its KV is through.
        lab_->Cut(kPrefill, kDecode);
        cut = true;
        healer = std::thread([&] {
          EXPECT_TRUE(WaitFor([&] {
            return MetricSum(cluster_->router().Metrics(), "tandem_router_resumptions_total")
                       .value_or(0) > 0;
          })) << "nobody noticed that the KV does not come";
          lab_->Heal();
          lab_->Rate(kPrefill, kDecode, "1gbit");
        });
      });
  ASSERT_TRUE(cut);
  healer.join();
  EXPECT_TRUE(got.status.ok()) << got.status.error_message();
  EXPECT_EQ(got.tokens.size(), 50u);
  EXPECT_GE(got.timings.resumptions(), 1u);
  EXPECT_TRUE(cluster_->client().WaitWorkers(2));
  EXPECT_TRUE(cluster_->client().WaitIdle()) << "KV is held for a handoff that is over";
  EXPECT_TRUE(
      WaitFor([&] { return cluster_->client().Generate(LongRequest(300, 20)).status.ok(); }));
}

TEST_F(NetlabTest, AWorkerCutOffComesBack) {
  lab_->Delay(kDecode, 5);
  EXPECT_TRUE(Generate(LongRequest(300, 5)).status.ok());
  lab_->Cut(kDecode);
  EXPECT_TRUE(cluster_->client().WaitWorkers(1));
  lab_->Heal();
  EXPECT_TRUE(cluster_->client().WaitWorkers(2));
  EXPECT_TRUE(
      WaitFor([&] { return cluster_->client().Generate(LongRequest(300, 5)).status.ok(); }));
}

}  // namespace
}  // namespace tandem::e2e
