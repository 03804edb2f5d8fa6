// EventStream against a real gRPC server and client: every event arrives, in order, whatever the
// threads do, and an end is an end.
#include "base/event_stream.h"

#include <gtest/gtest.h>

#include <thread>

#include "base/grpc_server.h"
#include "tandem/v1/worker.grpc.pb.h"

namespace tandem {
namespace {

class Stream final : public EventStream<v1::DecodeEvent> {
 public:
  std::atomic<bool> cancelled{false};

 private:
  bool Merge(v1::DecodeEvent& last, v1::DecodeEvent& next) override {
    last.MergeFrom(next);
    return true;
  }
  void OnCancelled() override {
    cancelled = true;
    cancelled.notify_all();
    End(grpc::Status::CANCELLED);
  }
};

class Service final : public v1::WorkerService::CallbackService {
 public:
  std::function<void(std::shared_ptr<Stream>)> handler;
  std::vector<std::thread> threads;
  ~Service() override {
    for (std::thread& thread : threads) thread.join();
  }

 private:
  grpc::ServerWriteReactor<v1::DecodeEvent>* Decode(grpc::CallbackServerContext*,
                                                    const v1::DecodeRequest*) override {
    auto stream = std::make_shared<Stream>();
    stream->Open();
    threads.emplace_back(handler, stream);
    return stream.get();
  }
};

class EventStreamTest : public testing::Test {
 protected:
  void SetUp() override {
    auto started = StartGrpcServer({.listen = "127.0.0.1:0", .services = {&service_}});
    ASSERT_TRUE(started.ok()) << started.status();
    server_ = *std::move(started);
    stub_ = v1::WorkerService::NewStub(MakeChannel("127.0.0.1:" + std::to_string(server_.port)));
  }
  void TearDown() override { server_.server->Shutdown(); }

  Service service_;
  GrpcServer server_;
  std::unique_ptr<v1::WorkerService::Stub> stub_;
};

TEST_F(EventStreamTest, EverythingArrivesInOrderAndMergesWhenTheClientIsSlow) {
  constexpr int kEvents = 5000;
  service_.handler = [](std::shared_ptr<Stream> stream) {
    v1::DecodeEvent event;
    for (int i = 0; i < kEvents; ++i) {
      event.Clear();
      event.add_tokens(i);
      stream->Send(event);
    }
    event.Clear();
    event.set_finish_reason(v1::FINISH_REASON_STOP);
    stream->EndWith(event, grpc::Status::OK);
    stream->Send(event);  // too late: dropped
  };
  grpc::ClientContext context;
  auto reader = stub_->Decode(&context, {});
  std::vector<int32_t> tokens;
  int messages = 0, finishes = 0;
  for (v1::DecodeEvent event; reader->Read(&event); ++messages) {
    tokens.insert(tokens.end(), event.tokens().begin(), event.tokens().end());
    if (event.finish_reason() != v1::FINISH_REASON_UNSPECIFIED) ++finishes;
  }
  EXPECT_TRUE(reader->Finish().ok());
  ASSERT_EQ(tokens.size(), static_cast<size_t>(kEvents));
  for (int i = 0; i < kEvents; ++i) ASSERT_EQ(tokens[static_cast<size_t>(i)], i);
  EXPECT_EQ(finishes, 1);
  EXPECT_LT(messages, kEvents) << "nothing was merged";
}

TEST_F(EventStreamTest, AnEndWithoutEventsHasNoResponseHeaders) {
  service_.handler = [](std::shared_ptr<Stream> stream) {
    stream->End(grpc::Status(grpc::RESOURCE_EXHAUSTED, "full"));
    stream->End(grpc::Status::OK);  // the first end counts
  };
  grpc::ClientContext context;
  auto reader = stub_->Decode(&context, {});
  v1::DecodeEvent event;
  EXPECT_FALSE(reader->Read(&event));
  const grpc::Status status = reader->Finish();
  EXPECT_EQ(status.error_code(), grpc::RESOURCE_EXHAUSTED);
  EXPECT_EQ(status.error_message(), "full");
  EXPECT_TRUE(context.GetServerInitialMetadata().empty());
}

TEST_F(EventStreamTest, ACancelledCallTellsAndDropsWhatFollows) {
  service_.handler = [](std::shared_ptr<Stream> stream) {
    v1::DecodeEvent event;
    event.add_tokens(1);
    stream->Send(event);
    stream->cancelled.wait(false);
    stream->Send(event);
    stream->EndWith(event, grpc::Status::OK);
  };
  grpc::ClientContext context;
  auto reader = stub_->Decode(&context, {});
  v1::DecodeEvent event;
  ASSERT_TRUE(reader->Read(&event));
  context.TryCancel();
  EXPECT_EQ(reader->Finish().error_code(), grpc::CANCELLED);
}

}  // namespace
}  // namespace tandem
