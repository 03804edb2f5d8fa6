// The router's end of registrations: who may join, and how the directory follows what nodes tell.
#include "server/cluster_service.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <prometheus/registry.h>

#include <cstring>
#include <thread>

#include "absl/time/clock.h"
#include "base/grpc_server.h"
#include "base/version.h"
#include "workers/cluster_client.h"

namespace tandem::server {
namespace {

using kvstore::ChunkId;
using testing::HasSubstr;

/// Looks again and again; the limit only bounds how long a failing test takes.
template <typename Condition>
bool Eventually(Condition condition) {
  const absl::Time limit = absl::Now() + absl::Seconds(30);
  while (!condition()) {
    if (absl::Now() > limit) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

ChunkId Id(uint64_t n) {
  ChunkId id;
  std::memcpy(id.bytes.data(), &n, sizeof n);
  return id;
}

v1::WorkerReport Chunks(uint64_t first_sequence, const std::vector<uint64_t>& ids, bool snapshot) {
  v1::WorkerReport report;
  v1::ChunkEvents& events = *report.mutable_chunks();
  events.set_snapshot(snapshot);
  events.set_first_sequence(first_sequence);
  for (const uint64_t n : ids) {
    events.mutable_entries()->append(reinterpret_cast<const char*>(&n), sizeof n);
    events.mutable_entries()->push_back(1);
  }
  return report;
}

class ClusterServiceTest : public testing::Test {
 protected:
  ClusterServiceTest()
      : core_({}, TheModel(), std::make_shared<prometheus::Registry>()), service_(&core_) {
    auto server = StartGrpcServer({.listen = "127.0.0.1:0", .services = {&service_}});
    EXPECT_TRUE(server.ok()) << server.status();
    grpc_ = *std::move(server);
    stub_ = v1::ClusterService::NewStub(MakeChannel(address()));
  }
  ~ClusterServiceTest() override {
    service_.CancelAll();
    grpc_.server->Shutdown();
    grpc_.server->Wait();
  }

  static std::shared_ptr<const workers::Model> TheModel() {
    static const auto model =
        workers::Model::Load({.path = std::string(TANDEM_SOURCE_DIR) + "/models/demo-q8_0.gguf",
                              .vocabulary_only = true});
    EXPECT_TRUE(model.ok()) << model.status();
    return *model;
  }

  std::string address() const { return "127.0.0.1:" + std::to_string(grpc_.port); }

  v1::WorkerInfo Info(const std::string& id, v1::Phase phase) const {
    v1::WorkerInfo info;
    info.set_worker_id(id);
    info.set_name(id);
    info.set_phase(phase);
    info.set_grpc_address("127.0.0.1:1");
    info.set_data_address("127.0.0.1:2");
    info.set_version(kVersion);
    if (phase == v1::PHASE_STORE) return info;
    info.set_model_fingerprint(core_.model().fingerprint());
    info.set_context_tokens(1024);
    return info;
  }

  /// One registration, by hand.
  struct Call {
    grpc::ClientContext context;
    std::unique_ptr<grpc::ClientReaderWriter<v1::WorkerReport, v1::RegisterResponse>> stream;
    v1::RegisterResponse response;

    bool Tell(const v1::WorkerReport& report) { return stream->Write(report); }
    bool Hear() { return stream->Read(&response); }
    grpc::Status End() {
      stream->WritesDone();
      while (Hear()) {
      }
      return stream->Finish();
    }
  };
  std::unique_ptr<Call> Join(const v1::WorkerInfo& info) {
    auto call = std::make_unique<Call>();
    call->stream = stub_->Register(&call->context);
    v1::WorkerReport report;
    *report.mutable_info() = info;
    call->Tell(report);
    return call;
  }
  grpc::Status Refused(const v1::WorkerInfo& info) {
    const auto call = Join(info);
    EXPECT_FALSE(call->Hear());
    return call->stream->Finish();
  }

  size_t known() const { return core_.directory().size(); }

  RouterCore core_;
  ClusterServiceImpl service_;
  GrpcServer grpc_;
  std::unique_ptr<v1::ClusterService::Stub> stub_;
};

TEST_F(ClusterServiceTest, AStoreNeedsNoModel) {
  const auto call = Join(Info("s", v1::PHASE_STORE));
  ASSERT_TRUE(call->Hear());
  EXPECT_NE(call->response.router_id(), "");
  EXPECT_FALSE(call->response.resend_chunks());
  EXPECT_EQ(core_.view().Usable(v1::PHASE_STORE, absl::Now()), 1u);
  EXPECT_FALSE(core_.view().Ready(absl::Now()));
  EXPECT_EQ(core_.Limits().context_tokens, core_.model().training_context_tokens());
  EXPECT_EQ(core_.WorkerStub("s"), nullptr);
}

TEST_F(ClusterServiceTest, AStoreIsNeverChosen) {
  const auto store = Join(Info("a", v1::PHASE_STORE));
  const auto prefill = Join(Info("p", v1::PHASE_PREFILL));
  const auto decode = Join(Info("d", v1::PHASE_DECODE));
  ASSERT_TRUE(store->Hear() && prefill->Hear() && decode->Hear());
  for (int i = 0; i < 10; ++i) {
    const auto pair = core_.view().Assign({.prompt_tokens = 10}, absl::Now());
    ASSERT_TRUE(pair.ok()) << pair.status();
    EXPECT_EQ(pair->prefill.worker_id(), "p");
    EXPECT_EQ(pair->decode.worker_id(), "d");
  }
  EXPECT_EQ(core_.Limits().context_tokens, 1024u);
  EXPECT_NE(core_.WorkerStub("p"), nullptr);
}

TEST_F(ClusterServiceTest, WhatAStoreAndAnEngineMustTell) {
  for (const char* field : {"worker_id", "grpc_address", "data_address"}) {
    v1::WorkerInfo info = Info("s", v1::PHASE_STORE);
    info.GetReflection()->ClearField(&info, info.GetDescriptor()->FindFieldByName(field));
    const grpc::Status status = Refused(info);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << field;
    EXPECT_THAT(status.error_message(), HasSubstr(field));
  }
  v1::WorkerInfo old = Info("s", v1::PHASE_STORE);
  old.set_version("0.0.1");
  EXPECT_THAT(Refused(old).error_message(), HasSubstr("version: the worker is 0.0.1"));
  v1::WorkerInfo other = Info("p", v1::PHASE_PREFILL);
  other.set_model_fingerprint("another");
  EXPECT_THAT(Refused(other).error_message(), HasSubstr("model: "));
  EXPECT_EQ(Refused(Info("n", v1::PHASE_UNSPECIFIED)).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(ClusterServiceTest, FollowsWhatANodeHolds) {
  const auto call = Join(Info("s", v1::PHASE_STORE));
  ASSERT_TRUE(call->Hear());
  ASSERT_TRUE(call->Tell(Chunks(1, {1, 2, 3}, true)));
  ASSERT_TRUE(call->Tell(Chunks(4, {4}, false)));
  EXPECT_TRUE(Eventually([&] { return known() == 4; }));
  v1::ListWorkersResponse workers;
  grpc::ClientContext context;
  ASSERT_TRUE(stub_->ListWorkers(&context, {}, &workers).ok());
  ASSERT_EQ(workers.workers_size(), 1);
  EXPECT_EQ(workers.workers(0).chunks(), 4u);
  EXPECT_TRUE(call->End().ok());
  EXPECT_TRUE(Eventually([&] { return known() == 0; }));
}

TEST_F(ClusterServiceTest, AsksOnceForWhatItMissed) {
  const auto call = Join(Info("s", v1::PHASE_STORE));
  ASSERT_TRUE(call->Hear());
  ASSERT_TRUE(call->Tell(Chunks(1, {1}, true)));
  ASSERT_TRUE(call->Tell(Chunks(3, {3}, false)));
  ASSERT_TRUE(call->Hear());
  EXPECT_TRUE(call->response.resend_chunks());
  // These were under way when it asked.
  ASSERT_TRUE(call->Tell(Chunks(4, {4}, false)));
  ASSERT_TRUE(call->Tell(Chunks(5, {5}, false)));
  ASSERT_TRUE(call->Tell(Chunks(1, {1, 2, 3, 4, 5}, true)));
  EXPECT_TRUE(Eventually([&] { return known() == 5; }));
  ASSERT_TRUE(call->Tell(Chunks(99, {6}, false)));
  ASSERT_TRUE(call->Hear());
  EXPECT_TRUE(call->response.resend_chunks());
  call->stream->WritesDone();
  EXPECT_FALSE(call->Hear()) << "it asked more than once";
}

TEST_F(ClusterServiceTest, AnOldStreamOfTheSameNodeCountsNoMore) {
  const auto old = Join(Info("s", v1::PHASE_STORE));
  ASSERT_TRUE(old->Hear());
  ASSERT_TRUE(old->Tell(Chunks(1, {1, 2}, true)));
  ASSERT_TRUE(Eventually([&] { return known() == 2; }));
  const auto renewed = Join(Info("s", v1::PHASE_STORE));
  ASSERT_TRUE(renewed->Hear());
  ASSERT_TRUE(renewed->Tell(Chunks(1, {1, 2, 3}, true)));
  ASSERT_TRUE(Eventually([&] { return known() == 3; }));
  ASSERT_TRUE(old->Tell(Chunks(3, {77}, false)));
  EXPECT_TRUE(old->End().ok());
  ASSERT_TRUE(renewed->Tell(Chunks(4, {4}, false)));
  EXPECT_TRUE(Eventually([&] { return known() == 4; }));
}

TEST_F(ClusterServiceTest, WorkersAreToldOfOneAnother) {
  std::mutex mutex;
  std::map<std::string, std::string> peers;  // of p
  const auto names = [&] {
    std::lock_guard lock(mutex);
    std::vector<std::string> list;
    for (const auto& [address, name] : peers) list.push_back(name);
    return list;
  };
  workers::ClusterClient client(
      {address()}, Info("p", v1::PHASE_PREFILL), [] { return v1::WorkerLoad{}; },
      absl::Milliseconds(5), nullptr, nullptr,
      [&](const v1::Peers& told) {
        std::lock_guard lock(mutex);
        peers.clear();
        for (const v1::Peer& peer : told.peers()) peers[peer.data_address()] = peer.name();
      });
  v1::WorkerInfo info = Info("d", v1::PHASE_DECODE);
  info.set_data_address("10.0.0.2:8472");
  const auto decode = Join(info);
  const auto store = Join(Info("s", v1::PHASE_STORE));
  ASSERT_TRUE(decode->Hear() && store->Hear());
  EXPECT_TRUE(Eventually([&] { return names() == std::vector<std::string>{"d"}; }));
  info.set_worker_id("e");
  info.set_name("e");
  info.set_data_address("10.0.0.3:8472");
  const auto another = Join(info);
  ASSERT_TRUE(another->Hear());
  EXPECT_TRUE(Eventually([&] { return names() == std::vector<std::string>{"d", "e"}; }));
  EXPECT_TRUE(decode->End().ok());
  EXPECT_TRUE(Eventually([&] { return names() == std::vector<std::string>{"e"}; }));
  EXPECT_TRUE(another->End().ok());
  EXPECT_TRUE(Eventually([&] { return names().empty(); }));
}

TEST_F(ClusterServiceTest, ARealNodeIsFollowed) {
  const auto journal = std::make_shared<kvstore::ChunkJournal>();
  for (uint64_t n = 0; n < 70000; ++n) journal->Record(Id(n), 1);
  auto client = std::make_unique<workers::ClusterClient>(
      std::vector<std::string>{address()}, Info("s", v1::PHASE_STORE),
      [] { return v1::WorkerLoad{}; }, absl::Milliseconds(5), journal);
  EXPECT_TRUE(Eventually([&] { return known() == 70000; }));
  for (uint64_t n = 0; n < 69990; ++n) journal->Record(Id(n), 0);
  EXPECT_TRUE(Eventually([&] { return known() == 10; }));
  const std::vector<ChunkId> ids = {Id(69990), Id(69991), Id(1)};
  const auto prefix = core_.directory().Find(ids, kvstore::Level::kLossless);
  EXPECT_EQ(prefix.n_chunks, 2u);
  ASSERT_EQ(prefix.spans.size(), 1u);
  EXPECT_EQ(prefix.spans[0].worker_id, "s");
  // The router cuts it off, and it comes back by itself.
  service_.CancelAll();
  journal->Record(Id(90000), 1);
  EXPECT_TRUE(Eventually([&] { return known() == 11; }));
  client.reset();
  EXPECT_TRUE(Eventually([&] { return known() == 0; }));
}

}  // namespace
}  // namespace tandem::server
