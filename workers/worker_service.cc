#include "workers/worker_service.h"

#include <utility>

#include "absl/strings/escaping.h"
#include "base/event_stream.h"
#include "base/log.h"
#include "base/status.h"
#include "kvstore/transfer/handoff_id.h"

namespace tandem::workers {
namespace {

RequestContextPtr MakeContext(const v1::RequestHeader& header) {
  const absl::Time deadline = header.timeout_s() > 0
                                  ? absl::Now() + absl::Seconds(header.timeout_s())
                                  : absl::InfiniteFuture();
  return std::make_shared<RequestContext>(header.request_id(), header.tenant(), header.attempt(),
                                          deadline);
}

/// Logs how a job ended; failures that are not the client's wish are warnings.
void LogEnd(const RequestContext& context, const char* phase, const absl::Status& status) {
  if (status.ok() || absl::IsCancelled(status)) {
    Log(spdlog::level::debug, context, phase, "ended=\"{}\"", status.ToString());
  } else {
    Log(spdlog::level::warn, context, phase, "failed=\"{}\"", status.ToString());
  }
}

/// All but computed_tokens, for which the prompt's length is needed.
void FillOrigins(const PromptOrigins& origins, v1::PromptCache& out) {
  const auto loaded = [&](kvstore::Origin origin) {
    return origins.loaded_tokens[static_cast<size_t>(origin)];
  };
  out.set_engine_tokens(origins.engine_tokens);
  out.set_memory_tokens(loaded(kvstore::Origin::kMemory));
  out.set_disk_tokens(loaded(kvstore::Origin::kDisk));
  out.set_redis_tokens(loaded(kvstore::Origin::kRedis));
  out.set_peer_tokens(loaded(kvstore::Origin::kPeer));
  out.set_level(std::string(kvstore::codec::LevelName(origins.level)));
  out.set_saved_s(origins.saved_s);
}

/// What the request says of cached KV. INVALID_ARGUMENT for a level that does not exist.
absl::StatusOr<CacheWishes> ToCacheWishes(const v1::PrefillRequest& request) {
  CacheWishes wishes;
  if (!request.kv_floor().empty()) {
    ASSIGN_OR_RETURN(wishes.floor, kvstore::codec::ParseLevel(request.kv_floor()));
  }
  wishes.bypass = request.bypass_cache();
  for (const v1::ChunkHolder& holder : request.holders()) {
    wishes.holders.push_back({.address = holder.data_address(),
                              .first_chunk = holder.first_chunk(),
                              .n_chunks = holder.n_chunks()});
  }
  wishes.first_token_due = absl::Now() + absl::Seconds(request.ttft_left_s());
  wishes.store_address = request.store_address();
  return wishes;
}

class PrefillCall final : public EventStream<v1::PrefillEvent>, public PrefillEvents {
 public:
  explicit PrefillCall(RequestContextPtr context) : context_(std::move(context)) {}

  void Started(double queue_s) override {
    v1::PrefillEvent event;
    event.mutable_started()->set_queue_s(queue_s);
    Send(std::move(event));
  }
  void FirstToken(const FirstTokenResult& first) override {
    v1::PrefillEvent event;
    event.mutable_first_token()->set_token(first.token);
    event.mutable_first_token()->set_prefill_s(first.prefill_s);
    if (first.stop) event.mutable_first_token()->set_finish_reason(v1::FINISH_REASON_STOP);
    FillOrigins(first.origins, *event.mutable_first_token()->mutable_prompt_cache());
    stopped_ = first.stop;
    Send(std::move(event));
  }
  void Ended(absl::Status status, uint64_t bytes) override {
    LogEnd(*context_, "prefill", status);
    if (stopped_) status = absl::OkStatus();  // the KV was dropped because nobody needs it
    v1::PrefillEvent event;
    event.mutable_released()->set_bytes(bytes);
    if (status.ok()) {
      EndWith(std::move(event), grpc::Status::OK);
    } else {
      End(ToGrpc(status));
    }
  }

 private:
  void OnCancelled() override { context_->Cancel(absl::CancelledError("cancelled by the router")); }
  const RequestContextPtr context_;
  bool stopped_ = false;
};

void FillTimings(const DecodeTimes& times, v1::DecodeTimings& out) {
  out.set_queue_s(times.queue_s);
  out.set_handoff_s(times.handoff_s);
  out.set_decode_s(times.decode_s);
  out.set_handoff_bytes(times.handoff_bytes);
}

class DecodeCall final : public EventStream<v1::DecodeEvent>, public DecodeEvents {
 public:
  /// `steps`: null when tokens come as this call's events.
  DecodeCall(RequestContextPtr context, std::string data_address, std::shared_ptr<StepStream> steps,
             uint64_t step_sequence)
      : context_(std::move(context)),
        data_address_(std::move(data_address)),
        steps_(std::move(steps)),
        step_sequence_(step_sequence) {}

  void Token(int32_t token) override {
    if (steps_ != nullptr) {
      ++step_tokens_;
      if (steps_->Add(step_sequence_, token)) return;
      return context_->Cancel(absl::UnavailableError("the router's step stream has ended"));
    }
    v1::DecodeEvent event;
    event.add_tokens(token);
    Send(std::move(event));
  }
  void StepEnds() override {
    if (steps_ != nullptr) steps_->Flush();
  }
  void Finished(DecodeFinish reason, const DecodeTimes& times) override {
    LogEnd(*context_, "decode", absl::OkStatus());
    v1::DecodeEvent event = LastEvent(times);
    event.set_finish_reason(reason == DecodeFinish::kStop ? v1::FINISH_REASON_STOP
                                                          : v1::FINISH_REASON_LENGTH);
    EndWith(std::move(event), grpc::Status::OK);
  }
  void Moving(const std::string& handoff_id, const std::string& why,
              const DecodeTimes& times) override {
    v1::DecodeEvent event = LastEvent(times);
    event.mutable_moving()->set_reason(why);
    event.mutable_moving()->set_handoff_id(handoff_id);
    if (!handoff_id.empty()) event.mutable_moving()->set_data_address(data_address_);
    Send(std::move(event));
  }
  void Released(absl::Status status) override {
    LogEnd(*context_, "decode moved", status);
    End(ToGrpc(status));
  }
  void Failed(absl::Status status) override {
    LogEnd(*context_, "decode", status);
    End(ToGrpc(status));
  }

 private:
  /// After all tokens, which have gone when this returns.
  v1::DecodeEvent LastEvent(const DecodeTimes& times) {
    StepEnds();
    v1::DecodeEvent event;
    event.set_step_tokens(step_tokens_);
    FillTimings(times, *event.mutable_timings());
    return event;
  }
  bool Merge(v1::DecodeEvent& last, v1::DecodeEvent& next) override {
    last.MergeFrom(next);
    return true;
  }
  void OnCancelled() override { context_->Cancel(absl::CancelledError("cancelled by the router")); }
  const RequestContextPtr context_;
  const std::string data_address_;
  const std::shared_ptr<StepStream> steps_;
  const uint64_t step_sequence_;
  uint32_t step_tokens_ = 0;
};

}  // namespace

SamplingOptions ToSamplingOptions(const v1::SamplingParams& params) {
  SamplingOptions options;
  if (params.has_temperature()) options.temperature = params.temperature();
  options.top_k = params.top_k();
  if (params.has_top_p()) options.top_p = params.top_p();
  options.min_p = params.min_p();
  if (params.has_repetition_penalty()) options.repetition_penalty = params.repetition_penalty();
  options.frequency_penalty = params.frequency_penalty();
  options.presence_penalty = params.presence_penalty();
  if (params.has_penalty_last_n()) options.penalty_last_n = params.penalty_last_n();
  options.seed = params.seed();
  options.ignore_eos = params.ignore_eos();
  options.stop_token_ids.assign(params.stop_token_ids().begin(), params.stop_token_ids().end());
  return options;
}

absl::Status WorkerServiceImpl::Check(const v1::RequestHeader& header,
                                      const std::string& handoff_id) const {
  if (header.model_fingerprint() != model_fingerprint_) {
    return absl::FailedPreconditionError(
        absl::StrCat("model_fingerprint: the request is for model ",
                     absl::BytesToHexString(header.model_fingerprint()), "; this worker serves ",
                     absl::BytesToHexString(model_fingerprint_)));
  }
  if (handoff_id.size() != kvstore::kHandoffIdBytes) {
    return absl::InvalidArgumentError(absl::StrCat("handoff_id: ", handoff_id.size(),
                                                   " bytes; must be ", kvstore::kHandoffIdBytes));
  }
  return absl::OkStatus();
}

absl::Status WorkerServiceImpl::Submit(const v1::PrefillRequest& request, RequestContextPtr context,
                                       std::shared_ptr<PrefillEvents> events) {
  RETURN_IF_ERROR(Check(request.header(), request.handoff_id()));
  ASSIGN_OR_RETURN(CacheWishes cache, ToCacheWishes(request));
  ASSIGN_OR_RETURN(const std::shared_ptr<PrefillLoop> loop, loops_->Prefill());
  return loop->Submit({.context = std::move(context),
                       .tokens = {request.tokens().begin(), request.tokens().end()},
                       .sampling = ToSamplingOptions(request.sampling()),
                       .max_tokens = request.max_tokens(),
                       .handoff_id = request.handoff_id(),
                       .cache = std::move(cache),
                       .id = request.job_id(),
                       .tenant_weight = request.tenant_weight() > 0 ? request.tenant_weight() : 1,
                       .can_move = request.header().dispatch() > 0,
                       .events = std::move(events)});
}

absl::Status WorkerServiceImpl::Submit(const v1::DecodeRequest& request, RequestContextPtr context,
                                       std::shared_ptr<DecodeEvents> events) {
  RETURN_IF_ERROR(Check(request.header(), request.handoff_id()));
  const absl::StatusOr<std::shared_ptr<DecodeLoop>> loop = loops_->Decode();
  if (!loop.ok() && request.header().dispatch() > 0) {
    // The router did not know yet. Nothing has failed: the KV is where it was.
    events->Moving("", std::string(loop.status().message()), {});
    events->Released(absl::OkStatus());
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(loop.status());
  return (*loop)->Submit(
      {.context = std::move(context),
       .prompt_tokens = {request.prompt_tokens().begin(), request.prompt_tokens().end()},
       .sampling = ToSamplingOptions(request.sampling()),
       .max_tokens = request.max_tokens(),
       .data_address = request.data_address(),
       .handoff_id = request.handoff_id(),
       .id = request.job_id(),
       .can_move = request.header().dispatch() > 0,
       .events = std::move(events)});
}

grpc::ServerWriteReactor<v1::PrefillEvent>* WorkerServiceImpl::Prefill(
    grpc::CallbackServerContext*, const v1::PrefillRequest* request) {
  const RequestContextPtr context = MakeContext(request->header());
  auto call = std::make_shared<PrefillCall>(context);
  call->Open();
  if (absl::Status status = Submit(*request, context, call); !status.ok()) {
    LogEnd(*context, "prefill", status);
    call->End(ToGrpc(status));
  }
  return call.get();
}

grpc::ServerWriteReactor<v1::DecodeEvent>* WorkerServiceImpl::Decode(
    grpc::CallbackServerContext*, const v1::DecodeRequest* request) {
  const RequestContextPtr context = MakeContext(request->header());
  auto call =
      std::make_shared<DecodeCall>(context, loops_->data_address(),
                                   steps_.Find(request->step_stream()), request->step_sequence());
  call->Open();
  if (absl::Status status = Submit(*request, context, call); !status.ok()) {
    LogEnd(*context, "decode", status);
    call->End(ToGrpc(status));
  }
  return call.get();
}

grpc::ServerWriteReactor<v1::StepTokens>* WorkerServiceImpl::Steps(
    grpc::CallbackServerContext*, const v1::StepsRequest* request) {
  return steps_.Open(request->step_stream());
}

}  // namespace tandem::workers
