// A node's end of its registration, against a router that does what the test says.
#include "workers/cluster_client.h"

#include <gmock/gmock.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>

#include "absl/time/clock.h"

namespace tandem::workers {
namespace {

using kvstore::ChunkId;
using kvstore::ChunkJournal;

constexpr absl::Duration kInterval = absl::Milliseconds(5);
/// Only bounds how long a failing test takes.
constexpr auto kLimit = std::chrono::seconds(30);

ChunkId Id(uint64_t n) {
  ChunkId id;
  std::memcpy(id.bytes.data(), &n, sizeof n);
  return id;
}

/// Accepts registrations, keeps what comes over them, and ends or questions them.
class Router final : public v1::ClusterService::Service {
 public:
  Router() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~Router() override { server_->Shutdown(std::chrono::system_clock::now()); }
  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }

  grpc::Status Register(
      grpc::ServerContext*,
      grpc::ServerReaderWriter<v1::RegisterResponse, v1::WorkerReport>* stream) override {
    v1::WorkerReport report;
    v1::RegisterResponse response;
    if (!stream->Read(&report) || !report.has_info()) return grpc::Status::CANCELLED;
    {
      std::lock_guard lock(mutex_);
      ++registrations_;
      phase_ = report.info().phase();
      held_.clear();
      next_ = 0;
    }
    stream->Write(response);
    while (stream->Read(&report)) {
      std::unique_lock lock(mutex_);
      if (std::exchange(end_, false)) return {grpc::StatusCode::UNAVAILABLE, "ended by the test"};
      if (std::exchange(ask_, false)) {
        response.set_resend_chunks(true);
        stream->Write(response);
      }
      if (const auto phase = std::exchange(assign_, v1::PHASE_UNSPECIFIED);
          phase != v1::PHASE_UNSPECIFIED) {
        v1::RegisterResponse assignment;
        assignment.set_assign_phase(phase);
        stream->Write(assignment);
      }
      if (report.has_load()) ++loads_;
      if (report.has_chunks()) Take(report.chunks());
      changed_.notify_all();
    }
    return grpc::Status::OK;
  }

  /// Waits until the condition, which may look at all members, is true. False: it took too long.
  template <typename Condition>
  bool Wait(Condition condition) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, kLimit, condition);
  }
  /// Upon the next report: assigns a phase; ends the stream; asks for a snapshot.
  void Assign(v1::Phase phase) {
    std::lock_guard lock(mutex_);
    assign_ = phase;
  }
  void End() {
    std::lock_guard lock(mutex_);
    end_ = true;
  }
  void Ask() {
    std::lock_guard lock(mutex_);
    ask_ = true;
  }

  // For Wait.
  std::map<uint64_t, int> held_;
  v1::Phase phase_ = v1::PHASE_UNSPECIFIED;  // at the last registration
  int registrations_ = 0, loads_ = 0, snapshots_ = 0, pieces_ = 0;

 private:
  void Take(const v1::ChunkEvents& events) {
    ++pieces_;
    if (events.snapshot()) {
      ++snapshots_;
      held_.clear();
    } else {
      EXPECT_EQ(events.first_sequence(), next_);
    }
    ASSERT_EQ(events.entries().size() % 9, 0u);
    EXPECT_LE(events.entries().size(), 9u << 16);
    for (size_t at = 0; at < events.entries().size(); at += 9) {
      uint64_t id = 0;
      std::memcpy(&id, events.entries().data() + at, sizeof id);
      const int levels = events.entries()[at + 8];
      if (levels == 0) {
        held_.erase(id);
      } else {
        held_[id] = levels;
      }
    }
    next_ = events.first_sequence() + events.entries().size() / 9;
  }

  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool end_ = false, ask_ = false;  // guarded by mutex_, as all below and what Wait looks at
  v1::Phase assign_ = v1::PHASE_UNSPECIFIED;
  uint64_t next_ = 0;
};

class ClusterClientTest : public testing::Test {
 protected:
  std::unique_ptr<ClusterClient> Connect(absl::Duration interval = kInterval) {
    return std::make_unique<ClusterClient>(
        std::vector<std::string>{router_.address()}, v1::WorkerInfo{},
        [] { return v1::WorkerLoad{}; }, interval, journal_);
  }
  Router router_;
  std::shared_ptr<ChunkJournal> journal_ = std::make_shared<ChunkJournal>();
};

TEST_F(ClusterClientTest, WithoutAJournalOnlyTheLoadIsTold) {
  journal_ = nullptr;
  const auto client = Connect();
  EXPECT_TRUE(router_.Wait([&] { return router_.loads_ >= 3; }));
  EXPECT_EQ(router_.pieces_, 0);
}

TEST_F(ClusterClientTest, AnEmptyStoreIsToldToo) {
  const auto client = Connect();
  EXPECT_TRUE(router_.Wait([&] { return router_.snapshots_ == 1 && router_.loads_ >= 3; }));
  EXPECT_EQ(router_.pieces_, 1);
}

TEST_F(ClusterClientTest, WhatTheStoreHoldsAndHowItChanges) {
  journal_->Record(Id(1), 1);
  journal_->Record(Id(2), 3);
  const auto client = Connect();
  EXPECT_TRUE(router_.Wait([&] {
    return router_.held_ == std::map<uint64_t, int>{{1, 1}, {2, 3}};
  }));
  journal_->Record(Id(1), 0);
  journal_->Record(Id(3), 16);
  EXPECT_TRUE(router_.Wait([&] {
    return router_.held_ == std::map<uint64_t, int>{{2, 3}, {3, 16}};
  }));
  EXPECT_EQ(router_.snapshots_, 1);
}

TEST_F(ClusterClientTest, ALargeStoreComesInPieces) {
  for (uint64_t n = 0; n < 150000; ++n) journal_->Record(Id(n), 1);
  const auto client = Connect();
  EXPECT_TRUE(router_.Wait([&] { return router_.held_.size() == 150000; }));
  EXPECT_EQ(router_.snapshots_, 1);
  EXPECT_EQ(router_.pieces_, 3);
}

TEST_F(ClusterClientTest, ARouterThatAsksGetsEverythingAgain) {
  journal_->Record(Id(1), 1);
  const auto client = Connect();
  ASSERT_TRUE(router_.Wait([&] { return router_.snapshots_ == 1; }));
  router_.Ask();
  EXPECT_TRUE(router_.Wait([&] { return router_.snapshots_ == 2; }));
  journal_->Record(Id(2), 1);
  EXPECT_TRUE(router_.Wait([&] { return router_.held_.size() == 2; }));
  EXPECT_EQ(router_.registrations_, 1);
}

TEST_F(ClusterClientTest, ANewRegistrationBeginsAnew) {
  journal_->Record(Id(1), 1);
  const auto client = Connect();
  ASSERT_TRUE(router_.Wait([&] { return router_.snapshots_ == 1; }));
  router_.End();
  EXPECT_TRUE(
      router_.Wait([&] { return router_.registrations_ == 2 && router_.held_.size() == 1; }));
}

TEST_F(ClusterClientTest, AStreamThatEndsIsNoticedBeforeTheNextReport) {
  // With an interval of an hour only the reader can notice.
  const auto client = Connect(absl::Hours(1));
  ASSERT_TRUE(router_.Wait([&] { return router_.loads_ >= 1; }));
  router_.End();
  client->ReportNow();
  EXPECT_TRUE(router_.Wait([&] { return router_.registrations_ == 2 && router_.loads_ >= 2; }));
}

TEST_F(ClusterClientTest, StopsWhileItWaitsAndWhileNobodyListens) {
  auto client = Connect(absl::Hours(1));
  ASSERT_TRUE(router_.Wait([&] { return router_.loads_ >= 1; }));
  client.reset();
  const ClusterClient alone(
      {"127.0.0.1:1"}, v1::WorkerInfo{}, [] { return v1::WorkerLoad{}; }, kInterval, journal_);
}

TEST_F(ClusterClientTest, ObeysAnAssignedPhaseAndRegistersWithItFromThenOn) {
  std::atomic<v1::Phase> phase = v1::PHASE_DECODE;
  v1::WorkerInfo info;
  info.set_worker_id("w");
  info.set_phase(v1::PHASE_DECODE);
  ClusterClient client(
      {router_.address()}, info,
      [&phase] {
        v1::WorkerLoad load;
        load.set_phase(phase);
        return load;
      },
      kInterval, nullptr, [&phase](v1::Phase assigned, bool) { phase = assigned; });
  ASSERT_TRUE(router_.Wait([&] { return router_.registrations_ == 1 && router_.loads_ > 0; }));
  EXPECT_TRUE(router_.Wait([&] { return router_.phase_ == v1::PHASE_DECODE; }));
  router_.Assign(v1::PHASE_MIXED);
  const int before = router_.loads_;
  ASSERT_TRUE(router_.Wait([&] { return phase == v1::PHASE_MIXED && router_.loads_ > before; }));
  router_.End();
  EXPECT_TRUE(router_.Wait(
      [&] { return router_.registrations_ == 2 && router_.phase_ == v1::PHASE_MIXED; }));
}

}  // namespace
}  // namespace tandem::workers
