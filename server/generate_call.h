// One client's Generate call, from its first byte to its terminal message: checked, admitted,
// sent to a prefill and a decode worker, and their tokens joined into one stream of text.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/event_stream.h"
#include "base/request_context.h"
#include "scheduler/cluster_view.h"
#include "server/router.h"
#include "server/text_stream.h"
#include "server/worker_stream.h"
#include "tandem/v1/inference.pb.h"
#include "tandem/v1/worker.pb.h"

namespace tandem::server {

/// States:
///
///   new ── bad, refused ──> ended          (an error without response headers)
///   new ── Begin ──> prefilling            (the prefill worker has the request)
///   prefilling ── KV can be pulled ──> the decode worker has it too
///   prefilling ── first token ──> decoding (or ended: it was the last)
///   decoding ── last token, stop string ──> ended
///   any ── a worker fails, client gone, deadline ──> ended
///
/// Entering `ended` sends the one terminal message and cancels what the workers still do. The
/// object lives on until gRPC and both workers' streams have let go of it.
class GenerateCall final : public EventStream<v1::GenerateResponse, grpc::ByteBuffer> {
 public:
  GenerateCall(RouterCore* core, grpc::CallbackServerContext* context)
      : core_(core), server_context_(context) {
    core_->CallBegins();
  }
  ~GenerateCall() override;

  /// Starts the call. REQUIRES: Open was called.
  void Begin(const grpc::ByteBuffer& request);

 private:
  absl::Status Dispatch();
  void StartPrefill(std::shared_ptr<v1::WorkerService::Stub> stub);
  // Tells the prefill worker who holds the prompt's chunks, and who should keep new ones.
  void PointToChunks(v1::PrefillRequest& message) const;
  void StartDecode();
  v1::RequestHeader Header() const;

  void OnPrefillEvent(const v1::PrefillEvent& event);
  void OnDecodeEvent(v1::DecodeEvent& event);
  void OnWorkerDone(v1::Phase phase, const grpc::Status& status);
  void OnCancelled() override;
  bool Merge(v1::GenerateResponse& last, v1::GenerateResponse& next) override;

  // These expect mutex_ to be held.
  void OnFirstToken(const v1::FirstToken& first);
  void TakeDecoded(const v1::DecodeEvent& event);
  void Emit(int32_t token);
  void FinishWith(v1::FinishReason reason);
  void Fail(const absl::Status& status);
  void FillLast(v1::GenerateResponse& last, v1::FinishReason reason);
  void RecordEnd(absl::StatusCode code, v1::FinishReason reason);
  void ReleaseReservedDecode();
  // Cancels the workers' streams that are still open.
  void CancelWorkers();
  // Enters `ended`; call before the terminal message is sent.
  void SetEnded();
  void Refuse(const absl::Status& status, std::string_view reason);

  std::shared_ptr<GenerateCall> Self() {
    return std::static_pointer_cast<GenerateCall>(shared_from_this());
  }

  RouterCore* const core_;
  grpc::CallbackServerContext* const server_context_;
  const Stopwatch since_arrival_;
  bool admitted_ = false;

  std::mutex mutex_;
  // Guarded by mutex_ once the workers' streams run.
  CheckedRequest request_;
  absl::Time deadline_ = absl::InfiniteFuture();
  std::string handoff_id_;
  std::vector<kvstore::ChunkId> chunk_ids_;  // of the prompt; empty: no cached KV is used
  scheduler::Pair pair_;
  bool dispatched_ = false;
  bool decode_reserved_ = false;  // counted as assigned, no stream yet
  bool ended_ = false;
  std::shared_ptr<WorkerStream<v1::PrefillEvent>> prefill_;
  std::shared_ptr<WorkerStream<v1::DecodeEvent>> decode_;
  std::optional<TextStream> text_;
  bool has_first_token_ = false;
  v1::DecodeEvent early_;  // decoded before the first token's message came
  uint32_t generated_ = 0;
  double first_token_s_ = 0, last_token_s_ = 0, dispatched_s_ = 0;
  v1::Timings timings_;
  v1::Usage usage_;
  v1::PromptCache prompt_cache_;
};

}  // namespace tandem::server
