// The public API's gRPC service. Generate's own life is in generate_call.h.
#pragma once

#include "server/router.h"
#include "tandem/v1/inference.grpc.pb.h"

namespace tandem::server {

/// Thread-safe. Generate is a raw method, so that a request that protobuf cannot parse gets an
/// error that names the field.
class InferenceServiceImpl final : public v1::InferenceService::WithRawCallbackMethod_Generate<
                                       v1::InferenceService::CallbackService> {
 public:
  explicit InferenceServiceImpl(RouterCore* core) : core_(core) {}

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Generate(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* request) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* response) override;
  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* context,
                                       const v1::ListModelsRequest* request,
                                       v1::ListModelsResponse* response) override;

 private:
  RouterCore* const core_;
};

}  // namespace tandem::server
