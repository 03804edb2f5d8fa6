// One client's Generate call, from its first byte to its terminal message: checked, queued, sent to
// workers as often as it takes (dispatch.h), and their tokens joined into one stream of text.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/event_stream.h"
#include "server/dispatch.h"
#include "server/request_check.h"
#include "server/request_queue.h"
#include "server/router.h"
#include "server/text_stream.h"
#include "tandem/v1/inference.pb.h"
#include "tandem/v1/worker.pb.h"

namespace tandem::server {

/// States:
///
///   new ── bad, refused ──> ended             (an error without response headers)
///   new ── let in ──> queued ── its turn ──> placed, or without any worker: ended
///   queued ── displaced, deadline ──> ended
///   placed ── first token, tokens ──> placed
///   placed ── worker lost, refuses, gives back ──> placed elsewhere; with nobody there: waiting
///   placed ── sequence moves ──> placed (the same dispatch goes on)
///   waiting ── a worker comes ──> placed
///   waiting ── resume_timeout ──> ended
///   placed ── last token, stop string ──> ended
///   placed ── its own fault, retry budget spent, two workers died of it ──> ended
///   any ── client gone, deadline, router stops ──> ended
///
/// Entering `ended` sends the one terminal message and drops the dispatch. The object lives on
/// until gRPC and the workers' streams have let go of it. Lock order: this call's, then the
/// router's.
class GenerateCall final : public EventStream<v1::GenerateResponse, grpc::ByteBuffer>,
                           public DispatchOwner,
                           public QueuedRequest,
                           public PatientRequest {
 public:
  GenerateCall(RouterCore* core, grpc::CallbackServerContext* context)
      : core_(core), server_context_(context) {}
  ~GenerateCall() override;

  /// Starts the call. REQUIRES: Open was called.
  void Begin(const grpc::ByteBuffer& request);

 private:
  /// Released without effect.
  static constexpr scheduler::AssignmentId kNoAssignment = ~scheduler::AssignmentId{0};

  // The parts of Begin; an error refuses the request.
  Entry Enter(const v1::GenerateRequest& request);
  Entry Queue(const v1::GenerateRequest& request, const CheckedRequest& checked,
              absl::Time deadline);
  void Refuse(Entry entry);
  // Expects mutex_ to be held.
  Entry CheckInTime() const;

  void OnTurn() override;
  void OnRemoved(scheduler::Refusal why, double retry_after_s) override;
  void OnTick(absl::Time now) override;
  void OnRouterStops() override;
  void OnCancelled() override;
  bool Merge(v1::GenerateResponse& last, v1::GenerateResponse& next) override;

  std::mutex& mutex() override { return mutex_; }
  std::span<const int32_t> Context() const override { return context_; }
  void OnPrefillStarted(double queue_s) override;
  void OnFirstToken(const v1::FirstToken& first) override;
  void OnTokens(std::span<const int32_t> tokens) override;
  void OnDecoded(const v1::DecodeTimings& timings, v1::FinishReason reason) override;
  void OnMoving(const v1::Moving& moving) override;
  void OnLost(const Loss& loss) override;

  // These expect mutex_ to be held.
  scheduler::Placement Wanted() const;
  void NameChunks();
  // Sends what is left of the request to a pair of workers, or waits for one. To workers that have
  // failed it only `again_where_it_failed`.
  void Place(const std::string& reason, bool again_where_it_failed);
  v1::RequestHeader Header() const;
  DispatchOrder Order(const scheduler::Pair& pair) const;
  void PointToChunks(const scheduler::Pair& pair, DispatchOrder& order) const;
  bool IsExcluded(const scheduler::Pair& pair) const;
  void WaitForWorker(const std::string& reason, const absl::Status& status);
  // Takes the loss into account; an error is one that the client must see.
  absl::Status Blame(const Loss& loss);
  // INTERNAL when the request, so it seems, kills workers.
  absl::Status CheckSuspects();
  void CountResumption(const char* cause);
  void Explain(scheduler::Pair& pair, const std::string& reason);
  void Emit(int32_t token);
  void FinishWith(v1::FinishReason reason);
  // Ends with an error; `retry_after` unset: the client must not try again by itself.
  void Fail(const absl::Status& status, std::optional<absl::Duration> retry_after = std::nullopt);
  void FillLast(v1::GenerateResponse& last, v1::FinishReason reason);
  void RecordEnd(absl::StatusCode code, v1::FinishReason reason);
  // Enters `ended`; call before the terminal message is sent.
  void SetEnded();
  uint32_t left() const { return request_.max_tokens - generated_; }
  static absl::Status DeadlinePassed();
  // When a client that has seen nothing yet may try again.
  std::optional<absl::Duration> Again() const;

  std::shared_ptr<GenerateCall> Self() {
    return std::static_pointer_cast<GenerateCall>(shared_from_this());
  }

  RouterCore* const core_;
  grpc::CallbackServerContext* const server_context_;
  const Stopwatch since_arrival_;

  std::mutex mutex_;
  // Guarded by mutex_ once the request is in the queue.
  CheckedRequest request_;
  absl::Time deadline_ = absl::InfiniteFuture();
  bool admitted_ = false, ended_ = false;
  bool described_ = false, its_turn_ = false;
  scheduler::Ticket ticket_ = 0;
  std::optional<uint64_t> logged_;           // its number in the workload log
  std::vector<int32_t> context_;             // prompt and generated tokens
  std::vector<kvstore::ChunkId> chunk_ids_;  // of the prompt; empty: no cached KV is used
  std::optional<TextStream> text_;

  std::shared_ptr<Dispatch> dispatch_;
  uint32_t dispatches_ = 0;
  // While it waits for workers.
  bool waiting_ = false;
  absl::Time not_before_ = absl::InfinitePast();  // to those that have failed it
  absl::Time wait_until_ = absl::InfinitePast();  // infinite past: since the last token it has not
  absl::Duration pause_;
  absl::Status waits_for_;
  std::string wait_reason_;
  // Workers and pairs that failed this request.
  std::vector<std::string> excluded_;
  std::vector<std::pair<std::string, std::string>> excluded_pairs_;
  // Workers that broke while they computed it, and its share of the blame.
  std::vector<std::pair<std::string, double>> suspects_;
  absl::Status last_loss_;
  uint32_t failures_ = 0;  // errors of workers that live on

  uint32_t generated_ = 0;
  double first_token_s_ = 0, last_token_s_ = 0;
  v1::Timings timings_;
  v1::Usage usage_;
  v1::PromptCache prompt_cache_;
};

}  // namespace tandem::server
