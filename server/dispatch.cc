#include "server/dispatch.h"

#include <algorithm>
#include <type_traits>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "kvstore/transfer/handoff_id.h"
#include "server/router.h"

namespace tandem::server {
namespace {

/// The worker is well and does not want the sequence: it has another phase, or will have.
bool GivenBack(const grpc::Status& status) {
  const std::string& message = status.error_message();
  return absl::StartsWith(message, "moved: ") ||
         absl::StrContains(message, "this worker's phase is ") ||
         absl::StrContains(message, "the worker is shutting down");
}

}  // namespace

Dispatch::Dispatch(RouterCore* core, std::shared_ptr<DispatchOwner> owner, DispatchOrder order,
                   scheduler::Pair pair)
    : core_(core),
      owner_(std::move(owner)),
      order_(std::move(order)),
      pair_(std::move(pair)),
      reserved_(order_.max_tokens > 1),
      data_address_(pair_.prefill.data_address()),
      handoff_id_(kvstore::NewHandoffId()),
      prompt_tokens_(owner_->Context().size()),
      max_tokens_(order_.max_tokens) {}

Dispatch::~Dispatch() { core_->steps().Remove(step_sequence_); }

/// Makes the leg's stream, and counts it as one of the worker's. The callbacks hold this object.
template <typename Event>
void Dispatch::Open(Leg<Event>& leg, void (Dispatch::*on_event)(const WorkerStream<Event>*, Event&),
                    void (Dispatch::*on_done)(Leg<Event>, const grpc::Status&)) {
  using Stream = WorkerStream<Event>;
  // The stream does not keep itself: it hands itself out while it runs.
  auto own = std::make_shared<Leg<Event>>();
  leg.stream = std::make_shared<Stream>(
      [self = shared_from_this(), own, on_event](Event& event) {
        std::lock_guard lock(self->owner_->mutex());
        ((*self).*on_event)(own->stream.get(), event);
      },
      [self = shared_from_this(), own, on_done](const grpc::Status& status) {
        {
          std::lock_guard lock(self->owner_->mutex());
          ((*self).*on_done)(*own, status);
        }
        self->core_->streams().Remove(own->worker.worker_id(), own->open_id);
        own->stream.reset();
      });
  leg.open_id = core_->streams().Add(
      leg.worker.worker_id(),
      [weak = weak_from_this(), id = leg.worker.worker_id()](const std::string& reason) {
        const auto self = weak.lock();
        if (self == nullptr) return;
        std::lock_guard lock(self->owner_->mutex());
        self->OnWorkerLost(id, reason);
      });
  if (order_.deadline != absl::InfiniteFuture()) {
    leg.stream->context().set_deadline(absl::ToChronoTime(order_.deadline));
  }
  *own = leg;
}

bool Dispatch::Start() {
  auto stub = core_->WorkerStub(pair_.prefill.worker_id());
  if (stub == nullptr) {
    core_->view().ReleasePrefill(pair_.assignment);
    ReleaseReserved();
    return false;
  }
  v1::PrefillRequest message;
  *message.mutable_header() = order_.header;
  const auto context = owner_->Context();
  message.mutable_tokens()->Add(context.begin(), context.end());
  *message.mutable_sampling() = order_.sampling;
  message.set_max_tokens(order_.max_tokens);
  message.set_resumed_tokens(order_.resumed_tokens);
  message.set_handoff_id(handoff_id_);
  message.set_kv_floor(order_.kv_floor);
  message.set_bypass_cache(order_.bypass_cache);
  message.set_ttft_left_s(order_.ttft_left_s);
  message.mutable_holders()->Add(order_.holders.begin(), order_.holders.end());
  message.set_store_address(order_.store_address);
  message.set_tenant_weight(order_.tenant_weight);
  message.set_job_id(pair_.job_id);
  prefill_ = {.worker = pair_.prefill, .assignment = pair_.assignment};
  Open(prefill_, &Dispatch::OnPrefillEvent, &Dispatch::OnPrefillDone);
  stub->async()->Prefill(&prefill_.stream->context(), &message, prefill_.stream.get());
  prefill_.stream->Start(std::move(stub));
  return true;
}

bool Dispatch::StartDecode() {
  auto stub = core_->WorkerStub(pair_.decode.worker_id());
  if (stub == nullptr) {
    ReleaseReserved();
    return false;
  }
  v1::DecodeRequest message;
  *message.mutable_header() = order_.header;
  const auto prompt = owner_->Context().first(prompt_tokens_);
  message.mutable_prompt_tokens()->Add(prompt.begin(), prompt.end());
  *message.mutable_sampling() = order_.sampling;
  message.set_max_tokens(max_tokens_);
  message.set_data_address(data_address_);
  message.set_handoff_id(handoff_id_);
  message.set_job_id(pair_.job_id);
  core_->steps().Remove(step_sequence_);
  StepStreams::Place steps = core_->steps().Add(pair_.decode.worker_id(), stub, weak_from_this());
  message.set_step_stream(std::move(steps.step_stream));
  message.set_step_sequence(steps.sequence);
  step_sequence_ = steps.sequence;
  step_tokens_ = 0;
  steps_broken_ = false;
  last_event_.reset();
  decode_ = {.worker = pair_.decode, .assignment = pair_.assignment};
  Open(decode_, &Dispatch::OnDecodeEvent, &Dispatch::OnDecodeDone);
  reserved_ = false;  // from here on the stream's end releases it
  decoded_ = false;
  core_->view().DecodeBegins(pair_.assignment, absl::Now());
  stub->async()->Decode(&decode_.stream->context(), &message, decode_.stream.get());
  decode_.stream->Start(std::move(stub));
  return true;
}

bool Dispatch::DecodeAt(scheduler::Pair pair, uint32_t number) {
  pair_ = std::move(pair);
  reserved_ = true;
  order_.header.set_dispatch(number);
  return StartDecode();
}

void Dispatch::Drop() {
  if (dropped_) return;
  dropped_ = true;
  ReleaseReserved();
  if (ends_by_itself_) return;
  if (prefill_.stream != nullptr) prefill_.stream->Cancel();
  if (decode_.stream != nullptr) decode_.stream->Cancel();
  for (const DecodeLeg& leg : leaving_) leg.stream->Cancel();
}

void Dispatch::ReleaseReserved() {
  if (reserved_) core_->view().ReleaseDecode(pair_.assignment);
  reserved_ = false;
}

void Dispatch::OnPrefillEvent(const WorkerStream<v1::PrefillEvent>*, v1::PrefillEvent& event) {
  if (over()) return;
  if (event.has_started()) {
    started_ = true;
    owner_->OnPrefillStarted(event.started().queue_s());
    if (order_.max_tokens > 1 && !StartDecode()) {
      Lose(LossCause::kLost, v1::PHASE_DECODE, pair_.decode,
           absl::UnavailableError("it has just left"));
    }
    return;
  }
  if (!event.has_first_token() || has_first_token_) return;
  has_first_token_ = true;
  core_->view().PromptComputed(pair_.assignment, absl::Now());
  core_->PrefillDone();
  const v1::FirstToken& first = event.first_token();
  // Then there is nothing to decode; a decode worker may wait for KV that nobody needs.
  ends_by_itself_ = order_.max_tokens == 1;
  done_ = ends_by_itself_ || first.finish_reason() != v1::FINISH_REASON_UNSPECIFIED;
  owner_->OnFirstToken(first);
  if (over()) return;
  TakeDecoded(std::exchange(early_, {}));
}

void Dispatch::OnDecodeEvent(const WorkerStream<v1::DecodeEvent>* stream, v1::DecodeEvent& event) {
  if (over() || stream != decode_.stream.get()) return;
  if (event.step_tokens() <= step_tokens_) return Accept(event);
  last_event_ = std::move(event);
  if (steps_broken_) LoseTokens();
}

void Dispatch::OnStepToken(uint64_t sequence, int32_t token) {
  std::lock_guard lock(owner_->mutex());
  if (over() || sequence != step_sequence_) return;
  ++step_tokens_;
  v1::DecodeEvent event;
  event.add_tokens(token);
  Accept(event);
  if (over() || !last_event_ || last_event_->step_tokens() > step_tokens_) return;
  Accept(*std::exchange(last_event_, std::nullopt));
}

void Dispatch::OnStepsBroken(uint64_t sequence) {
  std::lock_guard lock(owner_->mutex());
  if (over() || sequence != step_sequence_) return;
  steps_broken_ = true;
  if (last_event_) LoseTokens();
}

void Dispatch::LoseTokens() {
  Lose(LossCause::kBroken, v1::PHASE_DECODE, pair_.decode,
       absl::UnavailableError("its step stream ended before all tokens had come"));
}

void Dispatch::Accept(const v1::DecodeEvent& event) {
  // The decode worker's message overtook the prefill worker's; but what was never pulled can move.
  const bool can_wait = !event.has_moving() || !event.moving().handoff_id().empty();
  if (!has_first_token_ && can_wait) return early_.MergeFrom(event);
  TakeDecoded(event);
}

void Dispatch::TakeDecoded(const v1::DecodeEvent& event) {
  if (event.tokens_size() > 0) {
    decoded_ = true;
    owner_->OnTokens({event.tokens().data(), static_cast<size_t>(event.tokens_size())});
    if (over()) return;
  }
  if (event.finish_reason() != v1::FINISH_REASON_UNSPECIFIED) {
    done_ = ends_by_itself_ = true;
    return owner_->OnDecoded(event.timings(), event.finish_reason());
  }
  if (!event.has_moving()) return;
  if (const v1::Moving& moving = event.moving(); !moving.handoff_id().empty()) {
    const size_t context = owner_->Context().size();
    // The last token comes with the KV; it is as the first one was.
    max_tokens_ -= static_cast<uint32_t>(context - 1 - prompt_tokens_);
    prompt_tokens_ = context - 1;
    data_address_ = moving.data_address();
    handoff_id_ = moving.handoff_id();
  }
  if (decode_.stream != nullptr) leaving_.push_back(std::exchange(decode_, {}));
  owner_->OnMoving(event.moving());
}

void Dispatch::OnPrefillDone(PrefillLeg leg, const grpc::Status& status) {
  core_->view().ReleasePrefill(leg.assignment);
  prefill_ = {};
  if (over() || decoded_ || (status.ok() && has_first_token_)) return;
  // The KV has moved on: it is pulled from another worker now.
  if (has_first_token_ && data_address_ != leg.worker.data_address()) return;
  absl::Status result =
      status.ok() ? absl::InternalError("it ended without an answer") : FromGrpc(status);
  Lose(has_first_token_ ? LossCause::kHandoff : LossCause::kBroken, v1::PHASE_PREFILL, leg.worker,
       std::move(result));
}

void Dispatch::OnDecodeDone(DecodeLeg leg, const grpc::Status& status) {
  core_->view().ReleaseDecode(leg.assignment);
  std::erase_if(leaving_, [&](const DecodeLeg& each) { return each.stream == leg.stream; });
  const bool current = decode_.stream == leg.stream;
  if (current) decode_ = {};
  // An answer that waits for the first token's message, or for other tokens, is one.
  const bool answered = early_.finish_reason() != v1::FINISH_REASON_UNSPECIFIED || last_event_;
  if (over() || !current || (status.ok() && answered)) return;
  absl::Status result =
      status.ok() ? absl::InternalError("it ended without an answer") : FromGrpc(status);
  const bool has_kv = decoded_ || early_.tokens_size() > 0;
  Lose(has_kv ? LossCause::kBroken : LossCause::kHandoff, v1::PHASE_DECODE, leg.worker,
       std::move(result));
}

void Dispatch::OnWorkerLost(const std::string& worker_id, const std::string& reason) {
  if (dropped_) return;
  const bool prefill = prefill_.stream != nullptr && prefill_.worker.worker_id() == worker_id;
  const bool decode = decode_.stream != nullptr && decode_.worker.worker_id() == worker_id;
  bool kv_holder = prefill;
  v1::WorkerInfo worker = decode ? decode_.worker : prefill_.worker;
  for (const DecodeLeg& leg : leaving_) {
    if (leg.worker.worker_id() != worker_id) continue;
    leg.stream->Cancel();
    worker = leg.worker;
    kv_holder = true;
  }
  if (prefill) prefill_.stream->Cancel();
  if (decode) decode_.stream->Cancel();
  if (done_ || !(decode || (kv_holder && !decoded_))) return;
  Lose(LossCause::kLost, decode ? v1::PHASE_DECODE : v1::PHASE_PREFILL, worker,
       absl::UnavailableError(reason));
}

void Dispatch::Lose(LossCause cause, v1::Phase phase, const v1::WorkerInfo& worker,
                    absl::Status status) {
  if (absl::IsResourceExhausted(status)) cause = LossCause::kRefused;
  if (GivenBack(ToGrpc(status))) cause = LossCause::kGivenBack;
  const bool computing = phase == v1::PHASE_PREFILL ? started_ && !has_first_token_ : decoded_;
  owner_->OnLost({.cause = cause,
                  .phase = phase,
                  .worker = worker,
                  .status = std::move(status),
                  .computing = computing});
}

}  // namespace tandem::server
