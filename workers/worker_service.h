// The worker's gRPC service: turns calls of a router into jobs of the prefill or decode loop and
// their events into messages. Owned by Worker.
#pragma once

#include <memory>
#include <string>

#include "base/request_context.h"
#include "tandem/v1/worker.grpc.pb.h"
#include "workers/decode_loop.h"
#include "workers/prefill_loop.h"
#include "workers/step_streams.h"

namespace tandem::workers {

/// The loops that a worker has now. Thread-safe.
class LoopSource {
 public:
  virtual ~LoopSource() = default;
  /// UNAVAILABLE, saying why, when there is none.
  virtual absl::StatusOr<std::shared_ptr<PrefillLoop>> Prefill() = 0;
  virtual absl::StatusOr<std::shared_ptr<DecodeLoop>> Decode() = 0;
  /// Where other workers reach the data plane.
  virtual std::string data_address() const = 0;
};

/// Thread-safe.
class WorkerServiceImpl final : public v1::WorkerService::CallbackService {
 public:
  /// `loops` must outlive the gRPC server.
  WorkerServiceImpl(LoopSource* loops, std::string model_fingerprint)
      : loops_(loops), model_fingerprint_(std::move(model_fingerprint)) {}

  grpc::ServerWriteReactor<v1::PrefillEvent>* Prefill(grpc::CallbackServerContext* context,
                                                      const v1::PrefillRequest* request) override;
  grpc::ServerWriteReactor<v1::DecodeEvent>* Decode(grpc::CallbackServerContext* context,
                                                    const v1::DecodeRequest* request) override;
  grpc::ServerWriteReactor<v1::StepTokens>* Steps(grpc::CallbackServerContext* context,
                                                  const v1::StepsRequest* request) override;
  /// Ends the Steps calls, which do not end by themselves. REQUIRES: the loops have stopped.
  void Stop() { steps_.Stop(); }

 private:
  absl::Status Check(const v1::RequestHeader& header, const std::string& handoff_id) const;
  absl::Status Submit(const v1::PrefillRequest& request, RequestContextPtr context,
                      std::shared_ptr<PrefillEvents> events);
  absl::Status Submit(const v1::DecodeRequest& request, RequestContextPtr context,
                      std::shared_ptr<DecodeEvents> events);

  LoopSource* const loops_;
  const std::string model_fingerprint_;
  StepStreams steps_;
};

/// The sampling options that a request's parameters mean. REQUIRES: validated by the router.
SamplingOptions ToSamplingOptions(const v1::SamplingParams& params);

}  // namespace tandem::workers
