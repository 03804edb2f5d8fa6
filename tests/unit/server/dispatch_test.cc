// A decode worker's last event may overtake the tokens before it, which come by another stream. The
// workers here speak gRPC and compute nothing.
#include "server/dispatch.h"

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <prometheus/registry.h>

#include <future>
#include <thread>

#include "base/grpc_server.h"
#include "server/router.h"

namespace tandem::server {
namespace {

/// Tokens of the answer that go by the step stream.
constexpr uint32_t kStepTokens = 3;

/// Prefills at once. Decode's last event comes when its call has been made; tokens after that, or
/// never.
class ScriptedWorker final : public v1::WorkerService::Service {
 public:
  bool loses_tokens = false;

  grpc::Status Prefill(grpc::ServerContext*, const v1::PrefillRequest*,
                       grpc::ServerWriter<v1::PrefillEvent>* out) override {
    v1::PrefillEvent event;
    event.mutable_started();
    out->Write(event);
    event.mutable_first_token()->set_token(100);
    out->Write(event);
    return grpc::Status::OK;
  }
  grpc::Status Decode(grpc::ServerContext*, const v1::DecodeRequest* request,
                      grpc::ServerWriter<v1::DecodeEvent>* out) override {
    v1::DecodeEvent event;
    event.set_step_tokens(kStepTokens);
    event.set_finish_reason(v1::FINISH_REASON_LENGTH);
    out->Write(event);
    sequence.set_value(request->step_sequence());
    return grpc::Status::OK;
  }
  grpc::Status Steps(grpc::ServerContext*, const v1::StepsRequest*,
                     grpc::ServerWriter<v1::StepTokens>* out) override {
    const uint64_t mine = sequence.get_future().get();
    if (loses_tokens) return grpc::Status::OK;
    v1::StepTokens step;
    for (int32_t token = 0; token < static_cast<int32_t>(kStepTokens); ++token) {
      step.Clear();
      // Another sequence's, which has left.
      step.add_sequences(mine + 77);
      step.add_tokens(9);
      step.add_sequences(mine);
      step.add_tokens(token);
      out->Write(step);
    }
    return grpc::Status::OK;
  }

  std::promise<uint64_t> sequence;
};

class Owner final : public DispatchOwner {
 public:
  std::mutex& mutex() override { return mutex_; }
  void OnPrefillStarted(double) override {}
  void OnFirstToken(const v1::FirstToken& first) override { Take(first.token()); }
  void OnTokens(std::span<const int32_t> tokens) override {
    for (const int32_t token : tokens) Take(token);
  }
  void OnDecoded(const v1::DecodeTimings&, v1::FinishReason) override { over.set_value("decoded"); }
  void OnMoving(const v1::Moving&) override { over.set_value("moving"); }
  void OnLost(const Loss& loss) override { over.set_value(loss.status.ToString()); }
  std::span<const int32_t> Context() const override { return context_; }

  /// Prompt and tokens, to be read when it is over.
  std::vector<int32_t> context_ = {1, 2};
  std::promise<std::string> over;

 private:
  void Take(int32_t token) { context_.push_back(token); }
  std::mutex mutex_;
};

class DispatchTest : public testing::Test {
 protected:
  DispatchTest() : core_({}, Model(), std::make_shared<prometheus::Registry>()) {
    server_ = *StartGrpcServer({.listen = "127.0.0.1:0", .services = {&worker_}});
    v1::WorkerInfo info;
    info.set_worker_id("w");
    info.set_name("w");
    info.set_phase(v1::PHASE_MIXED);
    info.set_grpc_address("127.0.0.1:" + std::to_string(server_.port));
    info.set_data_address("127.0.0.1:1");
    info.set_context_tokens(1000);
    info.set_max_sequences(4);
    info.set_kv_capacity_tokens(4000);
    core_.AddWorker(info);
  }
  ~DispatchTest() override {
    core_.WaitCallsGone();
    server_.server->Shutdown();
  }

  static std::shared_ptr<const workers::Model> Model() {
    static const std::shared_ptr<const workers::Model> model = *workers::Model::Load(
        {.path = TANDEM_SOURCE_DIR "/models/demo-q8_0.gguf", .vocabulary_only = true});
    return model;
  }

  /// How it ended, in a word or with the error.
  std::string Serve() {
    auto pair = core_.view().Assign({.prompt_tokens = 2, .max_tokens = 5}, absl::Now());
    if (!pair.ok()) return pair.status().ToString();
    const auto dispatch =
        std::make_shared<Dispatch>(&core_, owner_, DispatchOrder{.max_tokens = 5}, *pair);
    {
      std::lock_guard lock(owner_->mutex());
      if (!dispatch->Start()) return "not started";
    }
    std::string end = owner_->over.get_future().get();
    std::lock_guard lock(owner_->mutex());
    dispatch->Drop();
    return end;
  }

  ScriptedWorker worker_;
  GrpcServer server_;
  RouterCore core_;
  const std::shared_ptr<Owner> owner_ = std::make_shared<Owner>();
};

TEST_F(DispatchTest, AnEndThatOvertakesTokensWaitsForThem) {
  EXPECT_EQ(Serve(), "decoded");
  EXPECT_EQ(owner_->context_, (std::vector<int32_t>{1, 2, 100, 0, 1, 2}));
}

TEST_F(DispatchTest, TokensThatAreLostWithTheirStreamAreALoss) {
  worker_.loses_tokens = true;
  EXPECT_EQ(Serve(), "UNAVAILABLE: its step stream ended before all tokens had come");
  EXPECT_EQ(owner_->context_, (std::vector<int32_t>{1, 2, 100}));
}

}  // namespace
}  // namespace tandem::server
