#include "server/generate_call.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/log.h"
#include "base/status.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace tandem::server {
namespace {

/// Of a prompt's chunks; more would hardly help.
constexpr int kMaxHolders = 3;
/// Bytes of a prompt for a token, before it is tokenised.
constexpr uint32_t kBytesPerToken = 4;
/// A generated token's work, and how many are expected of a request at most, for the queue.
constexpr uint32_t kExpectedTokens = 256;
/// Pauses before a worker that has failed this request gets it again.
constexpr absl::Duration kFirstPause = absl::Milliseconds(100), kLongestPause = absl::Seconds(2);
/// Errors of workers that live on after which the request itself must be the cause.
constexpr uint32_t kMaxFailures = 3;

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

/// For the metric, and in `tandem explain`.
const char* CauseWord(LossCause cause) {
  switch (cause) {
    case LossCause::kLost:
      return "lost";
    case LossCause::kBroken:
      return "broken";
    case LossCause::kHandoff:
      return "handoff";
    case LossCause::kRefused:
      return "refused";
    case LossCause::kGivenBack:
      return "given_back";
  }
  return "";
}

/// What a client should see when the request ends because of this loss: a worker that is lost, or
/// that lost its peer, is a passing condition.
absl::Status WorkerFailure(const Loss& loss) {
  const std::string worker =
      absl::StrCat(PhaseWord(loss.phase), " worker '", loss.worker.name(), "'");
  switch (loss.status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kInternal:
      return Annotate(loss.status, worker);
    default:
      return absl::UnavailableError(
          absl::StrCat(worker, " failed or was lost: ", loss.status.message()));
  }
}

/// The status with the time to come back: as google.rpc.RetryInfo in the details and as the trailer
/// that gRPC clients obey (gRFC A6). Without a time: they must not try again by themselves.
grpc::Status WithPushback(const absl::Status& status, std::optional<absl::Duration> retry_after,
                          grpc::CallbackServerContext* context) {
  if (!retry_after) {
    context->AddTrailingMetadata("grpc-retry-pushback-ms", "-1");
    return ToGrpc(status);
  }
  const absl::Duration delay = *retry_after;
  context->AddTrailingMetadata("grpc-retry-pushback-ms",
                               std::to_string(absl::ToInt64Milliseconds(delay)));
  google::rpc::RetryInfo info;
  info.mutable_retry_delay()->set_seconds(absl::ToInt64Seconds(delay));
  info.mutable_retry_delay()->set_nanos(
      static_cast<int32_t>(absl::ToInt64Nanoseconds(delay % absl::Seconds(1))));
  google::rpc::Status details;
  details.set_code(static_cast<int32_t>(status.code()));
  details.set_message(std::string(status.message()));
  details.add_details()->PackFrom(info);
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()),
                      details.SerializeAsString());
}

/// Codes upon which clients try again, unless they are told when, or not to.
bool Retryable(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsResourceExhausted(status) ||
         absl::IsInternal(status);
}

template <typename T>
void AddOnce(std::vector<T>& list, T value) {
  if (std::find(list.begin(), list.end(), value) == list.end()) list.push_back(std::move(value));
}

}  // namespace

GenerateCall::~GenerateCall() { core_->CallGone(this); }

// The way in

void GenerateCall::Begin(const grpc::ByteBuffer& bytes) {
  core_->CallBegins(this, Self());
  // The cheap refusals come first: under overload they are most of what there is to do.
  if (Entry entry = core_->Admit(); !entry.status.ok()) return Refuse(std::move(entry));
  auto parsed = ParseGenerateRequest(bytes, core_->Limits());
  if (!parsed.ok()) return Refuse({.status = parsed.status(), .reason = "invalid"});
  if (Entry entry = Enter(*parsed); !entry.status.ok()) return Refuse(std::move(entry));
  core_->queue().Pump();
}

/// Into the queue.
Entry GenerateCall::Enter(const v1::GenerateRequest& request) {
  const RequestLimits limits = core_->Limits();
  auto checked = CheckGenerateRequest(request, limits, core_->model());
  if (!checked.ok()) {
    return {.status = checked.status(),
            .reason = absl::IsPermissionDenied(checked.status()) ? "tenant"
                      : absl::IsNotFound(checked.status())       ? "model"
                                                                 : "invalid"};
  }
  absl::Time deadline = absl::Now() + checked->timeout;
  if (const auto limit = server_context_->deadline(); limit != limit.max()) {
    deadline = std::min(deadline, absl::FromChrono(limit));
  }
  if (Entry entry = Queue(request, *checked, deadline); !entry.status.ok()) return entry;
  // Let in, by an estimate. Tokenising a long prompt takes longer than refusing it.
  if (absl::Status status = TokenizePrompt(request, limits, core_->model(), *checked);
      !status.ok()) {
    return {.status = status, .reason = "invalid"};
  }
  std::lock_guard lock(mutex_);
  if (ended_) return {};  // the client has left meanwhile
  request_ = *std::move(checked);
  context_ = std::move(request_.tokens);
  usage_.set_prompt_tokens(static_cast<uint32_t>(context_.size()));
  logged_ = core_->workload().Arrived(usage_.prompt_tokens(), absl::Now());
  text_.emplace(core_->shared_model(), request_.stops);
  NameChunks();
  if (Entry entry = CheckInTime(); !entry.status.ok()) return entry;
  core_->queue().Describe(ticket_, Wanted(), chunk_ids_);
  described_ = true;
  if (its_turn_) Place("new", true);
  return {};
}

/// Whether the first token can come in time, were the request the only one in the queue.
Entry GenerateCall::CheckInTime() const {
  const absl::Time now = absl::Now();
  const auto forecast = core_->view().Predict(Wanted(), now);
  double limit_s = absl::ToDoubleSeconds(deadline_ - now);
  if (const absl::Duration most = core_->options().max_ttft; most > absl::ZeroDuration()) {
    limit_s = std::min(limit_s, absl::ToDoubleSeconds(most));
  }
  if (!forecast.ok()) return {};
  const double ttft_s = core_->queue().PredictFirstToken(request_.tenant, *forecast);
  if (ttft_s <= limit_s) return {};
  return {.status = absl::ResourceExhaustedError(
              absl::StrFormat("the first token would take about %.2f s, the limit is %.2f s",
                              ttft_s, std::max(0.0, limit_s))),
          .reason = "too_late",
          .retry_after = absl::Seconds(core_->queue().RetryAfter())};
}

/// Into the router's queue, before the prompt is tokenised.
Entry GenerateCall::Queue(const v1::GenerateRequest& request, const CheckedRequest& checked,
                          absl::Time deadline) {
  const uint64_t prompt_tokens =
      request.has_prompt_tokens() ? static_cast<uint64_t>(request.prompt_tokens().ids_size())
                                  : (request.prompt().size() + kBytesPerToken - 1) / kBytesPerToken;
  const auto n_prompt =
      static_cast<uint32_t>(std::min<uint64_t>(prompt_tokens, core_->Limits().context_tokens));
  const uint32_t n_output =
      std::min(kExpectedTokens, request.max_tokens() == 0 ? kExpectedTokens : request.max_tokens());
  const absl::Time now = absl::Now();
  // Of a prompt that may be cached the wait alone is certain, as long as it is not tokenised.
  const bool may_be_cached = !checked.bypass_cache && core_->directory().size() > 0;
  const auto forecast = core_->view().Predict(
      {.prompt_tokens = may_be_cached ? 1 : n_prompt, .max_tokens = n_output}, now);
  if (!core_->queue().MayBeServed(forecast.ok(), now)) {
    return {.status = forecast.status(),
            .reason = "no_worker",
            .retry_after = core_->options().retry_after};
  }
  scheduler::Arrival arrival = {.tenant = checked.tenant,
                                .priority = checked.priority,
                                .work_tokens = static_cast<double>(n_prompt + n_output)};
  if (forecast.ok()) arrival.ttft = TtftOf(*forecast);
  if (deadline != absl::InfiniteFuture()) {
    arrival.deadline_s = absl::ToDoubleSeconds(deadline - absl::UnixEpoch());
  }
  std::lock_guard lock(mutex_);
  if (ended_) return {};  // the client has left already
  const scheduler::Admitted admitted = core_->queue().Enqueue(Self(), arrival);
  if (admitted.ticket == 0) {
    Entry entry = {.status = admitted.status,
                   .reason = scheduler::RefusalWord(admitted.refusal),
                   .retry_after = absl::Seconds(admitted.retry_after_s)};
    if (admitted.refusal == scheduler::Refusal::kQueueFull) entry.status = core_->QueueFull();
    return entry;
  }
  ticket_ = admitted.ticket;
  deadline_ = deadline;
  request_.request_id = checked.request_id;
  request_.tenant = checked.tenant;
  request_.attempt = checked.attempt;
  admitted_ = true;
  core_->Enter();
  core_->metrics().RequestStarted(request_.tenant);
  return {};
}

void GenerateCall::Refuse(Entry entry) {
  std::lock_guard lock(mutex_);
  if (ended_) return;
  core_->metrics().Rejected(entry.reason);
  spdlog::debug("request refused error=\"{}\"", entry.status.ToString());
  if (admitted_) return Fail(entry.status, entry.retry_after);
  ended_ = true;
  End(Retryable(entry.status) ? WithPushback(entry.status, entry.retry_after, server_context_)
                              : ToGrpc(entry.status));
}

void GenerateCall::OnTurn() {
  std::lock_guard lock(mutex_);
  if (ended_) return;
  its_turn_ = true;
  if (described_) Place("new", true);
}

void GenerateCall::OnRemoved(scheduler::Refusal why, double retry_after_s) {
  std::lock_guard lock(mutex_);
  if (ended_) return;
  if (why == scheduler::Refusal::kTooLate) {
    return Fail(absl::DeadlineExceededError(
        "the request's deadline has passed while it waited for its turn"));
  }
  core_->metrics().Rejected(scheduler::RefusalWord(why));
  Fail(absl::ResourceExhaustedError(
           "the request had to make room in the queue for one of a tenant that has less there"),
       absl::Seconds(retry_after_s));
}

// To the workers

void GenerateCall::NameChunks() {
  chunk_ids_.clear();
  if (request_.bypass_cache) return;
  const scheduler::ChunkNaming naming = core_->view().naming();
  if (naming.chunk_tokens == 0) return;
  chunk_ids_ =
      kvstore::ChunkIds(naming.kv_namespace, request_.tenant, context_, naming.chunk_tokens);
}

scheduler::Placement GenerateCall::Wanted() const {
  return {.prompt_tokens = static_cast<uint32_t>(context_.size()),
          .max_tokens = left(),
          .chunk_ids = chunk_ids_,
          .kv_floor = request_.kv_floor,
          .excluded = excluded_,
          .excluded_pairs = excluded_pairs_,
          .waited_s = generated_ == 0 ? since_arrival_.seconds() : 0};
}

bool GenerateCall::IsExcluded(const scheduler::Pair& pair) const {
  const auto excluded = [this](const v1::WorkerInfo& worker) {
    return std::find(excluded_.begin(), excluded_.end(), worker.worker_id()) != excluded_.end();
  };
  const std::pair ids(pair.prefill.worker_id(), pair.decode.worker_id());
  return excluded(pair.prefill) || excluded(pair.decode) ||
         std::find(excluded_pairs_.begin(), excluded_pairs_.end(), ids) != excluded_pairs_.end();
}

void GenerateCall::Place(const std::string& reason, bool again_where_it_failed) {
  waiting_ = false;
  if (absl::Status status = CheckSuspects(); !status.ok()) return Fail(status);
  auto pair = core_->view().Assign(Wanted(), absl::Now());
  if (!pair.ok() && dispatches_ == 0 && !core_->queue().MayBeServed(false, absl::Now())) {
    core_->metrics().Rejected("no_worker");
    return Fail(pair.status(), core_->options().retry_after);
  }
  if (!pair.ok()) return WaitForWorker(reason, pair.status());
  if (!again_where_it_failed && IsExcluded(*pair)) {
    core_->view().ReleasePrefill(pair->assignment);
    core_->view().ReleaseDecode(pair->assignment);
    // Every worker's queue is full: the client may be patient, it has seen nothing yet.
    if (absl::IsResourceExhausted(last_loss_) && generated_ == 0) {
      core_->metrics().Rejected("queue_full");
      return Fail(last_loss_, absl::Seconds(core_->queue().RetryAfter()));
    }
    return WaitForWorker(reason, last_loss_);
  }
  ++dispatches_;
  if (dispatches_ == 1) timings_.set_router_queue_s(since_arrival_.seconds());
  Explain(*pair, reason);
  timings_.set_prefill_worker(pair->prefill.name());
  timings_.set_decode_worker(pair->decode.name());
  DispatchOrder order = Order(*pair);
  dispatch_ = std::make_shared<Dispatch>(core_, Self(), std::move(order), *std::move(pair));
  if (dispatch_->Start()) return;
  dispatch_->Drop();
  dispatch_.reset();
  WaitForWorker(reason, absl::UnavailableError("the chosen prefill worker has just left"));
}

v1::RequestHeader GenerateCall::Header() const {
  v1::RequestHeader header;
  header.set_request_id(request_.request_id);
  header.set_tenant(request_.tenant);
  header.set_attempt(request_.attempt);
  header.set_dispatch(dispatches_);
  if (deadline_ != absl::InfiniteFuture()) {
    header.set_timeout_s(std::max(1e-3, absl::ToDoubleSeconds(deadline_ - absl::Now())));
  }
  header.set_model_fingerprint(core_->model().fingerprint());
  return header;
}

DispatchOrder GenerateCall::Order(const scheduler::Pair& pair) const {
  DispatchOrder order = {.header = Header(),
                         .sampling = request_.sampling,
                         .max_tokens = left(),
                         .resumed_tokens = generated_,
                         .kv_floor = std::string(kvstore::codec::LevelName(request_.kv_floor)),
                         .bypass_cache = request_.bypass_cache,
                         .ttft_left_s = absl::ToDoubleSeconds(core_->options().ttft_objective) -
                                        (generated_ == 0 ? since_arrival_.seconds() : 0),
                         .tenant_weight = core_->queue().Weight(request_.tenant),
                         .deadline = deadline_};
  PointToChunks(pair, order);
  return order;
}

/// Tells the prefill worker who holds the prompt's chunks, and who should keep new ones.
void GenerateCall::PointToChunks(const scheduler::Pair& pair, DispatchOrder& order) const {
  if (pair.prefill.kv_namespace().empty() || chunk_ids_.empty()) return;
  const absl::Time now = absl::Now();
  const auto prefix = core_->directory().Find(chunk_ids_, request_.kv_floor);
  for (const auto& node : prefix.nodes) {
    if (node.worker_id == pair.prefill.worker_id()) continue;
    const std::string address = core_->view().DataAddress(node.worker_id, now);
    if (address.empty()) continue;
    v1::ChunkHolder& holder = order.holders.emplace_back();
    holder.set_data_address(address);
    holder.set_n_chunks(prefix.n_chunks);
    if (order.holders.size() == kMaxHolders) break;
  }
  order.store_address = core_->view().StoreFor(chunk_ids_[0].Hash(), now);
}

void GenerateCall::Explain(scheduler::Pair& pair, const std::string& reason) {
  pair.decision.set_dispatch(dispatches_);
  pair.decision.set_reason(reason);
  pair.decision.set_queued_s(timings_.router_queue_s());
  spdlog::debug(
      "dispatched request_id={} dispatch={} reason=\"{}\" prefill={} decode={} ttft_s={:.4f} "
      "tpot_s={:.4f} candidates={}",
      request_.request_id, dispatches_, reason, pair.prefill.name(), pair.decode.name(),
      pair.ttft_s, pair.tpot_s, pair.decision.candidates_size());
  core_->decisions().Add(request_.request_id, pair.decision, absl::Now());
}

// What comes back

void GenerateCall::OnPrefillStarted(double queue_s) {
  timings_.set_prefill_queue_s(timings_.prefill_queue_s() + queue_s);
}

void GenerateCall::OnFirstToken(const v1::FirstToken& first) {
  timings_.set_prefill_s(timings_.prefill_s() + first.prefill_s());
  core_->queue().Prefilled(ticket_);
  if (generated_ == 0) {
    prompt_cache_ = first.prompt_cache();
    usage_.set_cached_tokens(prompt_cache_.engine_tokens() + prompt_cache_.memory_tokens() +
                             prompt_cache_.disk_tokens() + prompt_cache_.redis_tokens() +
                             prompt_cache_.peer_tokens());
    prompt_cache_.set_computed_tokens(usage_.prompt_tokens() - usage_.cached_tokens());
  }
  if (dispatches_ == 1) {
    core_->metrics().RouterOverheadSeconds(
        std::max(0.0, since_arrival_.seconds() - timings_.router_queue_s() -
                          timings_.prefill_queue_s() - timings_.prefill_s()));
  }
  if (first.finish_reason() != v1::FINISH_REASON_UNSPECIFIED) {
    return FinishWith(first.finish_reason());
  }
  Emit(first.token());
  if (!ended_ && left() == 0) FinishWith(v1::FINISH_REASON_LENGTH);
}

void GenerateCall::OnTokens(std::span<const int32_t> tokens) {
  for (const int32_t token : tokens) {
    Emit(token);
    if (ended_) return;
  }
}

void GenerateCall::OnDecoded(const v1::DecodeTimings& timings, v1::FinishReason reason) {
  timings_.set_decode_queue_s(timings.queue_s());
  timings_.set_handoff_s(timings.handoff_s());
  timings_.set_decode_s(timings.decode_s());
  timings_.set_handoff_bytes(timings.handoff_bytes());
  FinishWith(reason);
}

void GenerateCall::Emit(int32_t token) {
  last_token_s_ = since_arrival_.seconds();
  v1::GenerateResponse response;
  if (generated_++ == 0) {
    first_token_s_ = last_token_s_;
    response.set_request_id(request_.request_id);
  }
  context_.push_back(token);
  wait_until_ = absl::InfinitePast();
  response.set_text(text_->Append(token));
  response.add_token_ids(token);
  Send(std::move(response));
  if (text_->stopped()) FinishWith(v1::FINISH_REASON_STOP);
}

void GenerateCall::OnMoving(const v1::Moving& moving) {
  scheduler::Placement what = Wanted();
  what.kv_address = dispatch_->data_address();
  const v1::WorkerInfo from = dispatch_->pair().decode;
  what.excluded.push_back(from.worker_id());
  auto pair = core_->view().Assign(what, absl::Now());
  if (!pair.ok()) {
    // Better where it was than nowhere; that worker keeps what comes back to it.
    pair = scheduler::Pair{.prefill = from, .decode = from, .assignment = kNoAssignment};
  }
  CountResumption("moved");
  ++dispatches_;
  timings_.set_decode_worker(pair->decode.name());
  Explain(*pair, absl::StrCat("moved: ", moving.reason()));
  const v1::WorkerInfo to = pair->decode;
  if (dispatch_->DecodeAt(*std::move(pair), dispatches_)) return;
  OnLost({.cause = LossCause::kLost,
          .phase = v1::PHASE_DECODE,
          .worker = to,
          .status = absl::UnavailableError("it has just left")});
}

// Losses

void GenerateCall::OnLost(const Loss& loss) {
  const absl::Status status = Blame(loss);
  dispatch_->Drop();
  dispatch_.reset();
  if (left() == 0) return FinishWith(v1::FINISH_REASON_LENGTH);  // only the word of it was lost
  if (!status.ok()) return Fail(status, generated_ == 0 ? Again() : std::nullopt);
  spdlog::info("resuming request_id={} tenant={} dispatch={} tokens_sent={} cause={} error=\"{}\"",
               request_.request_id, request_.tenant, dispatches_, generated_, CauseWord(loss.cause),
               std::string(last_loss_.message()));
  CountResumption(CauseWord(loss.cause));
  NameChunks();
  const std::string reason =
      absl::StrCat("resumed (", CauseWord(loss.cause), "): ", last_loss_.message());
  // Whether the workers that it ran on are dead shows when their registrations have ended.
  if (suspects_.size() > 1 && loss.computing) return WaitForWorker(reason, last_loss_);
  Place(reason, false);
}

absl::Status GenerateCall::Blame(const Loss& loss) {
  last_loss_ = WorkerFailure(loss);
  if (absl::IsInvalidArgument(loss.status)) return last_loss_;
  if (absl::Now() >= deadline_) return DeadlinePassed();
  const std::string& worker_id = loss.worker.worker_id();
  if (loss.cause == LossCause::kHandoff) {
    const scheduler::Pair& pair = dispatch_->pair();
    AddOnce(excluded_pairs_, std::pair(pair.prefill.worker_id(), pair.decode.worker_id()));
    core_->view().AvoidPair(pair.prefill.worker_id(), pair.decode.worker_id(), absl::Now());
  }
  if (loss.cause != LossCause::kHandoff || loss.phase == v1::PHASE_DECODE) {
    AddOnce(excluded_, worker_id);
  }
  if (loss.cause == LossCause::kRefused || loss.cause == LossCause::kGivenBack) {
    return absl::OkStatus();
  }
  if (loss.computing) {
    suspects_.emplace_back(worker_id, core_->streams().ShareOfLoss(worker_id, absl::Now()));
  }
  if (absl::IsInternal(loss.status) && ++failures_ >= kMaxFailures) return last_loss_;
  if (core_->SpendRetry()) return absl::OkStatus();
  core_->metrics().ResumptionRefused("budget");
  return absl::UnavailableError(absl::StrCat(
      last_loss_.message(), "; not resumed, since too many requests are (resume_budget)"));
}

absl::Status GenerateCall::CheckSuspects() {
  double blame = 0;
  size_t n_dead = 0;
  std::string names;
  for (const auto& [worker_id, share] : suspects_) {
    if (core_->WorkerStub(worker_id) != nullptr) continue;
    blame += share;
    ++n_dead;
    absl::StrAppend(&names, names.empty() ? "" : ", ", worker_id);
  }
  // Of a worker that died with many requests each may be the cause, and probably none.
  if (n_dead < 2 || blame <= 1) return absl::OkStatus();
  core_->metrics().ResumptionRefused("poisoned");
  spdlog::error(
      "request refused: it was running on {} workers that died request_id={} tenant={} "
      "workers=\"{}\"",
      n_dead, request_.request_id, request_.tenant, names);
  return absl::InternalError(absl::StrCat("this request was running on ",
                                          n_dead == 2 ? "two" : absl::StrCat(n_dead),
                                          " workers that died; it is not tried again"));
}

void GenerateCall::CountResumption(const char* cause) {
  timings_.set_resumptions(timings_.resumptions() + 1);
  core_->metrics().Resumed(cause);
}

void GenerateCall::WaitForWorker(const std::string& reason, const absl::Status& status) {
  const absl::Time now = absl::Now();
  if (wait_until_ == absl::InfinitePast()) {
    wait_until_ = now + core_->options().resume_timeout;
    pause_ = kFirstPause;
  } else if (now >= not_before_) {
    pause_ = std::min(2 * pause_, kLongestPause);
  }
  if (now >= not_before_) not_before_ = now + pause_;
  waits_for_ = status;
  wait_reason_ = reason;
  waiting_ = true;
  core_->Wait(Self());
}

void GenerateCall::OnTick(absl::Time now) {
  std::lock_guard lock(mutex_);
  if (ended_ || !waiting_) return;
  if (now >= deadline_) {
    Fail(DeadlinePassed());
  } else if (now >= wait_until_) {
    core_->metrics().ResumptionRefused("no_worker");
    Fail(absl::Status(waits_for_.code(),
                      absl::StrCat(waits_for_.message(), "; waited ",
                                   absl::FormatDuration(core_->options().resume_timeout),
                                   " for another (resume_timeout)")),
         generated_ == 0 ? Again() : std::nullopt);
  } else {
    Place(std::string(wait_reason_), now >= not_before_);
  }
}

void GenerateCall::OnRouterStops() {
  std::lock_guard lock(mutex_);
  if (ended_) return;
  Fail(absl::UnavailableError("this router is shutting down; send the request to another"),
       generated_ == 0 ? Again() : std::nullopt);
}

std::optional<absl::Duration> GenerateCall::Again() const { return core_->options().retry_after; }

absl::Status GenerateCall::DeadlinePassed() {
  return absl::DeadlineExceededError("the request's deadline has passed");
}

void GenerateCall::OnCancelled() {
  std::lock_guard lock(mutex_);
  if (ended_) return;
  if (!admitted_) {
    ended_ = true;
    return End(grpc::Status::CANCELLED);
  }
  Fail(absl::Now() >= deadline_ ? DeadlinePassed()
                                : absl::CancelledError("cancelled by the client"));
}

// The end

void GenerateCall::SetEnded() {
  // Before the client hears of the end: its next request must not be refused because of this one.
  if (!ended_ && admitted_) core_->Leave(ticket_);
  ended_ = true;
  if (dispatch_ == nullptr) return;
  dispatch_->Drop();
  dispatch_.reset();
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

void GenerateCall::Fail(const absl::Status& status, std::optional<absl::Duration> retry_after) {
  SetEnded();
  RecordEnd(status.code(), v1::FINISH_REASON_UNSPECIFIED);
  End(Retryable(status) ? WithPushback(status, retry_after, server_context_) : ToGrpc(status));
}

void GenerateCall::RecordEnd(absl::StatusCode code, v1::FinishReason reason) {
  EndedRequest ended{.tenant = request_.tenant,
                     .code = code,
                     .finish = FinishWord(reason),
                     .e2e_s = since_arrival_.seconds(),
                     .prompt_tokens = usage_.prompt_tokens(),
                     .generated_tokens = generated_};
  if (generated_ > 0) ended.ttft_s = first_token_s_;
  if (generated_ > 1) ended.tpot_s = (last_token_s_ - first_token_s_) / (generated_ - 1);
  core_->metrics().RequestEnded(ended);
  if (logged_) core_->workload().Ended(*logged_, generated_, usage_.cached_tokens());
  if (reason != v1::FINISH_REASON_UNSPECIFIED) {
    core_->metrics().StageSeconds(Stage::kRouterQueue, timings_.router_queue_s());
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
      "generated_tokens={} ttft_s={:.4f} total_s={:.4f} prefill={} decode={} resumptions={}",
      request_.request_id, request_.tenant, request_.attempt, absl::StatusCodeToString(code),
      FinishWord(reason), usage_.prompt_tokens(), generated_, first_token_s_, ended.e2e_s,
      timings_.prefill_worker(), timings_.decode_worker(), timings_.resumptions());
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
