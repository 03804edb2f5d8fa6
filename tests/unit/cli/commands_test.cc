// The sub-commands against a real gRPC server in this process that answers from a script.
#include <gmock/gmock.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <condition_variable>
#include <fstream>
#include <mutex>
#include <sstream>

#include "cli/client.h"
#include "tandem/v1/cluster.grpc.pb.h"
#include "tandem/v1/inference.grpc.pb.h"
#include "tests/unit/cli/call.h"

namespace tandem::cli {
namespace {

using testing::HasSubstr;
using testing::Not;

/// Says what its members say, and keeps the last request.
class Router final : public v1::InferenceService::Service, public v1::ClusterService::Service {
 public:
  Router() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(static_cast<v1::InferenceService::Service*>(this));
    builder.RegisterService(static_cast<v1::ClusterService::Service*>(this));
    server_ = builder.BuildAndStart();
  }
  ~Router() override { server_->Shutdown(std::chrono::system_clock::now()); }

  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }

  grpc::Status Generate(grpc::ServerContext* context, const v1::GenerateRequest* request,
                        grpc::ServerWriter<v1::GenerateResponse>* writer) override {
    generate = *request;
    if (!retry_ms.empty()) context->AddTrailingMetadata("grpc-retry-pushback-ms", retry_ms);
    for (const auto& response : responses) writer->Write(response);
    if (interrupt_after_first_message) {
      // The client's process is this one; its Interrupt gets the signal and cancels the call.
      kill(getpid(), SIGINT);
      while (!context->IsCancelled()) std::this_thread::yield();
      return grpc::Status::CANCELLED;
    }
    return status;
  }
  grpc::Status Tokenize(grpc::ServerContext*, const v1::TokenizeRequest* request,
                        v1::TokenizeResponse* response) override {
    for (const char c : request->text()) response->add_token_ids(c);
    if (!request->no_special_tokens()) response->add_token_ids(1);
    return status;
  }
  grpc::Status ListWorkers(grpc::ServerContext*, const v1::ListWorkersRequest*,
                           v1::ListWorkersResponse* response) override {
    *response = workers;
    if (interrupt_after_first_message) kill(getpid(), SIGINT);
    return status;
  }

  grpc::Status GetWorkload(grpc::ServerContext*, const v1::GetWorkloadRequest*,
                           v1::GetWorkloadResponse* response) override {
    *response = workload;
    return status;
  }

  v1::GenerateRequest generate;
  std::vector<v1::GenerateResponse> responses;
  v1::ListWorkersResponse workers;
  v1::GetWorkloadResponse workload;
  grpc::Status status;
  std::string retry_ms;
  bool interrupt_after_first_message = false;

 private:
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

v1::GenerateResponse Text(const std::string& text) {
  v1::GenerateResponse response;
  response.set_text(text);
  return response;
}

v1::GenerateResponse Last() {
  v1::GenerateResponse response;
  response.set_finish_reason(v1::FINISH_REASON_STOP);
  response.mutable_usage()->set_prompt_tokens(3);
  response.mutable_usage()->set_generated_tokens(2);
  response.mutable_timings()->set_ttft_s(0.0125);
  response.mutable_timings()->set_tpot_s(0.002);
  response.mutable_timings()->set_prefill_worker("p1");
  response.mutable_timings()->set_decode_worker("d1");
  return response;
}

TEST(Generate, StreamsTextExactly) {
  Router router;
  router.responses = {Text("Once"), Text(""), Text(" upon\n"), Last()};
  const Outcome outcome = Call(RunGenerate, {"--stats", "a prompt"}, router.address());
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(outcome.out, "Once upon\n");
  EXPECT_EQ(router.generate.prompt(), "a prompt");
  EXPECT_THAT(outcome.err, HasSubstr("3 prompt (0 cached), 2 generated; ended by stop"));
  EXPECT_THAT(outcome.err, HasSubstr("TTFT 12.5 ms, TPOT 2.00 ms"));
  EXPECT_THAT(outcome.err, HasSubstr("decode    d1:"));
}

TEST(Generate, IsQuietWithoutStats) {
  Router router;
  router.responses = {Text("x"), Last()};
  EXPECT_EQ(Call(RunGenerate, {"p"}, router.address()).err, "");
}

TEST(Generate, PassesEveryFlagOn) {
  Router router;
  router.responses = {Last()};
  const Outcome outcome = Call(RunGenerate,
                               {"--router",
                                router.address(),
                                "--max-tokens=7",
                                "--temperature=0",
                                "--top-k=4",
                                "--top-p=0.5",
                                "--min-p=0.1",
                                "--repetition-penalty=1.5",
                                "--frequency-penalty=-0.5",
                                "--presence-penalty=0.25",
                                "--penalty-last-n=-1",
                                "--seed=18446744073709551615",
                                "--ignore-eos",
                                "--stop-token=5",
                                "--stop=a",
                                "--stop",
                                "b",
                                "--tenant=t",
                                "--model=m",
                                "--request-id=r",
                                "--timeout=30s",
                                "p"},
                               "127.0.0.1:1");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const v1::GenerateRequest& request = router.generate;
  const v1::SamplingParams& sampling = request.sampling();
  EXPECT_EQ(request.max_tokens(), 7u);
  EXPECT_TRUE(sampling.has_temperature());
  EXPECT_EQ(sampling.temperature(), 0);
  EXPECT_EQ(sampling.top_k(), 4);
  EXPECT_EQ(sampling.top_p(), 0.5);
  EXPECT_EQ(sampling.min_p(), 0.1);
  EXPECT_EQ(sampling.repetition_penalty(), 1.5);
  EXPECT_EQ(sampling.frequency_penalty(), -0.5);
  EXPECT_EQ(sampling.presence_penalty(), 0.25);
  EXPECT_EQ(sampling.penalty_last_n(), -1);
  EXPECT_EQ(sampling.seed(), UINT64_MAX);
  EXPECT_TRUE(sampling.ignore_eos());
  EXPECT_THAT(sampling.stop_token_ids(), testing::ElementsAre(5));
  EXPECT_THAT(request.stop(), testing::ElementsAre("a", "b"));
  EXPECT_EQ(request.tenant(), "t");
  EXPECT_EQ(request.model(), "m");
  EXPECT_EQ(request.request_id(), "r");
}

TEST(Generate, LeavesDefaultsToTheRouter) {
  Router router;
  router.responses = {Last()};
  Call(RunGenerate, {"p"}, router.address());
  EXPECT_FALSE(router.generate.sampling().has_temperature());
  EXPECT_FALSE(router.generate.sampling().has_seed());
  EXPECT_EQ(router.generate.tenant(), "");
}

TEST(Generate, ReadsThePromptFromAFile) {
  Router router;
  router.responses = {Last()};
  const std::string path = testing::TempDir() + "prompt_" + std::to_string(getpid());
  std::ofstream(path) << "from a\nfile";
  EXPECT_EQ(Call(RunGenerate, {"--file", path}, router.address()).code, 0);
  EXPECT_EQ(router.generate.prompt(), "from a\nfile");
  std::ofstream(path, std::ios::trunc).flush();
  EXPECT_EQ(Call(RunGenerate, {"--file", path}, router.address()).code, 0);
  EXPECT_EQ(router.generate.prompt(), "");
  unlink(path.c_str());
  const Outcome missing = Call(RunGenerate, {"--file", path}, router.address());
  EXPECT_EQ(missing.code, kUsage);
  EXPECT_THAT(missing.err, HasSubstr("cannot be read"));
}

TEST(Generate, WantsExactlyOnePrompt) {
  for (const auto& args :
       std::vector<std::vector<std::string>>{{}, {"two", "prompts"}, {"--file=-", "and another"}}) {
    const Outcome outcome = Call(RunGenerate, args, "");
    EXPECT_EQ(outcome.code, kUsage);
    EXPECT_THAT(outcome.err, HasSubstr("generate takes one prompt"));
  }
}

TEST(Generate, WritesJsonLines) {
  Router router;
  router.responses = {Text("a\nb"), Last()};
  const Outcome outcome = Call(RunGenerate, {"--json", "p"}, router.address());
  EXPECT_THAT(outcome.out, HasSubstr("{\"text\":\"a\\nb\"}\n"));
  EXPECT_THAT(outcome.out, HasSubstr("\"finish_reason\":\"FINISH_REASON_STOP\""));
}

TEST(Generate, CtrlCCancelsTheCall) {
  Router router;
  router.responses = {Text("begun")};
  router.interrupt_after_first_message = true;
  const Outcome outcome = Call(RunGenerate, {"p"}, router.address());
  EXPECT_EQ(outcome.code, kInterrupted);
  EXPECT_THAT(outcome.err, Not(HasSubstr("CANCELLED")));
}

TEST(Generate, ReportsErrorsWithCodeAndHint) {
  Router router;
  router.status = grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "256 requests in flight");
  router.retry_ms = "1000";
  const Outcome full = Call(RunGenerate, {"p"}, router.address());
  EXPECT_EQ(full.code, kFailed);
  EXPECT_EQ(full.err,
            "tandem: RESOURCE_EXHAUSTED: 256 requests in flight\n"
            "tandem: hint: try again in 1s\n");
}

TEST(Generate, TellsNoRouterFromNoWorker) {
  const Outcome nobody = Call(RunGenerate, {"--router=127.0.0.1:1", "p"}, "");
  EXPECT_EQ(nobody.code, kFailed);
  EXPECT_THAT(nobody.err, HasSubstr("tandem: UNAVAILABLE: "));
  EXPECT_THAT(nobody.err, HasSubstr("hint: is a router listening on 127.0.0.1:1?"));
  Router router;
  router.status = grpc::Status(grpc::StatusCode::UNAVAILABLE, "no decode worker");
  const Outcome workerless = Call(RunGenerate, {"p"}, router.address());
  EXPECT_EQ(workerless.err, "tandem: UNAVAILABLE: no decode worker\n");
}

TEST(Status, ShowsATable) {
  Router router;
  router.workers.set_max_requests(256);
  v1::WorkerState* worker = router.workers.add_workers();
  worker->mutable_info()->set_name("d1");
  worker->mutable_info()->set_phase(v1::PHASE_DECODE);
  worker->mutable_info()->set_grpc_address("10.0.0.1:9");
  worker->mutable_info()->set_kv_capacity_tokens(4096);
  worker->mutable_load()->set_running(3);
  worker->mutable_load()->set_kv_used_tokens(17);
  worker->mutable_load()->set_parked(2);
  worker->mutable_load()->set_tokens_per_s(101.25);
  worker->set_report_age_s(0.2);
  worker = router.workers.add_workers();
  worker->mutable_info()->set_name("a-long-name");
  worker->mutable_load()->set_draining(true);
  worker = router.workers.add_workers();
  worker->mutable_info()->set_name("s1");
  worker->mutable_info()->set_phase(v1::PHASE_STORE);
  worker->set_chunks(12345);
  const Outcome outcome = Call(RunStatus, {}, router.address());
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(outcome.out,
            "NAME         PHASE   STATE     RUNNING  WAITING  PARKED  KV TOKENS  TOKENS/S  CHUNKS  "
            "REPORT     ADDRESS     MODEL\n"
            "a-long-name  ?       draining  0        0        0       0/0        0.0       0       "
            "0.0 s ago              \n"
            "d1           decode  ready     3        0        2       17/4096    101.2     0       "
            "0.2 s ago  10.0.0.1:9  \n"
            "s1           store   ready     0        0        0       0/0        0.0       12345   "
            "0.0 s ago              \n"
            "router " +
                router.address() + ": 0 of 256 requests in flight\n");
}

TEST(Status, ShowsLinks) {
  Router router;
  for (const char* name : {"p1", "d1"}) {
    v1::WorkerState* worker = router.workers.add_workers();
    worker->mutable_info()->set_name(name);
    worker->mutable_info()->set_data_address(absl::StrCat(name, ":8472"));
  }
  EXPECT_THAT(Call(RunStatus, {"--links"}, router.address()).out,
              HasSubstr("no link has been measured\n"));
  v1::LinkEstimate* link = router.workers.mutable_workers(1)->mutable_load()->add_links();
  link->set_data_address("p1:8472");
  link->set_bytes_per_s(5 << 20);
  link->set_rtt_s(0.00125);
  link->set_age_s(2.5);
  link->set_samples(7);
  link->set_confidence(0.9);
  link->set_usual_bytes_per_s(50 << 20);
  link->set_degraded(true);
  link->set_relayed(true);
  link = router.workers.mutable_workers(1)->mutable_load()->add_links();
  link->set_data_address("10.0.0.9:8472");
  EXPECT_THAT(
      Call(RunStatus, {"--links"}, router.address()).out,
      HasSubstr("FROM           TO  BANDWIDTH  RTT      CONFIDENCE  MEASURED   SAMPLES  STATE\n"
                "10.0.0.9:8472  d1  0 B/s      0.00 ms  0 %         0.0 s ago  0        ok\n"
                "p1             d1  5.0 MiB/s  1.25 ms  90 %        2.5 s ago  7        degraded "
                "(usually 50.0 MiB/s), relayed\n"));
}

TEST(Status, SaysThatThereIsNobody) {
  Router router;
  EXPECT_THAT(Call(RunStatus, {}, router.address()).out, HasSubstr("no worker has registered\n"));
}

TEST(Status, WritesJson) {
  Router router;
  router.workers.add_workers()->mutable_info()->set_name("d1");
  EXPECT_THAT(Call(RunStatus, {"--json"}, router.address()).out, HasSubstr("\"name\":\"d1\""));
}

TEST(Status, WatchesUntilCtrlC) {
  Router router;
  router.interrupt_after_first_message = true;
  EXPECT_EQ(Call(RunStatus, {"--watch"}, router.address()).code, kInterrupted);
}

TEST(Status, ReportsErrors) {
  EXPECT_THAT(Call(RunStatus, {"--router=127.0.0.1:1"}, "").err, HasSubstr("hint: is a router"));
  EXPECT_EQ(Call(RunStatus, {"extra"}, "").code, kUsage);
}

TEST(Tokenize, WritesIds) {
  Router router;
  EXPECT_EQ(Call(RunTokenize, {"ab"}, router.address()).out, "97 98 1\n");
  EXPECT_EQ(Call(RunTokenize, {"--no-special-tokens", "ab"}, router.address()).out, "97 98\n");
  EXPECT_EQ(Call(RunTokenize, {"--count", "ab"}, router.address()).out, "3\n");
  EXPECT_EQ(Call(RunTokenize, {}, router.address()).code, kUsage);
}

/// A worker that has measured itself, and the links that lead to it.
void AddWorker(const std::string& name, const std::vector<std::string>& others, Router& router) {
  v1::WorkerState& worker = *router.workers.add_workers();
  v1::WorkerInfo& info = *worker.mutable_info();
  info.set_name(name);
  info.set_data_address(name);
  info.set_kv_bytes_per_token(1e5);
  info.set_decode_kv_tokens(30'000);
  worker.mutable_load()->set_phase(v1::PHASE_MIXED);
  v1::LatencyModel& model = *worker.mutable_load()->mutable_latency();
  model.set_prefill_base_s(0.0181234567);
  model.set_prefill_per_token_s(1e-4 / 3);
  model.set_decode_base_s(0.02);
  model.set_decode_per_sequence_s(4e-5);
  model.set_saturation_tokens(512);
  model.set_prefill_samples(10);
  model.set_decode_samples(10);
  for (const std::string& other : others) {
    v1::LinkEstimate& link = *worker.mutable_load()->add_links();
    link.set_data_address(other);
    link.set_bytes_per_s(1e9 / 7);
    link.set_rtt_s(1e-3 / 3);
  }
}

class PlanRunningTest : public testing::Test {
 protected:
  std::string Path(const std::string& name) const {
    return testing::TempDir() + std::to_string(getpid()) + name;
  }
  /// `tandem plan` with these arguments.
  Outcome Plan(const std::vector<std::string>& arguments) {
    return Call(RunPlan, arguments, router_.address());
  }
  std::vector<std::string> Search(std::vector<std::string> more) {
    more.insert(more.begin(), {"search", "--ttft-slo=0.5", "--tpot-slo=0.05"});
    return more;
  }
  static std::string Read(const std::string& path) {
    std::ostringstream text;
    text << std::ifstream(path).rdbuf();
    return text.str();
  }

  Router router_;
};

TEST_F(PlanRunningTest, WhatWasSavedIsPlannedTheSame) {
  AddWorker("a", {"b"}, router_);
  AddWorker("b", {"a"}, router_);
  for (int i = 0; i < 40; ++i) {
    router_.workload.add_arrival_s(i / 3.0);
    router_.workload.add_prompt_tokens(200 + 13 * (i % 7));
    router_.workload.add_output_tokens(20 + i % 5);
    router_.workload.add_cached_tokens(0);
  }
  const std::string cluster = Path("c.yaml"), workload = Path("w.csv");
  const Outcome saved = Plan({"cluster", "--out", cluster});
  ASSERT_EQ(saved.code, kOk) << saved.err;
  EXPECT_THAT(Read(cluster), HasSubstr("# a, b"));
  EXPECT_EQ(Plan({"cluster"}).out, Read(cluster));
  ASSERT_EQ(Plan({"workload", "--out", workload}).code, kOk);
  const Outcome running = Plan(Search({"--json", Path("1.json"), "--html", Path("1.html")}));
  EXPECT_EQ(running.code, kOk) << running.err;
  EXPECT_THAT(running.out, HasSubstr("2 mixed (a+1)"));
  EXPECT_THAT(Read(Path("1.html")), HasSubstr("Plan for router " + router_.address()));
  const Outcome again = Plan(Search({"--cluster", cluster, "--workload", workload, "--json",
                                     Path("2.json"), "--router=127.0.0.1:1"}));
  EXPECT_EQ(again.out, running.out) << again.err;
  EXPECT_EQ(Read(Path("2.json")), Read(Path("1.json")));
  // One of both may come from a file.
  EXPECT_EQ(Plan(Search({"--cluster", cluster})).out, running.out);
  EXPECT_EQ(Plan(Search({"--workload", workload})).out, running.out);
  for (const char* name : {"c.yaml", "w.csv", "1.json", "1.html", "2.json"}) {
    unlink(Path(name).c_str());
  }
}

TEST_F(PlanRunningTest, SaysWhatIsMissing) {
  const Outcome nobody = Plan({"cluster"});
  EXPECT_EQ(nobody.code, kFailed);
  EXPECT_EQ(nobody.err, "tandem: FAILED_PRECONDITION: there is no worker\n");
  AddWorker("a", {}, router_);
  router_.workers.mutable_workers(0)->mutable_load()->mutable_latency()->set_decode_samples(0);
  EXPECT_THAT(Plan(Search({})).err, HasSubstr("FAILED_PRECONDITION: no worker has measured yet"));
  router_.workers.mutable_workers(0)->mutable_load()->mutable_latency()->set_decode_samples(1);
  EXPECT_THAT(Plan(Search({})).err, HasSubstr("router " + router_.address() + ": has no request"));
  for (const char* command : {"cluster", "workload", "search"}) {
    const Outcome silent = Plan({command, "--router=127.0.0.1:1"});
    EXPECT_EQ(silent.code, kFailed);
    EXPECT_THAT(silent.err, HasSubstr("tandem: UNAVAILABLE: "));
    EXPECT_THAT(silent.err, HasSubstr("\ntandem: hint: is a router listening on 127.0.0.1:1?"));
  }
}

TEST(Help, IsThereForEachCommand) {
  for (auto* command : {RunGenerate, RunStatus, RunTokenize}) {
    const Outcome outcome = Call(command, {"--help"}, "");
    EXPECT_EQ(outcome.code, 0);
    EXPECT_THAT(outcome.out, HasSubstr("--router=HOST:PORT"));
  }
}

}  // namespace
}  // namespace tandem::cli
