#include "workers/prefill_loop.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status.h"
#include "scheduler/core/turn_policy.h"

namespace tandem::workers {
namespace {

// How long a prompt that waits for room is left before its deadline is looked at again.
constexpr std::chrono::milliseconds kBlockedWait{20};
// By how much a step of a tenant below its share may take longer for other tenants' prompts in it.
constexpr double kForOthers = 1.05;

/// Behind those with the same tag or a lower one.
template <typename List>
typename List::iterator InsertByTag(List& list, typename List::value_type active) {
  auto at = list.end();
  while (at != list.begin() && (*std::prev(at))->place.tag > active->place.tag) --at;
  return list.insert(at, std::move(active));
}

}  // namespace

PrefillLoop::PrefillLoop(std::unique_ptr<Engine> engine, kvstore::HandoffServer* server,
                         PrefixCache* cache, TurnGate* gate, WorkerSpeed* speed,
                         WorkerMetrics* metrics, KvMetrics* kv_metrics, Options options)
    : engine_(std::move(engine)),
      server_(server),
      cache_(cache),
      gate_(gate),
      speed_(speed),
      metrics_(metrics),
      kv_metrics_(kv_metrics),
      options_(options) {
  for (int32_t id = static_cast<int32_t>(engine_->options().max_sequences) - 1; id >= 0; --id) {
    free_sequences_.push_back(id);
  }
  thread_ = std::thread([this] { Run(); });
  // For debuggers and profilers, and for tests that stop it.
  (void)pthread_setname_np(thread_.native_handle(), "tandem-prefill");
}

PrefillLoop::~PrefillLoop() { Stop(); }

uint64_t PrefillLoop::BytesFor(const PrefillJob& job) const {
  return job.max_tokens > 1 ? engine_->layout().BytesPerToken() * job.tokens.size() : 0;
}

absl::Status PrefillLoop::Submit(PrefillJob job) {
  const size_t n = job.tokens.size();
  if (n == 0 || n > engine_->options().context_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("tokens: a prompt of ", n,
                                                   " tokens; this worker takes 1 to ",
                                                   engine_->options().context_tokens));
  }
  if (BytesFor(job) > options_.handoff_buffer_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tokens: the KV of ", n, " tokens takes ", BytesFor(job),
        " bytes; handoff_buffer_bytes of this worker is ", options_.handoff_buffer_bytes));
  }
  auto active = std::make_unique<Active>();
  active->job = std::move(job);
  active->job.context->OnCancel([this] {
    std::lock_guard lock(mutex_);
    wake_.notify_one();
  });
  std::lock_guard lock(mutex_);
  if (stopping_) return absl::UnavailableError("the worker is shutting down");
  if (!closed_.empty()) return absl::UnavailableError(closed_);
  if (waiting_.size() >= options_.max_queued) {
    metrics_->Rejected("queue_full");
    return absl::ResourceExhaustedError(absl::StrCat("the prefill queue is full: ", waiting_.size(),
                                                     " requests wait, max_queued is ",
                                                     options_.max_queued));
  }
  active->place = order_.Enter(active->job.context->tenant(), static_cast<double>(n),
                               active->job.tenant_weight, clock_.seconds());
  active->progress.tenant = active->job.context->tenant();
  InsertByTag(waiting_, std::move(active));
  ++unfinished_;
  wake_.notify_one();
  return absl::OkStatus();
}

LoopLoad PrefillLoop::load() const {
  std::lock_guard lock(mutex_);
  LoopLoad load = published_load_;
  load.waiting = static_cast<uint32_t>(waiting_.size());
  for (const auto& active : waiting_) {
    const auto n_tokens = static_cast<uint32_t>(active->job.tokens.size());
    load.waiting_tokens += n_tokens;
    load.jobs.push_back({.id = active->job.id, .tokens_to_compute = n_tokens});
  }
  load.tokens_to_compute += load.waiting_tokens;
  load.kv_capacity_tokens = engine_->options().kv_tokens;
  load.max_sequences = options_.max_sequences;
  load.unfinished = unfinished_;
  load.tokens_per_s = rate_.PerSecond(std::chrono::steady_clock::now());
  return load;
}

void PrefillLoop::GiveBackWaiting(std::string_view why) {
  std::vector<std::unique_ptr<Active>> given_back;
  {
    std::lock_guard lock(mutex_);
    std::erase_if(waiting_, [&](std::unique_ptr<Active>& active) {
      if (!active->job.can_move) return false;
      given_back.push_back(std::move(active));
      return true;
    });
  }
  const absl::Status moved = absl::UnavailableError(absl::StrCat("moved: ", View(why)));
  for (const auto& active : given_back) EndJob(*active->job.events, moved, 0, "");
}

void PrefillLoop::SetClosed(std::string why) {
  std::lock_guard lock(mutex_);
  closed_ = std::move(why);
}

void PrefillLoop::Stop() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    wake_.notify_one();
  }
  if (thread_.joinable()) thread_.join();
}

void PrefillLoop::Run() {
  while (WaitForWork()) {
    AdmitWaiting();
    DropCancelled();
    if (computing_.empty()) continue;
    // A prompt that takes one step would never be told of otherwise.
    PublishLoad();
    ComputeStep();
  }
  const absl::Status down = absl::UnavailableError("the worker is shutting down");
  while (!computing_.empty()) Fail(*computing_.front(), down);
  std::deque<std::unique_ptr<Active>> waiting;
  {
    std::lock_guard lock(mutex_);
    waiting.swap(waiting_);
  }
  for (auto& active : waiting) EndJob(*active->job.events, down, 0, "");
}

void PrefillLoop::PublishLoad() {
  std::lock_guard lock(mutex_);
  published_load_.running = static_cast<uint32_t>(computing_.size());
  published_load_.kv_used_tokens = published_load_.tokens_to_compute = 0;
  published_load_.jobs.clear();
  for (const auto& active : computing_) {
    const uint32_t left = static_cast<uint32_t>(active->job.tokens.size()) - active->computed;
    published_load_.kv_used_tokens += active->computed;
    published_load_.tokens_to_compute += left;
    published_load_.jobs.push_back({.id = active->job.id, .tokens_to_compute = left});
  }
}

bool PrefillLoop::WaitForWork() {
  if (computing_.empty()) PublishLoad();
  std::unique_lock lock(mutex_);
  if (computing_.empty()) {
    if (waiting_.empty()) order_.Idle(clock_.seconds());
    wake_.wait(lock, [this] { return stopping_ || !waiting_.empty(); });
  }
  return !stopping_;
}

void PrefillLoop::AdmitWaiting() {
  const uint64_t kv_limit = engine_->options().kv_tokens;
  while (true) {
    std::unique_ptr<Active> next;
    absl::Status dead;
    {
      std::unique_lock lock(mutex_);
      if (waiting_.empty()) return;
      Active& head = *waiting_.front();
      dead = head.job.context->Check();
      const uint64_t bytes = BytesFor(head.job);
      const bool fits = computing_.size() < options_.max_sequences &&
                        kv_reserved_tokens_ + head.job.tokens.size() <= kv_limit &&
                        buffer_reserved_bytes_ + bytes <= options_.handoff_buffer_bytes;
      if (dead.ok() && !fits) {
        // Those behind the head may have been cancelled: they must not wait for its turn.
        for (auto it = waiting_.begin() + 1; it != waiting_.end() && next == nullptr; ++it) {
          dead = (*it)->job.context->Check();
          if (dead.ok()) continue;
          next = std::move(*it);
          waiting_.erase(it);
          break;
        }
        if (next == nullptr) {
          if (computing_.empty()) wake_.wait_for(lock, kBlockedWait);
          return;
        }
      } else {
        next = std::move(waiting_.front());
        waiting_.pop_front();
        if (dead.ok()) {
          next->reserved_bytes = bytes;
          buffer_reserved_bytes_ += bytes;
        }
      }
    }
    if (dead.ok()) {
      Start(std::move(next));
    } else {
      EndJob(*next->job.events, dead, 0, "");
    }
  }
}

void PrefillLoop::Start(std::unique_ptr<Active> owned) {
  Active& active = *owned;
  MakeRoom(nullptr, 0);
  InsertByTag(computing_, std::move(owned));
  active.sequence = free_sequences_.back();
  free_sequences_.pop_back();
  kv_reserved_tokens_ += active.job.tokens.size();
  active.queue_s = active.since_queued.seconds();
  active.since_started = Stopwatch();
  if (active.job.max_tokens > 1) {
    const auto n_tokens = static_cast<uint32_t>(active.job.tokens.size());
    auto published = server_->Publish(
        active.job.handoff_id, active.job.context,
        {.floor = std::min(options_.kv_floor, active.job.cache.floor),
         .n_tokens = n_tokens,
         .chunk_tokens = options_.chunk_tokens,
         .seconds_per_token = speed_->model().PromptSeconds(n_tokens) / n_tokens},
        [this, context = active.job.context, events = active.job.events,
         bytes = active.reserved_bytes](absl::Status outcome, kvstore::HandoffStats stats) {
          OnReleased(*context, *events, bytes, std::move(outcome), stats);
        });
    if (!published.ok()) {
      {
        std::lock_guard lock(mutex_);
        buffer_reserved_bytes_ -= active.reserved_bytes;
      }
      Fail(active, published.status());
      return;
    }
    active.publication = *std::move(published);
  }
  metrics_->PrefillQueued(active.queue_s);
  active.job.events->Started(active.queue_s);
  FindPrefix(active);
}

void PrefillLoop::DropCancelled() {
  for (auto it = computing_.begin(); it != computing_.end();) {
    Active& active = **it++;
    if (absl::Status dead = active.job.context->Check(); !dead.ok()) Fail(active, dead);
  }
}

void PrefillLoop::AwaitProgress() {
  const Stopwatch waited;
  {
    std::unique_lock lock(mutex_);
    wake_.wait_for(lock, kBlockedWait, [this] { return progress_ || stopping_; });
    progress_ = false;
  }
  for (auto& active : computing_) active->waited_s += waited.seconds();
}

void PrefillLoop::ComputeStep() {
  bool ready = false;
  for (auto it = computing_.begin(); it != computing_.end();) {
    Active& active = **it++;
    if (absl::Status status = Advance(active); !status.ok()) {
      Fail(active, status);
    } else {
      ready = ready || active.may_compute > active.computed;
    }
  }
  if (!ready) {
    if (!computing_.empty()) AwaitProgress();
    return;
  }
  if (!AwaitTurn()) return;
  const TurnGate::Turn turn(gate_, TurnGate::Side::kPrefill);
  std::vector<Engine::StepItem> items;
  std::vector<Active*> owners;
  const uint32_t n_tokens = PlanStep(items, owners);
  const Stopwatch step;
  const absl::Status computed = engine_->Step(items);
  if (!computed.ok()) {
    spdlog::error("prefill step failed tokens={} error=\"{}\"", n_tokens, computed.ToString());
    for (Active* active : owners) Fail(*active, computed);
    return;
  }
  speed_->PrefillStep(items, step.seconds());
  metrics_->PrefillStep(n_tokens, step.seconds());
  {
    std::lock_guard lock(mutex_);
    rate_.Add(n_tokens, std::chrono::steady_clock::now());
    ++published_load_.steps;
    order_.Begin(owners.front()->place.tag);
  }
  for (size_t i = 0; i < owners.size(); ++i) {
    owners[i]->computed += owners[i]->in_step;
    // First tokens go out before any KV is copied: they are what clients wait for.
    if (items[i].want_logits) {
      FinishPrompt(*owners[i], i);
    } else if (absl::Status status = PublishComputed(*owners[i], false); !status.ok()) {
      Fail(*owners[i], status);
    }
  }
}

bool PrefillLoop::AwaitTurn() {
  const scheduler::PrefillCost cost = speed_->model().prefill;
  double step_s = 0;
  scheduler::LatestBegin latest;  // in seconds from now
  const absl::Time now = absl::Now();
  for (const auto& active : computing_) {
    const auto n = static_cast<uint32_t>(active->job.tokens.size()) - active->computed;
    const uint32_t ready = active->may_compute - active->computed;
    if (step_s == 0 && ready > 0) {
      step_s = cost.Seconds(std::min(ready, scheduler::UsefulPieceTokens(cost)), active->computed);
    }
    latest.Add(cost, n, active->computed,
               absl::ToDoubleSeconds(active->job.cache.first_token_due - now));
  }
  const absl::Duration left =
      std::clamp(absl::Seconds(latest.seconds()), absl::ZeroDuration(), absl::Hours(1));
  return gate_->AwaitPrefill(
      step_s, std::chrono::steady_clock::now() + absl::ToChronoNanoseconds(left), kBlockedWait);
}

uint32_t PrefillLoop::PlanStep(std::vector<Engine::StepItem>& items, std::vector<Active*>& owners) {
  std::vector<Active*> prompts;
  std::vector<scheduler::PromptProgress*> progress;
  // Of the first that can be computed, and those of its tenant next to it.
  const Active* first = nullptr;
  uint32_t first_position = 0, first_tenants = 0, n_first = 0;
  bool others = false;
  for (const auto& active : computing_) {
    if (active->may_compute > active->computed) {
      if (first == nullptr) {
        first = active.get();
        first_position = active->computed;
      }
      others = others || active->progress.tenant != first->progress.tenant;
      if (!others) {
        ++n_first;
        first_tenants += active->may_compute - active->computed;
      }
    }
    active->progress.total_tokens = static_cast<uint32_t>(active->job.tokens.size());
    active->progress.computed_tokens = active->computed;
    active->progress.may_compute_tokens = active->may_compute;
    prompts.push_back(active.get());
    progress.push_back(&active->progress);
  }
  const scheduler::LatencyModel model = speed_->model();
  uint32_t budget =
      scheduler::StepTokens(n_first, first->place.yields, engine_->options().step_tokens, model);
  if (others && !first->place.yields && first_tenants < budget) {
    budget = scheduler::PieceTokens(
        model.prefill, first_position,
        kForOthers * model.prefill.Seconds(first_tenants, first_position), first_tenants, budget);
  }
  budget =
      scheduler::PieceTokens(model.prefill, first_position, gate_->PrefillSeconds(),
                             std::min(scheduler::UsefulPieceTokens(model.prefill), budget), budget);
  uint32_t planned = 0;
  for (const auto& piece : scheduler::PlanPrefillStep(progress, budget, options_.overtake_tokens)) {
    Active& active = *prompts[piece.prompt];
    const std::vector<int32_t>& tokens = active.job.tokens;
    items.push_back({.sequence = active.sequence,
                     .first_position = static_cast<int32_t>(active.computed),
                     .tokens = std::span(tokens).subspan(active.computed, piece.n_tokens),
                     .want_logits = active.computed + piece.n_tokens == tokens.size()});
    owners.push_back(&active);
    active.in_step = piece.n_tokens;
    planned += piece.n_tokens;
  }
  return planned;
}

void PrefillLoop::FinishPrompt(Active& active, size_t item) {
  const auto n = static_cast<uint32_t>(active.job.tokens.size());
  Sampler sampler(engine_->shared_model(), active.job.sampling, active.job.tokens);
  const int32_t token = sampler.Sample(engine_->Logits(item), n);
  const bool stop = sampler.IsStop(token);
  const double prefill_s = active.since_started.seconds();
  active.origins.saved_s = ComputeSeconds(0, active.origins.reused()) - active.waited_s;
  metrics_->PrefillDone(n, active.origins.reused(), active.queue_s, prefill_s);
  metrics_->GeneratedTokens(1);
  CountOrigins(active);
  active.job.events->FirstToken(
      {.token = token, .stop = stop, .prefill_s = prefill_s, .origins = active.origins});
  Log(spdlog::level::debug, *active.job.context, "prefill done",
      "tokens={} reused={} seconds={:.4f}", n, active.origins.reused(), prefill_s);
  if (absl::Status status = PublishComputed(active, true); !status.ok()) {
    Fail(active, status);
    return;
  }
  if (active.publication != nullptr && !stop) {
    active.publication->Finish({.n_tokens = n, .first_token = token});
    gate_->Completed(active.job.handoff_id);
    Remove(active, true);  // the publication's release ends the job
    return;
  }
  const std::unique_ptr<Active> ended = Remove(active, true);
  if (ended->publication != nullptr) {
    ended->publication->Abort(absl::CancelledError("generation ended with the first token"));
  } else {
    EndJob(*ended->job.events, absl::OkStatus(), 0, stop ? "stop" : "length");
  }
}

absl::Status PrefillLoop::PublishComputed(Active& active, bool last) {
  if (engine_->layout().opaque) {
    if (!last || active.publication == nullptr) return absl::OkStatus();
    ASSIGN_OR_RETURN(kvstore::KvChunk chunk, engine_->Extract(active.sequence, 0, active.computed));
    active.publication->Append(std::move(chunk));
    return absl::OkStatus();
  }
  while (active.published < active.computed) {
    const uint32_t n = std::min(options_.chunk_tokens, active.computed - active.published);
    if (n < options_.chunk_tokens && !last) break;
    const size_t index = active.published / options_.chunk_tokens;
    const bool keep = index < active.ids.size() && !active.from_cache[index];
    if (keep || active.publication != nullptr) {
      ASSIGN_OR_RETURN(kvstore::KvChunk extracted,
                       engine_->Extract(active.sequence, active.published, n));
      const auto chunk = std::make_shared<const kvstore::KvChunk>(std::move(extracted));
      if (active.publication != nullptr) active.publication->Append(chunk);
      if (keep) {
        cache_->Keep(active.ids[index], chunk, active.origins.level,
                     active.job.cache.store_address);
      }
    }
    active.published += n;
  }
  return absl::OkStatus();
}

std::unique_ptr<PrefillLoop::Active> PrefillLoop::Remove(Active& active, bool retain) {
  if (active.load != nullptr) active.load->Stop();
  if (!retain || !Retain(active)) {
    engine_->Free(active.sequence);
    free_sequences_.push_back(active.sequence);
  }
  kv_reserved_tokens_ -= active.job.tokens.size();
  auto found = std::find_if(computing_.begin(), computing_.end(),
                            [&](const auto& each) { return each.get() == &active; });
  std::unique_ptr<Active> owned = std::move(*found);
  computing_.erase(found);
  return owned;
}

void PrefillLoop::Fail(Active& active, const absl::Status& status) {
  const std::unique_ptr<Active> owned = Remove(active, false);
  if (owned->publication != nullptr) {
    owned->publication->Abort(status);  // its release ends the job
  } else {
    EndJob(*owned->job.events, status, 0, "");
  }
}

void PrefillLoop::OnReleased(const RequestContext& context, PrefillEvents& events,
                             uint64_t reserved_bytes, absl::Status outcome,
                             const kvstore::HandoffStats& stats) {
  {
    std::lock_guard lock(mutex_);
    buffer_reserved_bytes_ -= reserved_bytes;
    wake_.notify_one();
  }
  if (outcome.ok()) {
    metrics_->HandoffSent(stats.bytes, absl::ToDoubleSeconds(stats.duration));
    kv_metrics_->HandoffChunks(stats.encodings);
  } else if (!absl::IsCancelled(outcome)) {
    metrics_->HandoffFailed(HandoffDirection::kSend, outcome.code());
  }
  if (absl::IsDeadlineExceeded(outcome) && context.Check().ok()) {
    // The lease's end, not the request's: for the client a worker that failed.
    metrics_->HandoffLeaseExpired();
    outcome = absl::UnavailableError(outcome.message());
  }
  EndJob(events, outcome, stats.bytes, "handoff");
}

void PrefillLoop::EndJob(PrefillEvents& events, const absl::Status& status, uint64_t bytes,
                         std::string_view finish) {
  if (!status.ok()) finish = absl::IsCancelled(status) ? "cancelled" : "error";
  metrics_->RequestEnded(finish);
  {
    std::lock_guard lock(mutex_);
    --unfinished_;
  }
  events.Ended(status, bytes);
}

}  // namespace tandem::workers
