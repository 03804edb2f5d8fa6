// What an operator asks of a node that keeps chunks: the gRPC service over its store. Registered by
// workers and by store nodes, beside WorkerService; asked by `tandem kv`.
#pragma once

#include "kvstore/store.h"
#include "tandem/v1/store.grpc.pb.h"

namespace tandem::workers {

/// Thread-safe. INVALID_ARGUMENT names the field that is malformed.
class StoreServiceImpl final : public v1::StoreService::CallbackService {
 public:
  /// The store must outlive the gRPC server.
  explicit StoreServiceImpl(kvstore::Store* store) : store_(store) {}

  /// In no order. A chunk that comes or goes meanwhile may be in it or not.
  grpc::ServerWriteReactor<v1::ListChunksResponse>* ListChunks(
      grpc::CallbackServerContext* context, const v1::ListChunksRequest* request) override;
  grpc::ServerUnaryReactor* GetStoreStats(grpc::CallbackServerContext* context,
                                          const v1::GetStoreStatsRequest* request,
                                          v1::GetStoreStatsResponse* response) override;
  grpc::ServerUnaryReactor* RemoveChunks(grpc::CallbackServerContext* context,
                                         const v1::RemoveChunksRequest* request,
                                         v1::RemoveChunksResponse* response) override;
  grpc::ServerUnaryReactor* PinChunks(grpc::CallbackServerContext* context,
                                      const v1::PinChunksRequest* request,
                                      v1::PinChunksResponse* response) override;

 private:
  kvstore::Store* const store_;
};

}  // namespace tandem::workers
