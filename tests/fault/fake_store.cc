#include "tests/fault/fake_store.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <utility>

#include "base/grpc_server.h"
#include "base/version.h"

namespace tandem::e2e {
namespace {

constexpr std::chrono::milliseconds kReportInterval{100};

std::string NewName() {
  static std::atomic<int> n{0};
  return "fake-store-" + std::to_string(n++);
}

}  // namespace

FakeStore::FakeStore(const std::string& router, const std::string& data_address)
    : stub_(v1::ClusterService::NewStub(MakeChannel(router))), stream_(stub_->Register(&context_)) {
  v1::WorkerReport report;
  v1::WorkerInfo& info = *report.mutable_info();
  info.set_name(NewName());
  info.set_worker_id(info.name());
  info.set_phase(v1::PHASE_STORE);
  info.set_grpc_address("127.0.0.1:1");
  info.set_data_address(data_address);
  info.set_version(std::string(kVersion));
  v1::RegisterResponse accepted;
  EXPECT_TRUE(stream_->Write(report) && stream_->Read(&accepted)) << "the router refuses the store";
  thread_ = std::thread([this] { Report(); });
}

FakeStore::~FakeStore() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  thread_.join();
  context_.TryCancel();
  stream_->Finish();
}

void FakeStore::Hold(std::span<const kvstore::ChunkId> ids, kvstore::Level level) {
  v1::WorkerReport report;
  v1::ChunkEvents& events = *report.mutable_chunks();
  events.set_snapshot(true);
  for (const kvstore::ChunkId& id : ids) {
    events.mutable_entries()->append(id.bytes.begin(), id.bytes.begin() + 8);
    events.mutable_entries()->push_back(static_cast<char>(1 << static_cast<int>(level)));
  }
  std::lock_guard lock(mutex_);
  next_ = std::move(report);
  wake_.notify_one();
}

void FakeStore::Report() {
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    v1::WorkerReport report;
    report.mutable_load();
    if (next_) report = *std::exchange(next_, std::nullopt);
    lock.unlock();
    stream_->Write(report);
    lock.lock();
    wake_.wait_for(lock, kReportInterval, [this] { return stopping_ || next_; });
  }
}

}  // namespace tandem::e2e
