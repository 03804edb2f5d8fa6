#include "server/request_queue.h"

#include <algorithm>
#include <cmath>

#include "absl/time/clock.h"

namespace tandem::server {
namespace {

double Seconds(absl::Time time) { return absl::ToDoubleSeconds(time - absl::UnixEpoch()); }

/// What was served counts for half after so long.
constexpr double kServedHalfLifeS = 5;
/// Before a rate is believed, the queue must have been there for so long.
constexpr double kServedLeastS = 0.5;

scheduler::Admission::Options AdmissionOptions(const RequestQueue::Options& options) {
  return {.max_queued = options.max_requests,
          .max_in_flight = options.max_requests,
          .max_ttft_s = options.max_ttft_s,
          .min_retry_s = options.min_retry_s,
          .max_retry_s = std::max(options.min_retry_s, options.max_retry_s)};
}

}  // namespace

scheduler::PredictedTtft TtftOf(const scheduler::Candidate& forecast) {
  const double steps = forecast.steps_ahead;
  return {.seconds = forecast.ttft_s,
          .queue_s = forecast.queue_s,
          .step_s = steps > 0 ? forecast.queue_s / steps : 0};
}

RequestQueue::RequestQueue(const Options& options, scheduler::ClusterView* view,
                           std::function<void()> wake)
    : options_(options),
      view_(view),
      wake_(std::move(wake)),
      admission_(AdmissionOptions(options)) {
  for (const auto& [tenant, limits] : options_.tenants) admission_.SetTenant(tenant, limits);
}

bool RequestQueue::MayBeServed(bool workers_there, absl::Time now) {
  std::lock_guard lock(mutex_);
  return MayBeServedLocked(workers_there, now);
}

bool RequestQueue::MayBeServedLocked(bool workers_there, absl::Time now) {
  missing_since_ = workers_there ? absl::InfiniteFuture() : std::min(missing_since_, now);
  return now - missing_since_ < options_.patience;
}

scheduler::Admitted RequestQueue::Enqueue(std::shared_ptr<QueuedRequest> request,
                                          const scheduler::Arrival& arrival) {
  const absl::Time now = absl::Now();
  std::lock_guard lock(mutex_);
  const double served_per_s = served_s_ > kServedLeastS ? served_tokens_ / served_s_ : 0;
  admission_.SetCapacity(served_per_s > 0 ? served_per_s : view_->PrefillTokensPerSecond());
  const scheduler::Admitted admitted = admission_.Enqueue(arrival, Seconds(now));
  if (admitted.displaced != 0) displaced_.push_back(Take(admitted.displaced).request);
  if (admitted.ticket == 0) return admitted;
  Waiting& waiting = waiting_[admitted.ticket];
  waiting.request = std::move(request);
  waiting.what.prompt_tokens = static_cast<uint32_t>(std::min(arrival.work_tokens, 1e9));
  waiting.work_tokens = arrival.work_tokens;
  return admitted;
}

RequestQueue::Waiting RequestQueue::Take(scheduler::Ticket ticket) {
  const auto found = waiting_.find(ticket);
  Waiting taken = std::move(found->second);
  waiting_.erase(found);
  return taken;
}

void RequestQueue::Describe(scheduler::Ticket ticket, scheduler::Placement what,
                            std::vector<kvstore::ChunkId> chunk_ids) {
  std::lock_guard lock(mutex_);
  const auto found = waiting_.find(ticket);
  if (found == waiting_.end()) return;
  found->second.what = std::move(what);
  found->second.chunk_ids = std::move(chunk_ids);
}

void RequestQueue::Leave(scheduler::Ticket ticket) {
  std::shared_ptr<QueuedRequest> dropped;  // its end must not come under the lock
  {
    std::lock_guard lock(mutex_);
    const auto found = waiting_.find(ticket);
    if (found != waiting_.end()) {
      dropped = std::move(found->second.request);
      waiting_.erase(found);
    }
    if (!admission_.Cancel(ticket)) admission_.Finish(ticket);
    if (waiting_.empty()) return;
  }
  wake_();
}

void RequestQueue::Prefilled(scheduler::Ticket ticket) {
  {
    std::lock_guard lock(mutex_);
    admission_.Prefilled(ticket, Seconds(absl::Now()));
    if (waiting_.empty()) return;
  }
  wake_();
}

/// Whether the workers have room for the request whose turn it is. Among its reasons to wait is
/// never a prediction alone: with nothing running there is nothing to wait for.
bool RequestQueue::RoomFor(scheduler::Ticket ticket, absl::Time now) {
  Waiting& waiting = waiting_.at(ticket);
  waiting.what.chunk_ids = waiting.chunk_ids;
  const auto forecast = view_->Predict(waiting.what, now);
  const bool may_be_served = MayBeServedLocked(forecast.ok(), now);
  if (!forecast.ok()) return !may_be_served;  // it hears of it then
  return admission_.running() == 0 ||
         scheduler::HasRoom(*forecast, options_.dispatch_ahead_steps, options_.tpot_objective_s);
}

scheduler::Ticket RequestQueue::Next(absl::Time now) {
  const auto first = admission_.Peek();
  if (!first) return 0;
  if (RoomFor(*first, now)) return *first;
  // A tenant does not wait for room that others have taken beyond their shares: workers compute
  // its prompt first.
  return missing_since_ == absl::InfiniteFuture() ? admission_.PeekBelowShare().value_or(0) : 0;
}

/// A request that had to wait, or that leaves others waiting, has been given to the workers.
void RequestQueue::CountServed(double work_tokens, absl::Time now) {
  const bool backlog = last_served_ != absl::InfinitePast();
  const double passed_s = backlog ? absl::ToDoubleSeconds(now - last_served_) : 0;
  const double keep = std::exp2(-passed_s / kServedHalfLifeS);
  served_tokens_ = served_tokens_ * keep + (backlog ? work_tokens : 0);
  served_s_ = served_s_ * keep + passed_s;
  last_served_ = waiting_.empty() ? absl::InfinitePast() : now;
}

void RequestQueue::Pump() {
  std::unique_lock lock(mutex_);
  again_ = true;
  if (pumping_) return;
  pumping_ = true;
  std::vector<scheduler::Ticket> late = admission_.Expire(Seconds(absl::Now()));
  while (std::exchange(again_, false)) {
    const absl::Time now = absl::Now();
    std::vector<std::shared_ptr<QueuedRequest>> displaced = std::exchange(displaced_, {}), expired;
    for (const scheduler::Ticket ticket : std::exchange(late, {})) {
      expired.push_back(Take(ticket).request);
    }
    Waiting next;
    if (const scheduler::Ticket ticket = Next(now); ticket != 0) {
      admission_.Start(ticket);
      next = Take(ticket);
      CountServed(next.work_tokens, now);
      again_ = true;
    }
    const double retry_after_s = displaced.empty() ? 0 : RetryAfterLocked();
    lock.unlock();
    for (const auto& request : displaced) {
      request->OnRemoved(scheduler::Refusal::kDisplaced, retry_after_s);
    }
    for (const auto& request : expired) request->OnRemoved(scheduler::Refusal::kTooLate, 0);
    if (next.request != nullptr) next.request->OnTurn();
    displaced.clear();
    expired.clear();
    next = {};
    lock.lock();
  }
  pumping_ = false;
}

uint32_t RequestQueue::queued() const {
  std::lock_guard lock(mutex_);
  return admission_.queued();
}

double RequestQueue::PredictFirstToken(const std::string& tenant,
                                       const scheduler::Candidate& forecast) const {
  std::lock_guard lock(mutex_);
  return admission_.PredictFirstToken(tenant, TtftOf(forecast), Seconds(absl::Now()));
}

double RequestQueue::Weight(const std::string& tenant) const {
  std::lock_guard lock(mutex_);
  return admission_.weight(tenant);
}

double RequestQueue::RetryAfter() const {
  std::lock_guard lock(mutex_);
  return RetryAfterLocked();
}

double RequestQueue::RetryAfterLocked() const {
  // A half of the queue: whoever comes back then is neither far too early nor late.
  return std::clamp(admission_.PredictDrain() / 2, options_.min_retry_s,
                    std::max(options_.min_retry_s, options_.max_retry_s));
}

}  // namespace tandem::server
