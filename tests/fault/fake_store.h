// A store node as a router sees it, which holds what a test says, wherever a test says.
#pragma once

#include <grpcpp/grpcpp.h>

#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>

#include "kvstore/chunk.h"
#include "tandem/v1/cluster.grpc.pb.h"

namespace tandem::e2e {

/// Registered for as long as it lives. Thread-safe.
class FakeStore {
 public:
  /// `data_address`: where workers will look for its chunks, and give it theirs.
  FakeStore(const std::string& router, const std::string& data_address);
  ~FakeStore();
  FakeStore(const FakeStore&) = delete;
  FakeStore& operator=(const FakeStore&) = delete;

  /// Tells the router that these, at this level, are all that it holds.
  void Hold(std::span<const kvstore::ChunkId> ids, kvstore::Level level);

 private:
  void Report();

  grpc::ClientContext context_;
  std::unique_ptr<v1::ClusterService::Stub> stub_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::WorkerReport, v1::RegisterResponse>> stream_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::optional<v1::WorkerReport> next_;  // guarded by mutex_
  bool stopping_ = false;                 // guarded by mutex_
  std::thread thread_;
};

}  // namespace tandem::e2e
