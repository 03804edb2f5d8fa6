// The worker's gRPC service: turns calls of a router into jobs of the prefill or decode loop and
// their events into messages. Owned by Worker.
#pragma once

#include <memory>
#include <string>

#include "base/request_context.h"
#include "tandem/v1/worker.grpc.pb.h"
#include "workers/decode_loop.h"
#include "workers/prefill_loop.h"

namespace tandem::workers {

/// Thread-safe. A worker has one of the two loops; the other phase's call is refused with
/// FAILED_PRECONDITION.
class WorkerServiceImpl final : public v1::WorkerService::CallbackService {
 public:
  /// Either loop may be null. The loops must outlive the gRPC server.
  WorkerServiceImpl(PrefillLoop* prefill, DecodeLoop* decode, std::string model_fingerprint)
      : prefill_(prefill), decode_(decode), model_fingerprint_(std::move(model_fingerprint)) {}

  grpc::ServerWriteReactor<v1::PrefillEvent>* Prefill(grpc::CallbackServerContext* context,
                                                      const v1::PrefillRequest* request) override;
  grpc::ServerWriteReactor<v1::DecodeEvent>* Decode(grpc::CallbackServerContext* context,
                                                    const v1::DecodeRequest* request) override;

 private:
  absl::Status Check(const v1::RequestHeader& header, const std::string& handoff_id) const;

  PrefillLoop* const prefill_;
  DecodeLoop* const decode_;
  const std::string model_fingerprint_;
};

/// The sampling options that a request's parameters mean. REQUIRES: validated by the router.
SamplingOptions ToSamplingOptions(const v1::SamplingParams& params);

}  // namespace tandem::workers
