// The families that workers, stores and routers expose: their names, labels and values are an API.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <prometheus/metric_family.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <regex>
#include <set>
#include <sstream>
#include <thread>

#include "server/router_metrics.h"
#include "workers/kv_metrics.h"
#include "workers/link_metrics.h"
#include "workers/worker_metrics.h"

namespace tandem {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;
using workers::HandoffDirection;
using workers::KvMetrics;
using workers::WorkerMetrics;

using RegistryPtr = std::shared_ptr<prometheus::Registry>;

std::unique_ptr<WorkerMetrics> NewWorker(RegistryPtr registry, const std::string& phase) {
  return std::make_unique<WorkerMetrics>(
      std::move(registry),
      workers::WorkerMetricsOptions{
          .model_name = "m", .worker_name = "w-" + phase, .phase = phase, .context_tokens = 2048});
}

std::string Exposition(const RegistryPtr& registry) {
  return prometheus::TextSerializer().Serialize(registry->Collect());
}

/// Everything once, so that families whose label values come with use are there too.
void UseAll(WorkerMetrics& worker, server::RouterMetrics& router) {
  worker.SetCacheConfig(256, 64);
  worker.HandoffFailed(HandoffDirection::kSend, absl::StatusCode::kUnavailable);
  router.RequestEnded({.tenant = "default"});
}

void UseAll(workers::LinkMetrics& links) {
  links.Set({{.address = "10.0.0.1:8472"}}, {{"10.0.0.1:8472", "w-decode"}}, absl::UnixEpoch());
}

void UseAll(KvMetrics& kv) {
  kv.ChunkLoaded(kvstore::Origin::kPeer, kvstore::Level::kQ1, 1000);
  kv.ChunkRefused(kvstore::Origin::kDisk, absl::DataLossError(""));
  kv.PeerFailed(absl::UnavailableError(""));
  kv.LinkMeasured("10.0.0.1:8472", 1e6);
  kv.ChunkKept(kvstore::Level::kQ1, 1000, 0.01);
  kv.PromptTokens("disk", 256);
  kv.HandoffChunks({1, 0, 2, 0, 0, 0});
  kvstore::StoreStats stats;
  stats.tiers[0] = kvstore::TierStats{};
  kv.SetStore(stats);
}

std::set<std::string> Documented(const std::regex& row) {
  std::ifstream file(METRICS_DOC);
  std::set<std::string> names;
  std::smatch match;
  for (std::string line; std::getline(file, line);) {
    if (std::regex_search(line, match, row)) names.insert(match[1]);
  }
  return names;
}

TEST(MetricNames, AreTheDocumentedOnes) {
  const auto registry = std::make_shared<prometheus::Registry>();
  const auto worker = NewWorker(registry, "prefill");
  server::RouterMetrics router(registry, "m", {"default"});
  UseAll(*worker, router);
  KvMetrics kv(registry, "m", "w-prefill");
  UseAll(kv);
  workers::LinkMetrics links(registry, "m", "w-prefill");
  UseAll(links);
  std::set<std::string> exposed;
  for (const auto& family : registry->Collect()) {
    static const char* const kTypes[] = {"counter", "gauge", "summary", "untyped", "histogram"};
    std::string labels;
    for (const auto& label : family.metric[0].label) {
      labels += (labels.empty() ? "" : ", ") + label.name;
    }
    exposed.insert("`" + family.name + "` | " + kTypes[static_cast<int>(family.type)] + " | " +
                   labels);
  }
  EXPECT_EQ(exposed, Documented(std::regex(R"(^\| (`[a-z0-9_:]+` \| [a-z]+ \| [a-z_, ]+) \|)")));
}

TEST(MetricNames, FollowPrometheusRules) {
  const auto registry = std::make_shared<prometheus::Registry>();
  const auto worker = NewWorker(registry, "decode");
  server::RouterMetrics router(registry, "m", {"default"});
  UseAll(*worker, router);
  KvMetrics kv(registry, "m", "w-decode");
  UseAll(kv);
  workers::LinkMetrics links(registry, "m", "w-decode");
  UseAll(links);
  for (const auto& family : registry->Collect()) {
    EXPECT_FALSE(family.help.empty()) << family.name;
    if (family.name.rfind("vllm:", 0) == 0) continue;
    EXPECT_TRUE(
        std::regex_match(family.name, std::regex("tandem_(worker|pd|router|kv)_[a-z0-9_]+")));
    const bool total = std::regex_search(family.name, std::regex("_total$"));
    EXPECT_EQ(total, family.type == prometheus::MetricType::Counter) << family.name;
  }
}

TEST(WorkerMetrics, LoadHasBothNames) {
  const auto registry = std::make_shared<prometheus::Registry>();
  const workers::WorkerLoadValues decode = {
      .running = 3, .kv_used_tokens = 15, .kv_limit_tokens = 60};
  NewWorker(registry, "decode")
      ->SetLoad(decode, {.running = 4, .waiting = 2, .kv_used_tokens = 25, .kv_limit_tokens = 100});
  const std::string text = Exposition(registry);
  EXPECT_THAT(text, HasSubstr("tandem_worker_requests_running{model_name=\"m\",phase=\"decode\","
                              "worker=\"w-decode\"} 3\n"));
  EXPECT_THAT(text, HasSubstr("vllm:num_requests_running{engine=\"w-decode\",model_name=\"m\"} 4"));
  EXPECT_THAT(text, HasSubstr("vllm:num_requests_waiting{engine=\"w-decode\",model_name=\"m\"} 2"));
  EXPECT_THAT(text,
              HasSubstr("vllm:kv_cache_usage_perc{engine=\"w-decode\",model_name=\"m\"} 0.25"));
}

TEST(WorkerMetrics, BeforeTheFirstLoadNothingIsDividedByZero) {
  const auto registry = std::make_shared<prometheus::Registry>();
  NewWorker(registry, "decode")->SetLoad({}, {});
  EXPECT_THAT(Exposition(registry), Not(HasSubstr("Nan")));
}

TEST(WorkerMetrics, AStepCountsOneIntervalPerSequence) {
  const auto registry = std::make_shared<prometheus::Registry>();
  const auto worker = NewWorker(registry, "decode");
  worker->DecodeStep(16, 0.03);
  worker->DecodeStep(0, 0.03);
  const std::string text = Exposition(registry);
  const std::string labels = "{engine=\"w-decode\",model_name=\"m\"";
  EXPECT_THAT(text, HasSubstr("vllm:inter_token_latency_seconds_count" + labels + "} 16\n"));
  EXPECT_THAT(text,
              HasSubstr("vllm:inter_token_latency_seconds_bucket" + labels + ",le=\"0.025\"} 0\n"));
  EXPECT_THAT(text,
              HasSubstr("vllm:inter_token_latency_seconds_bucket" + labels + ",le=\"0.05\"} 16\n"));
}

TEST(WorkerMetrics, BucketsAreVllms) {
  const auto registry = std::make_shared<prometheus::Registry>();
  const auto worker = NewWorker(registry, "prefill");
  const auto bounds = [&](const std::string& name) {
    std::string text;
    for (const auto& family : registry->Collect()) {
      if (family.name != name) continue;
      std::ostringstream out;
      for (const auto& bucket : family.metric[0].histogram.bucket) out << bucket.upper_bound << " ";
      text = out.str();
    }
    return text;
  };
  EXPECT_EQ(bounds("vllm:time_to_first_token_seconds"),
            "0.001 0.005 0.01 0.02 0.04 0.06 0.08 0.1 0.25 0.5 0.75 1 2.5 5 7.5 10 20 40 80 160 "
            "640 2560 inf ");
  EXPECT_EQ(bounds("vllm:inter_token_latency_seconds"),
            "0.01 0.025 0.05 0.075 0.1 0.15 0.2 0.3 0.4 0.5 0.75 1 2.5 5 7.5 10 20 40 80 inf ");
  EXPECT_EQ(bounds("vllm:e2e_request_latency_seconds"),
            "0.3 0.5 0.8 1 1.5 2 2.5 5 10 15 20 30 40 50 60 120 240 480 960 1920 7680 inf ");
  EXPECT_EQ(bounds("vllm:request_prompt_tokens"), "1 2 5 10 20 50 100 200 500 1000 2000 inf ");
  EXPECT_EQ(bounds("vllm:iteration_tokens_total"),
            "1 8 16 32 64 128 256 512 1024 2048 4096 8192 16384 inf ");
  EXPECT_EQ(bounds("tandem_pd_handoff_seconds"),
            "0.005 0.01 0.025 0.05 0.075 0.1 0.2 0.3 0.5 0.75 1 5 inf ");
  EXPECT_EQ(bounds("tandem_pd_handoff_bytes"),
            "2048 8192 32768 131072 524288 2.09715e+06 8.38861e+06 3.35544e+07 1.34218e+08 "
            "5.36871e+08 2.14748e+09 8.58993e+09 inf ");
}

TEST(WorkerMetrics, UnknownWordsMakeNoSeries) {
  const auto registry = std::make_shared<prometheus::Registry>();
  const auto worker = NewWorker(registry, "prefill");
  worker->RequestEnded("surprise");
  worker->Rejected("surprise");
  const std::string text = Exposition(registry);
  EXPECT_THAT(text, Not(HasSubstr("surprise")));
  EXPECT_THAT(text, HasSubstr("finish=\"error\",model_name=\"m\",phase=\"prefill\",worker="
                              "\"w-prefill\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("reason=\"other\",worker=\"w-prefill\"} 1\n"));
}

TEST(WorkerMetrics, TwoWorkersShareFamilies) {
  const auto registry = std::make_shared<prometheus::Registry>();
  const auto prefill = NewWorker(registry, "prefill");
  const auto decode = NewWorker(registry, "decode");
  prefill->GeneratedTokens(1);
  decode->GeneratedTokens(63);
  std::set<std::string> names;
  for (const auto& family : registry->Collect()) EXPECT_TRUE(names.insert(family.name).second);
  const std::string text = Exposition(registry);
  EXPECT_THAT(text, HasSubstr("phase=\"prefill\",worker=\"w-prefill\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("vllm:generation_tokens_total{engine=\"w-decode\",model_name=\"m\"} "
                              "63"));
}

TEST(WorkerMetrics, CallsFromManyThreadsAreAllCounted) {
  const auto registry = std::make_shared<prometheus::Registry>();
  const auto worker = NewWorker(registry, "prefill");
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int j = 0; j < 500; ++j) {
        worker->PrefillDone(10, 5, 0.1, 0.2);
        worker->HandoffFailed(HandoffDirection::kReceive, absl::StatusCode::kDataLoss);
        worker->SetLoad({.running = 1}, {});
        if (j % 100 == 0) Exposition(registry);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const std::string text = Exposition(registry);
  EXPECT_THAT(text, HasSubstr("vllm:prompt_tokens_total{engine=\"w-prefill\",model_name=\"m\"} "
                              "20000\n"));
  EXPECT_THAT(text, HasSubstr("code=\"DATA_LOSS\",direction=\"receive\",model_name=\"m\",phase="
                              "\"prefill\",worker=\"w-prefill\"} 2000\n"));
}

TEST(KvMetrics, FollowsTheStoresFigures) {
  const auto registry = std::make_shared<prometheus::Registry>();
  KvMetrics kv(registry, "m", "w");
  kvstore::StoreStats stats;
  stats.tiers[1] = kvstore::TierStats{.bytes = 700, .damaged = 2, .failures = 3, .healthy = false};
  stats.hits[1] = 5;
  stats.misses = 7;
  stats.pins = 1;
  stats.leases = 3;
  // Counters are the store's own, however often they are told.
  kv.SetStore(stats);
  kv.SetStore(stats);
  const std::string text = Exposition(registry);
  const std::string disk = "{model_name=\"m\",tier=\"disk\",worker=\"w\"} ";
  EXPECT_THAT(text, HasSubstr("tandem_kv_tier_bytes" + disk + "700\n"));
  EXPECT_THAT(text, HasSubstr("tandem_kv_tier_damaged_total" + disk + "2\n"));
  EXPECT_THAT(text, HasSubstr("tandem_kv_tier_failures_total" + disk + "3\n"));
  EXPECT_THAT(text, HasSubstr("tandem_kv_tier_healthy" + disk + "0\n"));
  EXPECT_THAT(text, HasSubstr("tandem_kv_tier_hits_total" + disk + "5\n"));
  EXPECT_THAT(text, HasSubstr("tandem_kv_misses_total{model_name=\"m\",worker=\"w\"} 7\n"));
  EXPECT_THAT(text, HasSubstr("tandem_kv_pins{model_name=\"m\",worker=\"w\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("tandem_kv_leases{model_name=\"m\",worker=\"w\"} 3\n"));
  // A tier that is not there is not unhealthy.
  EXPECT_THAT(text, Not(HasSubstr("tier=\"redis\"")));
}

TEST(KvMetrics, CountsWhatWasLoadedAndRefused) {
  const auto registry = std::make_shared<prometheus::Registry>();
  KvMetrics kv(registry, "m", "w");
  UseAll(kv);
  UseAll(kv);
  const std::string text = Exposition(registry);
  for (const char* line :
       {"tandem_kv_loaded_chunks_total{level=\"q1\",model_name=\"m\",origin=\"peer\",worker=\"w\"} "
        "2\n",
        "tandem_kv_loaded_bytes_total{level=\"q1\",model_name=\"m\",origin=\"peer\",worker=\"w\"} "
        "2000\n",
        "tandem_kv_refused_chunks_total{code=\"DATA_LOSS\",model_name=\"m\",origin=\"disk\","
        "worker=\"w\"} 2\n",
        "tandem_kv_peer_failures_total{code=\"UNAVAILABLE\",model_name=\"m\",worker=\"w\"} 2\n",
        "tandem_kv_link_bytes_per_second{from=\"10.0.0.1:8472\",model_name=\"m\",worker=\"w\"} "
        "1000000\n",
        "tandem_kv_prompt_tokens_total{model_name=\"m\",origin=\"disk\",worker=\"w\"} 512\n"}) {
    EXPECT_THAT(text, HasSubstr(line));
  }
}

TEST(LinkMetrics, ShowsWhatIsThereAndForgetsTheRest) {
  const auto registry = std::make_shared<prometheus::Registry>();
  workers::LinkMetrics metrics(registry, "m", "d1");
  const absl::Time now = absl::UnixEpoch();
  const kvstore::LinkEstimate link = {.address = "10.0.0.1:8472",
                                      .bytes_per_s = 1e6,
                                      .rtt_s = 0.25,
                                      .confidence = 0.5,
                                      .usual_bytes_per_s = 3e6,
                                      .measured = now,
                                      .probe_bytes = 65536};
  const kvstore::LinkEstimate other = {.address = "10.0.0.2:8472", .relayed = true};
  const std::map<std::string, std::string> names = {{"10.0.0.1:8472", "p1"}};
  metrics.Set({link, other}, names, now + absl::Seconds(2));
  metrics.Set({link, other}, names, now + absl::Seconds(2));
  std::string text = Exposition(registry);
  const std::string labels = "{from=\"p1\",model_name=\"m\",";
  for (const std::string& line :
       {"tandem_pd_link_bytes_per_second" + labels + "to=\"d1\"} 1000000\n",
        "tandem_pd_link_rtt_seconds" + labels + "to=\"d1\"} 0.25\n",
        "tandem_pd_link_confidence" + labels + "to=\"d1\"} 0.5\n",
        "tandem_pd_link_age_seconds" + labels + "to=\"d1\"} 2\n",
        "tandem_pd_link_probe_bytes_total" + labels + "to=\"d1\"} 65536\n",
        "tandem_pd_link_state" + labels + "state=\"degraded\",to=\"d1\"} 1\n",
        "tandem_pd_link_state" + labels + "state=\"relayed\",to=\"d1\"} 0\n"}) {
    EXPECT_THAT(text, HasSubstr(line));
  }
  EXPECT_THAT(text, HasSubstr("tandem_pd_link_state{from=\"10.0.0.2:8472\",model_name=\"m\","
                              "state=\"relayed\",to=\"d1\"} 1\n"));
  metrics.Set({other}, names, now);
  text = Exposition(registry);
  EXPECT_THAT(text, Not(HasSubstr("p1")));
  EXPECT_THAT(text, HasSubstr("10.0.0.2"));
}

TEST(RouterMetrics, CountsARequestUnderItsTenant) {
  const auto registry = std::make_shared<prometheus::Registry>();
  server::RouterMetrics router(registry, "m", {"acme"});
  router.RequestStarted("acme");
  router.RequestEnded({.tenant = "acme",
                       .finish = "stop",
                       .ttft_s = 0.03,
                       .tpot_s = 0.002,
                       .e2e_s = 0.2,
                       .prompt_tokens = 12,
                       .generated_tokens = 64});
  router.RequestStarted("intruder");
  router.RequestEnded({.tenant = "intruder", .code = absl::StatusCode::kUnavailable});
  const std::string text = Exposition(registry);
  EXPECT_THAT(text, Not(HasSubstr("intruder")));
  EXPECT_THAT(text, HasSubstr("tandem_router_requests_total{code=\"OK\",finish=\"stop\",model_name="
                              "\"m\",tenant=\"acme\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("tandem_router_requests_total{code=\"UNAVAILABLE\",finish=\"none\","
                              "model_name=\"m\",tenant=\"other\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("tandem_router_generated_tokens_total{model_name=\"m\",tenant="
                              "\"acme\"} 64\n"));
  EXPECT_THAT(text, HasSubstr("tandem_router_ttft_seconds_count{model_name=\"m\",tenant=\"acme\"} "
                              "1\n"));
  EXPECT_THAT(text, HasSubstr("tandem_router_ttft_seconds_count{model_name=\"m\",tenant=\"other\"} "
                              "0\n"));
}

TEST(RouterMetrics, ShowsStateAndStages) {
  const auto registry = std::make_shared<prometheus::Registry>();
  server::RouterMetrics router(registry, "m", {"other"});
  router.InFlight(5, 256);
  router.Workers("decode", 2);
  router.Workers("store", 3);
  router.DirectoryChunks(1000000);
  router.Rejected("queue_full");
  router.StageSeconds(server::Stage::kHandoff, 0.01);
  router.RouterOverheadSeconds(0.0001);
  const std::string text = Exposition(registry);
  for (const char* line : {"tandem_router_requests_in_flight{model_name=\"m\"} 5\n",
                           "tandem_router_requests_limit{model_name=\"m\"} 256\n",
                           "tandem_router_workers{model_name=\"m\",phase=\"decode\"} 2\n",
                           "tandem_router_workers{model_name=\"m\",phase=\"store\"} 3\n",
                           "tandem_router_directory_chunks{model_name=\"m\"} 1000000\n",
                           "tandem_router_rejected_total{model_name=\"m\",reason=\"queue_full\"} 1",
                           "tandem_router_stage_seconds_count{model_name=\"m\",stage=\"handoff\"} "
                           "1\n",
                           "tandem_router_overhead_seconds_count{model_name=\"m\"} 1\n"}) {
    EXPECT_THAT(text, HasSubstr(line));
  }
}

TEST(Exposition, PleasesPromtool) {
  if (std::system("command -v promtool >/dev/null 2>&1") != 0) GTEST_SKIP() << "no promtool";
  const auto registry = std::make_shared<prometheus::Registry>();
  const auto prefill = NewWorker(registry, "prefill");
  const auto decode = NewWorker(registry, "decode");
  server::RouterMetrics router(registry, "m", {"default"});
  UseAll(*prefill, router);
  KvMetrics kv(registry, "m", "w-prefill");
  UseAll(kv);
  workers::LinkMetrics links(registry, "m", "w-prefill");
  UseAll(links);
  const std::string path = testing::TempDir() + "metrics_" + std::to_string(getpid());
  std::ofstream(path) << Exposition(registry);
  // Exit code 3: style advice, which the vllm: names cannot follow; 1: not an exposition.
  const int code = WEXITSTATUS(std::system(("promtool check metrics <" + path).c_str()));
  unlink(path.c_str());
  EXPECT_TRUE(code == 0 || code == 3) << code;
}

}  // namespace
}  // namespace tandem
