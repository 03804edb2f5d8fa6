#include "scheduler/core/admission.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"

namespace tandem::scheduler {
namespace {

/// A step of the estimate; and its limit: predictions are not that bad for long.
constexpr double kErrorStep = 0.1, kMostError = 4;
/// Of the first tokens that come within the estimate.
constexpr double kErrorQuantile = 0.95;
/// Of its limit: from there on a prediction is near it.
constexpr double kNearLimit = 0.25;
/// Prompts of a tenant below its share that workers may have, however few others' there are.
constexpr uint32_t kFewPrompts = 2;
/// So many times others' requests a tenant's may be, of those that run, for others to have taken
/// room from it: in a burst of its own it may be ahead of them.
constexpr uint32_t kTimesOthers = 4;

}  // namespace

std::string_view RefusalWord(Refusal refusal) {
  switch (refusal) {
    case Refusal::kRate:
      return "rate";
    case Refusal::kConcurrency:
      return "concurrency";
    case Refusal::kQueueFull:
      return "queue_full";
    case Refusal::kTooLate:
      return "too_late";
    case Refusal::kDisplaced:
      return "displaced";
    case Refusal::kNone:
      break;
  }
  return "";
}

void Admission::SetTenant(const std::string& name, const TenantLimits& limits) {
  Tenant& tenant = TenantOf(name);
  tenant.limits = limits;
  tenant.limits.burst = std::max(1.0, limits.burst);
  tenant.bucket = tenant.limits.burst;
}

void Admission::SetCapacity(double work_per_s) { capacity_per_s_ = work_per_s; }

Admission::Tenant& Admission::TenantOf(const std::string& name) {
  return tenants_.try_emplace(name).first->second;
}

Admitted Admission::Refuse(Refusal refusal, std::string message, double retry_s) const {
  return {.refusal = refusal,
          .status = absl::ResourceExhaustedError(message),
          .retry_after_s = std::clamp(retry_s, options_.min_retry_s, options_.max_retry_s)};
}

/// While nobody waits, virtual time goes on as if two tenants shared the cluster: who needs less
/// than half of it has something left when another one comes that wants it all.
void Admission::PassTime(double now_s) {
  if (n_queued_ == 0 && now_s > passed_s_) {
    virtual_time_ += (now_s - passed_s_) * CapacityPerSecond() / 2;
  }
  passed_s_ = now_s;
}

Admitted Admission::Enqueue(const Arrival& arrival, double now_s) {
  PassTime(now_s);
  Tenant& tenant = TenantOf(arrival.tenant);
  const TenantLimits& limits = tenant.limits;
  if (limits.requests_per_s > 0) {
    const double refill = std::max(0.0, now_s - tenant.bucket_s) * limits.requests_per_s;
    tenant.bucket = std::min(limits.burst, tenant.bucket + refill);
    tenant.bucket_s = now_s;
    if (tenant.bucket < 1) {
      return Refuse(Refusal::kRate,
                    absl::StrCat("tenant '", arrival.tenant, "' may send ", limits.requests_per_s,
                                 " requests per second"),
                    (1 - tenant.bucket) / limits.requests_per_s);
    }
  }
  const double wait_s = PredictWait(arrival.tenant, arrival.priority, now_s);
  const double compute_s = arrival.ttft.seconds - arrival.ttft.queue_s;
  const double waiting_s = wait_s + WorkerQueueSeconds(tenant, arrival.ttft, now_s);
  const double ttft_s = compute_s + waiting_s * tenant.wait_error;
  double limit_s = arrival.deadline_s - now_s;
  if (options_.max_ttft_s > 0) limit_s = std::min(limit_s, options_.max_ttft_s);
  if (ttft_s > limit_s) {
    return Refuse(Refusal::kTooLate,
                  absl::StrCat("the first token would take about ", ttft_s, " s, the limit is ",
                               std::max(0.0, limit_s), " s"),
                  ttft_s - std::max(0.0, limit_s));
  }
  Ticket displaced = 0;
  if (Full()) {
    displaced = MakeRoom(tenant);
    if (displaced == 0) {
      return Refuse(Refusal::kQueueFull,
                    absl::StrCat("the queue is full (", options_.max_queued, " requests)"),
                    wait_s / 2);
    }
  }
  if (limits.requests_per_s > 0) tenant.bucket -= 1;
  tenant.start_tag = StartTag(tenant, now_s);
  tenant.last_s = now_s;
  const Ticket ticket = ++last_ticket_;
  const int64_t order = -int64_t{arrival.priority};
  tenant.queue.emplace(Key{order, ticket}, Waiting{.ticket = ticket,
                                                   .work_tokens = arrival.work_tokens,
                                                   .deadline_s = arrival.deadline_s});
  tenant.queued_work += arrival.work_tokens;
  known_[ticket] = {.tenant = &tenant,
                    .order = order,
                    .arrived_s = now_s,
                    .compute_s = compute_s,
                    .waiting_s = waiting_s,
                    .limit_s = limit_s};
  ++n_queued_;
  return {.ticket = ticket, .status = absl::OkStatus(), .displaced = displaced};
}

bool Admission::Full() const {
  return n_queued_ >= options_.max_queued ||
         (options_.max_in_flight > 0 && n_queued_ + n_running_ >= options_.max_in_flight);
}

/// The last request of the tenant with the most work waiting for its weight, when that is not the
/// newcomer itself. Returns its ticket, or 0.
Ticket Admission::MakeRoom(const Tenant& newcomer) {
  Tenant* most = nullptr;
  for (auto& [name, tenant] : tenants_) {
    if (tenant.queue.empty()) continue;
    if (most == nullptr ||
        tenant.queued_work / tenant.limits.weight > most->queued_work / most->limits.weight) {
      most = &tenant;
    }
  }
  if (most == nullptr || most == &newcomer ||
      newcomer.queued_work / newcomer.limits.weight >= most->queued_work / most->limits.weight) {
    return 0;
  }
  const auto last = std::prev(most->queue.end());
  const Ticket ticket = last->second.ticket;
  known_.erase(ticket);
  Remove(*most, last);
  return ticket;
}

void Admission::Remove(Tenant& tenant, std::map<Key, Waiting>::iterator at) {
  tenant.queued_work -= at->second.work_tokens;
  tenant.queue.erase(at);
  if (tenant.queue.empty()) tenant.queued_work = 0;
  --n_queued_;
}

bool Admission::MayRun(const Tenant& tenant) const {
  return !tenant.queue.empty() &&
         (tenant.limits.max_running == 0 || tenant.running < tenant.limits.max_running);
}

double Admission::StartTag(const Tenant& tenant, double now_s) const {
  if (!tenant.queue.empty()) return tenant.start_tag;
  const bool here = now_s - tenant.last_s < options_.credit_kept_s;
  const double credit = here ? options_.credit_s * CapacityPerSecond() / tenant.limits.weight : 0;
  return std::max(tenant.start_tag, virtual_time_ - credit);
}

bool Admission::BelowShare(const Tenant& tenant, double start_tag) const {
  const uint32_t others = n_running_ - tenant.running;
  return start_tag < virtual_time_ && tenant.running <= kTimesOthers * others &&
         tenant.prefilling < std::max(kFewPrompts, n_prefilling_ - tenant.prefilling);
}

std::optional<Ticket> Admission::Peek(bool below_share_only) const {
  const Tenant* turn = nullptr;
  for (const auto& [name, tenant] : tenants_) {
    if (!MayRun(tenant)) continue;
    if (below_share_only && !BelowShare(tenant, tenant.start_tag)) continue;
    if (turn == nullptr || tenant.start_tag < turn->start_tag) turn = &tenant;
  }
  if (turn == nullptr) return std::nullopt;
  return turn->queue.begin()->second.ticket;
}

std::optional<Ticket> Admission::Peek() const { return Peek(false); }

std::optional<Ticket> Admission::PeekBelowShare() const { return Peek(true); }

std::optional<Ticket> Admission::Next(double) {
  const auto ticket = Peek();
  if (ticket) Start(*ticket);
  return ticket;
}

void Admission::Start(Ticket ticket) {
  Known& known = known_.at(ticket);
  Tenant& tenant = *known.tenant;
  const auto at = tenant.queue.find({known.order, ticket});
  virtual_time_ = std::max(virtual_time_, tenant.start_tag);
  tenant.start_tag += at->second.work_tokens / tenant.limits.weight;
  Remove(tenant, at);
  ++tenant.running;
  ++tenant.prefilling;
  ++n_running_;
  ++n_prefilling_;
  known.running = known.prefilling = true;
}

bool Admission::Cancel(Ticket ticket) {
  const auto found = known_.find(ticket);
  if (found == known_.end() || found->second.running) return false;
  Tenant& tenant = *found->second.tenant;
  Remove(tenant, tenant.queue.find({found->second.order, ticket}));
  known_.erase(found);
  return true;
}

void Admission::Prefilled(Ticket ticket, double now_s) {
  const auto found = known_.find(ticket);
  if (found == known_.end() || !std::exchange(found->second.prefilling, false)) return;
  --found->second.tenant->prefilling;
  --n_prefilling_;
  LearnError(found->second, now_s - found->second.arrived_s);
}

/// A quantile, by steps up and down that balance there. Only of requests whose waiting is not
/// small against their limit: short waits may be many times their prediction, and say nothing of
/// long ones.
void Admission::LearnError(const Known& known, double ttft_s) {
  double& error = known.tenant->wait_error;
  if (known.waiting_s * error < kNearLimit * known.limit_s) return;
  const bool above = ttft_s - known.compute_s > known.waiting_s * error;
  error *= above ? 1 + kErrorStep * kErrorQuantile : 1 - kErrorStep * (1 - kErrorQuantile);
  error = std::clamp(error, 1.0, kMostError);
}

void Admission::Finish(Ticket ticket) {
  const auto found = known_.find(ticket);
  if (found == known_.end() || !found->second.running) return;
  if (found->second.prefilling) {
    --found->second.tenant->prefilling;
    --n_prefilling_;
  }
  --found->second.tenant->running;
  --n_running_;
  known_.erase(found);
}

std::vector<Ticket> Admission::Expire(double now_s) {
  std::vector<Ticket> expired;
  for (const auto& [name, tenant] : tenants_) {
    for (const auto& [key, waiting] : tenant.queue) {
      if (waiting.deadline_s <= now_s) expired.push_back(waiting.ticket);
    }
  }
  for (const Ticket ticket : expired) Cancel(ticket);
  return expired;
}

uint32_t Admission::queued(const std::string& name) const {
  const auto found = tenants_.find(name);
  return found == tenants_.end() ? 0 : static_cast<uint32_t>(found->second.queue.size());
}

uint32_t Admission::running(const std::string& name) const {
  const auto found = tenants_.find(name);
  return found == tenants_.end() ? 0 : found->second.running;
}

double Admission::wait_error(const std::string& name) const {
  const auto found = tenants_.find(name);
  return found == tenants_.end() ? 1 : found->second.wait_error;
}

double Admission::weight(const std::string& name) const {
  const auto found = tenants_.find(name);
  return found == tenants_.end() ? 1 : found->second.limits.weight;
}

double Admission::PredictFirstToken(const std::string& name, const PredictedTtft& ttft,
                                    double now_s) const {
  const auto found = tenants_.find(name);
  if (found == tenants_.end()) return ttft.seconds;
  return ttft.seconds - ttft.queue_s + WorkerQueueSeconds(found->second, ttft, now_s);
}

double Admission::WorkerQueueSeconds(const Tenant& tenant, const PredictedTtft& ttft,
                                     double now_s) const {
  if (n_prefilling_ == 0 || !BelowShare(tenant, StartTag(tenant, now_s))) return ttft.queue_s;
  const double own = static_cast<double>(tenant.prefilling) / n_prefilling_;
  return std::min(ttft.queue_s, own * ttft.queue_s + ttft.step_s);
}

double Admission::PredictWait(const std::string& name, int32_t priority, double now_s) const {
  const auto found = tenants_.find(name);
  const double weight = this->weight(name);
  double own_work = 0;
  double start = virtual_time_;
  if (found != tenants_.end()) {
    const Tenant& tenant = found->second;
    start = StartTag(tenant, now_s);
    // Then its turn comes at once, whatever others have waiting.
    if (tenant.queue.empty() && BelowShare(tenant, start)) return 0;
    for (const auto& [key, waiting] : tenant.queue) {
      if (key.first > -int64_t{priority}) break;
      own_work += waiting.work_tokens;
    }
  }
  const double tag = start + own_work / weight;
  // What the others are served until that tag comes up.
  double work = own_work;
  for (const auto& [other_name, other] : tenants_) {
    if (other.queue.empty() || (found != tenants_.end() && &other == &found->second)) continue;
    work += std::min(other.queued_work, std::max(0.0, tag - other.start_tag) * other.limits.weight);
  }
  return work / CapacityPerSecond();
}

double Admission::PredictDrain() const {
  double work = 0;
  for (const auto& [name, tenant] : tenants_) work += tenant.queued_work;
  return work / CapacityPerSecond();
}

double Admission::CapacityPerSecond() const {
  return capacity_per_s_ > 0 ? capacity_per_s_ : options_.work_per_s;
}

void RetryBudget::Earn() { saved_ = std::min(options_.most, saved_ + options_.share); }

bool RetryBudget::Spend(double now_s) {
  if (!begun_) floor_s_ = now_s;
  begun_ = true;
  saved_ = std::min(options_.most, saved_ + std::max(0.0, now_s - floor_s_) * options_.floor_per_s);
  floor_s_ = std::max(floor_s_, now_s);
  if (saved_ < 1) return false;
  saved_ -= 1;
  return true;
}

}  // namespace tandem::scheduler
