#include "server/generate_call.h"

#include <algorithm>
#include <random>
#include <utility>

#include "base/log.h"
#include "base/status.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace tandem::server {
namespace {

/// Of a prompt's chunks; more would hardly help.
constexpr int kMaxHolders = 3;

std::string NewHandoffId() {
  std::random_device random;
  std::string id(16, '\0');
  for (size_t i = 0; i < id.size(); i += 4) {
    const uint32_t word = random();
    std::copy_n(reinterpret_cast<const char*>(&word), 4, &id[i]);
  }
  return id;
}

const char* PhaseWord(v1::Phase phase) { return phase == v1::PHASE_PREFILL ? "prefill" : "decode"; }

const char* FinishWord(v1::FinishReason reason) {
  switch (reason) {
    case v1::FINISH_REASON_STOP:
      return "stop";
    case v1::FINISH_REASON_LENGTH:
      return "length";
    default:
      return "none";
  }
}

/// What a client should see when a worker's stream ends with `status`: a worker that is lost, or
/// that lost its peer, is a passing condition.
absl::Status WorkerFailure(v1::Phase phase, const v1::WorkerInfo& worker,
                           const grpc::Status& status) {
  absl::Status result = FromGrpc(status);
  switch (result.code()) {
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kCancelled:
    case absl::StatusCode::kAborted:
    case absl::StatusCode::kUnknown:
    case absl::StatusCode::kDataLoss:
    case absl::StatusCode::kNotFound:
      return absl::UnavailableError(absl::StrCat(PhaseWord(phase), " worker '", worker.name(),
                                                 "' failed or was lost: ", result.message(),
                                                 "; the request may be sent again"));
    default:
      return Annotate(result, absl::StrCat(PhaseWord(phase), " worker '", worker.name(), "'"));
  }
}

/// RESOURCE_EXHAUSTED with the time to come back: as google.rpc.RetryInfo in the details and as
/// the trailer that gRPC clients obey (gRFC A6).
grpc::Status WithRetryInfo(const absl::Status& status, absl::Duration delay,
                           grpc::CallbackServerContext* context) {
  context->AddTrailingMetadata("grpc-retry-pushback-ms",
                               std::to_string(absl::ToInt64Milliseconds(delay)));
  google::rpc::RetryInfo info;
  info.mutable_retry_delay()->set_seconds(absl::ToInt64Seconds(delay));
  info.mutable_retry_delay()->set_nanos(
      static_cast<int32_t>(absl::ToInt64Nanoseconds(delay) % 1'000'000'000));
  google::rpc::Status details;
  details.set_code(static_cast<int32_t>(status.code()));
  details.set_message(std::string(status.message()));
  details.add_details()->PackFrom(info);
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()),
                      details.SerializeAsString());
}

}  // namespace

GenerateCall::~GenerateCall() { core_->CallGone(); }

void GenerateCall::SetEnded() {
  // Before the client hears of the end: its next request must not be refused because of this one.
  if (!ended_ && admitted_) core_->Leave();
  ended_ = true;
}

void GenerateCall::Begin(const grpc::ByteBuffer& bytes) {
  const RequestLimits limits = core_->Limits();
  auto parsed = ParseGenerateRequest(bytes, limits);
  if (!parsed.ok()) return Refuse(parsed.status(), "invalid");
  if (absl::Status status = core_->Admit(); !status.ok()) return Refuse(status, "");
  {
    std::lock_guard lock(mutex_);
    admitted_ = true;
    if (ended_) return core_->Leave();  // the client has left already
  }
  auto checked = CheckGenerateRequest(*parsed, limits, core_->model());
  if (!checked.ok()) {
    return Refuse(checked.status(), absl::IsPermissionDenied(checked.status()) ? "tenant"
                                    : absl::IsNotFound(checked.status())       ? "model"
                                                                               : "invalid");
  }
  std::lock_guard lock(mutex_);
  if (ended_) return;  // the client has left meanwhile
  request_ = *std::move(checked);
  text_.emplace(core_->shared_model(), request_.stops);
  deadline_ = absl::Now() + request_.timeout;
  if (const auto limit = server_context_->deadline(); limit != limit.max()) {
    deadline_ = std::min(deadline_, absl::FromChrono(limit));
  }
  core_->metrics().RequestStarted(request_.tenant);
  dispatched_ = true;
  if (absl::Status status = Dispatch(); !status.ok()) {
    core_->metrics().Rejected("no_worker");
    Fail(status);
  }
}

void GenerateCall::Refuse(const absl::Status& status, std::string_view reason) {
  if (!reason.empty()) core_->metrics().Rejected(reason);
  spdlog::debug("request refused error=\"{}\"", status.ToString());
  {
    std::lock_guard lock(mutex_);
    SetEnded();
  }
  End(absl::IsResourceExhausted(status)
          ? WithRetryInfo(status, core_->options().retry_after, server_context_)
          : ToGrpc(status));
}

absl::Status GenerateCall::Dispatch() {
  scheduler::Placement placement = {.prompt_tokens = static_cast<uint32_t>(request_.tokens.size()),
                                    .max_tokens = request_.max_tokens,
                                    .kv_floor = request_.kv_floor,
                                    .waited_s = since_arrival_.seconds()};
  if (const auto naming = core_->view().naming();
      naming.chunk_tokens != 0 && !request_.bypass_cache) {
    chunk_ids_ = kvstore::ChunkIds(naming.kv_namespace, request_.tenant, request_.tokens,
                                   naming.chunk_tokens);
    placement.chunk_ids = chunk_ids_;
  }
  ASSIGN_OR_RETURN(pair_, core_->view().Assign(placement, absl::Now()));
  decode_reserved_ = request_.max_tokens > 1;
  auto stub = core_->WorkerStub(pair_.prefill.worker_id());
  if (stub == nullptr) {
    core_->view().ReleasePrefill(pair_.assignment);
    ReleaseReservedDecode();
    return absl::UnavailableError("the chosen prefill worker has just left; try again");
  }
  handoff_id_ = NewHandoffId();
  timings_.set_prefill_worker(pair_.prefill.name());
  timings_.set_decode_worker(pair_.decode.name());
  usage_.set_prompt_tokens(static_cast<uint32_t>(request_.tokens.size()));
  dispatched_s_ = since_arrival_.seconds();
  StartPrefill(std::move(stub));
  return absl::OkStatus();
}

v1::RequestHeader GenerateCall::Header() const {
  v1::RequestHeader header;
  header.set_request_id(request_.request_id);
  header.set_tenant(request_.tenant);
  header.set_attempt(request_.attempt);
  if (deadline_ != absl::InfiniteFuture()) {
    header.set_timeout_s(std::max(1e-3, absl::ToDoubleSeconds(deadline_ - absl::Now())));
  }
  header.set_model_fingerprint(core_->model().fingerprint());
  return header;
}

void GenerateCall::StartPrefill(std::shared_ptr<v1::WorkerService::Stub> stub) {
  v1::PrefillRequest message;
  *message.mutable_header() = Header();
  message.mutable_tokens()->Add(request_.tokens.begin(), request_.tokens.end());
  *message.mutable_sampling() = request_.sampling;
  message.set_max_tokens(request_.max_tokens);
  message.set_handoff_id(handoff_id_);
  message.set_kv_floor(std::string(kvstore::codec::LevelName(request_.kv_floor)));
  message.set_bypass_cache(request_.bypass_cache);
  message.set_ttft_left_s(absl::ToDoubleSeconds(core_->options().ttft_objective) -
                          since_arrival_.seconds());
  PointToChunks(message);
  prefill_ = std::make_shared<WorkerStream<v1::PrefillEvent>>(
      [self = Self()](v1::PrefillEvent& event) { self->OnPrefillEvent(event); },
      [self = Self(), stub](const grpc::Status& status) {
        self->OnWorkerDone(v1::PHASE_PREFILL, status);
      });
  if (deadline_ != absl::InfiniteFuture()) {
    prefill_->context().set_deadline(absl::ToChronoTime(deadline_));
  }
  stub->async()->Prefill(&prefill_->context(), &message, prefill_.get());
  prefill_->Start();
}

void GenerateCall::PointToChunks(v1::PrefillRequest& message) const {
  const v1::WorkerInfo& prefill = pair_.prefill;
  if (prefill.kv_namespace().empty() || chunk_ids_.empty()) return;
  const absl::Time now = absl::Now();
  const auto prefix = core_->directory().Find(chunk_ids_, request_.kv_floor);
  for (const auto& node : prefix.nodes) {
    if (node.worker_id == prefill.worker_id()) continue;
    const std::string address = core_->view().DataAddress(node.worker_id, now);
    if (address.empty()) continue;
    v1::ChunkHolder& holder = *message.add_holders();
    holder.set_data_address(address);
    holder.set_n_chunks(prefix.n_chunks);
    if (message.holders_size() == kMaxHolders) break;
  }
  message.set_store_address(core_->view().StoreFor(chunk_ids_[0].Hash(), now));
}

void GenerateCall::StartDecode() {
  auto stub = core_->WorkerStub(pair_.decode.worker_id());
  if (stub == nullptr) {
    ReleaseReservedDecode();
    return Fail(absl::UnavailableError("the chosen decode worker has just left; try again"));
  }
  v1::DecodeRequest message;
  *message.mutable_header() = Header();
  message.mutable_prompt_tokens()->Add(request_.tokens.begin(), request_.tokens.end());
  *message.mutable_sampling() = request_.sampling;
  message.set_max_tokens(request_.max_tokens);
  message.set_data_address(pair_.prefill.data_address());
  message.set_handoff_id(handoff_id_);
  decode_ = std::make_shared<WorkerStream<v1::DecodeEvent>>(
      [self = Self()](v1::DecodeEvent& event) { self->OnDecodeEvent(event); },
      [self = Self(), stub](const grpc::Status& status) {
        self->OnWorkerDone(v1::PHASE_DECODE, status);
      });
  if (deadline_ != absl::InfiniteFuture()) {
    decode_->context().set_deadline(absl::ToChronoTime(deadline_));
  }
  stub->async()->Decode(&decode_->context(), &message, decode_.get());
  decode_reserved_ = false;  // from here on the stream's end releases it
  core_->view().DecodeBegins(pair_.assignment, absl::Now());
  decode_->Start();
}

void GenerateCall::ReleaseReservedDecode() {
  if (decode_reserved_) core_->view().ReleaseDecode(pair_.assignment);
  decode_reserved_ = false;
}

void GenerateCall::OnPrefillEvent(const v1::PrefillEvent& event) {
  std::lock_guard lock(mutex_);
  if (ended_) return;
  if (event.has_started()) {
    timings_.set_prefill_queue_s(event.started().queue_s());
    if (request_.max_tokens > 1) StartDecode();
  } else if (event.has_first_token()) {
    OnFirstToken(event.first_token());
  }
}

void GenerateCall::OnFirstToken(const v1::FirstToken& first) {
  has_first_token_ = true;
  timings_.set_prefill_s(first.prefill_s());
  prompt_cache_ = first.prompt_cache();
  usage_.set_cached_tokens(prompt_cache_.engine_tokens() + prompt_cache_.memory_tokens() +
                           prompt_cache_.disk_tokens() + prompt_cache_.redis_tokens() +
                           prompt_cache_.peer_tokens());
  prompt_cache_.set_computed_tokens(usage_.prompt_tokens() - usage_.cached_tokens());
  core_->metrics().RouterOverheadSeconds(
      std::max(0.0, since_arrival_.seconds() - timings_.prefill_queue_s() - timings_.prefill_s()));
  if (first.finish_reason() != v1::FINISH_REASON_UNSPECIFIED) {
    FinishWith(first.finish_reason());
    return CancelWorkers();  // the decode worker waits for KV that nobody needs
  }
  Emit(first.token());
  if (ended_) return;
  if (request_.max_tokens == 1) return FinishWith(v1::FINISH_REASON_LENGTH);
  TakeDecoded(early_);
}

void GenerateCall::OnDecodeEvent(v1::DecodeEvent& event) {
  std::lock_guard lock(mutex_);
  if (ended_) return;
  if (!has_first_token_) {
    early_.MergeFrom(event);  // the decode worker's message overtook the prefill worker's
    return;
  }
  TakeDecoded(event);
}

void GenerateCall::TakeDecoded(const v1::DecodeEvent& event) {
  for (const int32_t token : event.tokens()) {
    Emit(token);
    if (ended_) return;
  }
  if (event.finish_reason() == v1::FINISH_REASON_UNSPECIFIED) return;
  timings_.set_decode_queue_s(event.timings().queue_s());
  timings_.set_handoff_s(event.timings().handoff_s());
  timings_.set_decode_s(event.timings().decode_s());
  timings_.set_handoff_bytes(event.timings().handoff_bytes());
  FinishWith(event.finish_reason());
}

void GenerateCall::Emit(int32_t token) {
  last_token_s_ = since_arrival_.seconds();
  v1::GenerateResponse response;
  if (generated_++ == 0) {
    first_token_s_ = last_token_s_;
    response.set_request_id(request_.request_id);
  }
  response.set_text(text_->Append(token));
  response.add_token_ids(token);
  Send(std::move(response));
  if (text_->stopped()) {
    FinishWith(v1::FINISH_REASON_STOP);
    CancelWorkers();
  }
}

void GenerateCall::FinishWith(v1::FinishReason reason) {
  SetEnded();
  core_->view().ObserveOutput(generated_);
  v1::GenerateResponse last;
  FillLast(last, reason);
  RecordEnd(absl::StatusCode::kOk, reason);
  EndWith(std::move(last), grpc::Status::OK);
}

void GenerateCall::FillLast(v1::GenerateResponse& last, v1::FinishReason reason) {
  last.set_request_id(request_.request_id);
  if (!text_->stopped()) last.set_text(text_->Flush());
  last.set_finish_reason(reason);
  usage_.set_generated_tokens(generated_);
  *last.mutable_usage() = usage_;
  timings_.set_ttft_s(first_token_s_);
  if (generated_ > 1) timings_.set_tpot_s((last_token_s_ - first_token_s_) / (generated_ - 1));
  timings_.set_total_s(since_arrival_.seconds());
  *last.mutable_timings() = timings_;
  *last.mutable_prompt_cache() = prompt_cache_;
}

void GenerateCall::Fail(const absl::Status& status) {
  SetEnded();
  RecordEnd(status.code(), v1::FINISH_REASON_UNSPECIFIED);
  // A client may repeat a refused request as it likes only while it has seen nothing of it.
  End(absl::IsResourceExhausted(status) && generated_ == 0
          ? WithRetryInfo(status, core_->options().retry_after, server_context_)
          : ToGrpc(status));
  CancelWorkers();
}

void GenerateCall::RecordEnd(absl::StatusCode code, v1::FinishReason reason) {
  EndedRequest ended{.tenant = request_.tenant,
                     .code = code,
                     .finish = FinishWord(reason),
                     .e2e_s = since_arrival_.seconds(),
                     .prompt_tokens = static_cast<uint32_t>(request_.tokens.size()),
                     .generated_tokens = generated_};
  if (generated_ > 0) ended.ttft_s = first_token_s_;
  if (generated_ > 1) ended.tpot_s = (last_token_s_ - first_token_s_) / (generated_ - 1);
  core_->metrics().RequestEnded(ended);
  if (reason != v1::FINISH_REASON_UNSPECIFIED) {
    core_->metrics().StageSeconds(Stage::kPrefillQueue, timings_.prefill_queue_s());
    core_->metrics().StageSeconds(Stage::kPrefill, timings_.prefill_s());
    if (timings_.handoff_bytes() > 0) {
      core_->metrics().StageSeconds(Stage::kDecodeQueue, timings_.decode_queue_s());
      core_->metrics().StageSeconds(Stage::kHandoff, timings_.handoff_s());
      core_->metrics().StageSeconds(Stage::kDecode, timings_.decode_s());
    }
  }
  spdlog::info(
      "request ended request_id={} tenant={} attempt={} code={} finish={} prompt_tokens={} "
      "generated_tokens={} ttft_s={:.4f} total_s={:.4f} prefill={} decode={}",
      request_.request_id, request_.tenant, request_.attempt, absl::StatusCodeToString(code),
      FinishWord(reason), request_.tokens.size(), generated_, first_token_s_, ended.e2e_s,
      timings_.prefill_worker(), timings_.decode_worker());
}

void GenerateCall::OnWorkerDone(v1::Phase phase, const grpc::Status& status) {
  const bool is_prefill = phase == v1::PHASE_PREFILL;
  const v1::WorkerInfo& worker = is_prefill ? pair_.prefill : pair_.decode;
  std::lock_guard lock(mutex_);
  if (is_prefill) {
    core_->view().ReleasePrefill(pair_.assignment);
    prefill_.reset();
    ReleaseReservedDecode();
  } else {
    core_->view().ReleaseDecode(pair_.assignment);
    decode_.reset();
  }
  // An OK end is expected: of the prefill worker after its token, of the decode worker after a
  // last event that waits for that token.
  const bool answered =
      is_prefill ? has_first_token_ : early_.finish_reason() != v1::FINISH_REASON_UNSPECIFIED;
  if (ended_ || (status.ok() && answered)) return;
  if (status.ok()) {
    return Fail(absl::InternalError(
        absl::StrCat(PhaseWord(phase), " worker '", worker.name(), "' ended without an answer")));
  }
  Fail(WorkerFailure(phase, worker, status));
}

void GenerateCall::OnCancelled() {
  std::lock_guard lock(mutex_);
  if (ended_) return;
  if (!dispatched_) {
    SetEnded();
    return End(grpc::Status::CANCELLED);
  }
  if (absl::Now() >= deadline_) {
    Fail(absl::DeadlineExceededError("the request's deadline has passed"));
  } else {
    Fail(absl::CancelledError("cancelled by the client"));
  }
}

void GenerateCall::CancelWorkers() {
  if (prefill_ != nullptr) prefill_->Cancel();
  if (decode_ != nullptr) decode_->Cancel();
}

bool GenerateCall::Merge(v1::GenerateResponse& last, v1::GenerateResponse& next) {
  // MergeFrom would replace the text instead of adding to it.
  std::string text = std::move(*last.mutable_text());
  text += next.text();
  last.MergeFrom(next);
  last.set_text(std::move(text));
  return true;
}

}  // namespace tandem::server
