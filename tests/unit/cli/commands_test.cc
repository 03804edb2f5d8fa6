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

  v1::GenerateRequest generate;
  std::vector<v1::GenerateResponse> responses;
  v1::ListWorkersResponse workers;
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

TEST(Help, IsThereForEachCommand) {
  for (auto* command : {RunGenerate, RunStatus, RunTokenize}) {
    const Outcome outcome = Call(command, {"--help"}, "");
    EXPECT_EQ(outcome.code, 0);
    EXPECT_THAT(outcome.out, HasSubstr("--router=HOST:PORT"));
  }
}

}  // namespace
}  // namespace tandem::cli
