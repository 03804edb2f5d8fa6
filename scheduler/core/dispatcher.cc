#include "scheduler/core/dispatcher.h"

#include <algorithm>
#include <limits>

namespace tandem::scheduler {
namespace {

/// A mixed worker's steps leave at least this share of its time to prefill.
constexpr double kLeastShare = 0.1;
/// Seconds of a step that is never taken; infinity times nothing would be no number.
constexpr double kAges = 1e9;

uint64_t PairKey(WorkerIndex a, WorkerIndex b) {
  return uint64_t{std::min(a, b)} << 32 | std::max(a, b);
}

}  // namespace

bool HasRoom(const Candidate& pair, double dispatch_ahead_steps, double tpot_objective_s) {
  return pair.steps_ahead <= dispatch_ahead_steps && pair.decode_wait_s <= pair.ttft_s &&
         (pair.decode_wait_s == 0 || pair.tpot_s <= tpot_objective_s);
}

WorkerIndex Dispatcher::Add() {
  if (free_workers_.empty()) {
    free_workers_.push_back(static_cast<WorkerIndex>(workers_.size()));
    workers_.emplace_back();
    hot_.emplace_back();
    bounds_.role.push_back(0);
    for (auto* column : {&bounds_.ahead_until_s, &bounds_.assigned_s, &bounds_.per_token_s,
                         &bounds_.base_s, &bounds_.step_s, &bounds_.per_context_token_s,
                         &bounds_.lives_to_wait, &bounds_.life_tokens, &bounds_.per_capacity_token,
                         &bounds_.prefill_ahead_s, &bounds_.coming}) {
      column->push_back(0);
    }
    ways_.emplace_back();
  }
  const WorkerIndex index = free_workers_.back();
  free_workers_.pop_back();
  const uint32_t generation = workers_[index].generation + 1;
  workers_[index] = Worker();
  workers_[index].generation = generation;
  workers_[index].live = true;
  Refresh(index);
  return index;
}

void Dispatcher::Remove(WorkerIndex worker) {
  if (worker >= workers_.size() || !workers_[worker].live) return;
  workers_[worker].live = false;
  workers_[worker].report = WorkerReport();
  ++workers_[worker].generation;
  Refresh(worker);
  ways_[worker].clear();
  for (auto& row : ways_) {
    if (row.size() > worker) row[worker] = unmeasured_;
  }
  absl::erase_if(avoided_, [&](const auto& each) {
    return each.first >> 32 == worker || static_cast<WorkerIndex>(each.first) == worker;
  });
  free_workers_.push_back(worker);
}

void Dispatcher::Suspend(WorkerIndex worker) {
  if (bounds_.role[worker] == 0) return;
  workers_[worker].report.takes_prefill = false;
  workers_[worker].report.takes_decode = false;
  Refresh(worker);
}

void Dispatcher::Report(WorkerIndex index, const WorkerReport& report, double now_s) {
  Worker& worker = workers_[index];
  worker.report = report;
  worker.reported_s = now_s;
  for (const WorkerReport::Prompt& prompt : report.prompts) {
    Assignment* const assignment = Find(prompt.id);
    if (assignment != nullptr && assignment->prefill.worker == index) PrefillReported(*assignment);
  }
  for (const AssignmentId id : report.sequences) {
    Assignment* const assignment = Find(id);
    if (assignment != nullptr && assignment->decode.worker == index) DecodeReported(*assignment);
  }
  const double known_s = now_s - options_.report_lag_s;
  for (auto& pending = worker.pending_prefill; !pending.empty(); pending.pop_front()) {
    if (pending.front().since_s > known_s) break;
    if (Assignment* assignment = Find(pending.front().id)) PrefillReported(*assignment);
  }
  for (auto& pending = worker.pending_decode; !pending.empty(); pending.pop_front()) {
    if (pending.front().since_s > known_s) break;
    if (Assignment* assignment = Find(pending.front().id)) DecodeReported(*assignment);
  }
  Refresh(index);
}

void Dispatcher::Refresh(WorkerIndex index) {
  const WorkerReport& report = workers_[index].report;
  // Of its decode steps now.
  const double step_s =
      report.decode_running == 0
          ? 0
          : report.latency.decode.StepSeconds(report.decode_running, report.kv_used_tokens);
  RefreshPrefill(index, step_s);
  RefreshDecode(index);
}

void Dispatcher::RefreshPrefill(WorkerIndex index, double step_s) {
  const Worker& worker = workers_[index];
  const WorkerReport& report = worker.report;
  const PrefillCost& cost = report.latency.prefill;
  Hot& hot = hot_[index];
  const uint32_t step_tokens = std::max(1u, report.latency.saturation_tokens);
  hot.prefill = cost;
  hot.full_step_s = std::max(1e-9, cost.Seconds(step_tokens));
  hot.per_step_token = 1.0 / step_tokens;
  const double token_s = hot.TokenSeconds();
  hot.reported_s = worker.reported_s;
  hot.reported_ahead_s = static_cast<double>(report.tokens_to_compute) * token_s;
  hot.assigned_ahead_s = static_cast<double>(worker.prefill_tokens) * token_s;
  hot.slowdown =
      step_s == 0 ? 1 : 1 / std::max(kLeastShare, 1 - step_s / options_.tpot_objective_s);
  bounds_.ahead_until_s[index] = hot.reported_s + hot.reported_ahead_s * hot.slowdown;
  bounds_.assigned_s[index] = hot.assigned_ahead_s * hot.slowdown;
  bounds_.per_token_s[index] = cost.per_token_s * hot.slowdown;
  bounds_.base_s[index] =
      report.takes_prefill ? cost.base_s * hot.slowdown : std::numeric_limits<double>::infinity();
  bounds_.prefill_ahead_s[index] =
      report.takes_prefill ? hot.reported_ahead_s + hot.assigned_ahead_s : 0;
}

void Dispatcher::RefreshDecode(WorkerIndex index) {
  const Worker& worker = workers_[index];
  const WorkerReport& report = worker.report;
  const LatencyModel& latency = report.latency;
  const uint32_t places = std::max(1u, report.max_sequences);
  const uint32_t n_sequences = report.decode_running + report.decode_waiting + worker.sequences;
  const double next_step_s = latency.decode.StepSeconds(
      std::min(n_sequences + 1, places), report.kv_used_tokens + worker.context_tokens);
  bounds_.step_s[index] = report.takes_decode ? next_step_s : kAges;
  bounds_.per_context_token_s[index] = latency.decode.per_context_token_s;
  bounds_.lives_to_wait[index] =
      n_sequences < places ? 0 : static_cast<double>(n_sequences - places + 1) / places;
  bounds_.life_tokens[index] = static_cast<double>(report.kv_expected_tokens + worker.life_tokens);
  bounds_.per_capacity_token[index] =
      report.kv_capacity_tokens == 0 ? 0 : 1 / static_cast<double>(report.kv_capacity_tokens);
  uint8_t role = report.takes_decode ? Bounds::kDecodes : 0;
  if (report.takes_prefill) role |= report.decode_first ? Bounds::kPrefillsToo : Bounds::kPrefills;
  if (n_sequences > 0) role |= Bounds::kServes;
  // A prefill step between two of its decode steps, at the least.
  const bool has_time =
      n_sequences == 0 ||
      next_step_s + latency.prefill.Seconds(options_.min_piece_tokens) <= options_.tpot_objective_s;
  if (report.takes_decode && (role & Bounds::kPrefillsToo) != 0 && has_time) {
    role |= Bounds::kPrefillsSelf;
  }
  bounds_.role[index] = role;
  bounds_.coming[index] = report.decode_waiting + worker.sequences;
}

void Dispatcher::SetLink(WorkerIndex from, WorkerIndex to, const Link& link) {
  std::vector<Way>& row = ways_[from];
  if (row.size() <= to) row.resize(workers_.size(), unmeasured_);
  row[to] = link.bytes_per_s > 0 ? WayOf(link) : unmeasured_;
}

Dispatcher::Way Dispatcher::WayBetween(WorkerIndex from, WorkerIndex to) const {
  if (from == to) return local_;
  if (from >= ways_.size() || ways_[from].size() <= to) return unmeasured_;
  return ways_[from][to];
}

Link Dispatcher::LinkBetween(WorkerIndex from, WorkerIndex to) const {
  const Way way = WayBetween(from, to);
  return {.bytes_per_s = 1.0 / way.s_per_byte, .rtt_s = way.rtt_s};
}

void Dispatcher::AvoidPair(WorkerIndex a, WorkerIndex b, double until_s) {
  avoided_[PairKey(a, b)] = until_s;
}

bool Dispatcher::Avoided(WorkerIndex a, WorkerIndex b, double now_s) const {
  if (avoided_.empty()) return false;
  const auto found = avoided_.find(PairKey(a, b));
  return found != avoided_.end() && now_s < found->second;
}

AssignmentId Dispatcher::Assign(const Work& work, const Candidate& choice, double now_s) {
  if (free_assignments_.empty()) {
    free_assignments_.push_back(static_cast<uint32_t>(assignments_.size()));
    assignments_.emplace_back();
  }
  const uint32_t slot = free_assignments_.back();
  free_assignments_.pop_back();
  ++n_assignments_;
  const uint32_t generation = assignments_[slot].generation;
  const AssignmentId id = uint64_t{generation} << 32 | slot;
  Assignment& assignment = assignments_[slot];
  assignment = {
      .generation = generation,
      .compute_tokens = work.prompt_tokens - std::min(work.prompt_tokens, choice.cached_tokens),
      .prompt_tokens = work.prompt_tokens,
      .life_tokens = work.prompt_tokens + work.expected_output_tokens};
  if (!work.fixed_prefill && choice.prefill != kNoWorker) {
    Worker& worker = workers_[choice.prefill];
    assignment.prefill = {choice.prefill, worker.generation, true};
    ++worker.assigned_prefill;
    worker.prefill_tokens += assignment.compute_tokens;
    worker.pending_prefill.push_back({id, now_s});
    Refresh(choice.prefill);
  }
  if (work.needs_decode && choice.decode != kNoWorker) {
    Worker& worker = workers_[choice.decode];
    assignment.decode = {choice.decode, worker.generation, true};
    ++worker.assigned_decode;
    ++worker.sequences;
    worker.context_tokens += assignment.prompt_tokens;
    worker.life_tokens += assignment.life_tokens;
    Refresh(choice.decode);
  }
  return id;
}

Dispatcher::Worker* Dispatcher::Find(const Part& part) {
  if (part.worker == kNoWorker || workers_[part.worker].generation != part.generation) {
    return nullptr;
  }
  return &workers_[part.worker];
}

Dispatcher::Assignment* Dispatcher::Find(AssignmentId id) {
  const auto slot = static_cast<uint32_t>(id);
  if (slot >= assignments_.size() || assignments_[slot].generation != id >> 32) return nullptr;
  return &assignments_[slot];
}

void Dispatcher::PrefillReported(Assignment& assignment) {
  Worker* const worker = Find(assignment.prefill);
  if (worker != nullptr && assignment.prefill.unreported) {
    worker->prefill_tokens -= assignment.compute_tokens;
    Refresh(assignment.prefill.worker);
  }
  assignment.prefill.unreported = false;
}

void Dispatcher::DecodeReported(Assignment& assignment) {
  Worker* const worker = Find(assignment.decode);
  if (worker != nullptr && assignment.decode.unreported) {
    --worker->sequences;
    worker->context_tokens -= assignment.prompt_tokens;
    worker->life_tokens -= assignment.life_tokens;
    Refresh(assignment.decode.worker);
  }
  assignment.decode.unreported = false;
}

void Dispatcher::LeaveReport(const Assignment& assignment) {
  Worker* const worker = Find(assignment.decode);
  if (worker == nullptr) return;
  WorkerReport& report = worker->report;
  uint32_t& sequences = report.decode_running > 0 ? report.decode_running : report.decode_waiting;
  sequences -= std::min(sequences, 1u);
  report.kv_used_tokens -= std::min<uint64_t>(report.kv_used_tokens, assignment.prompt_tokens);
  report.kv_expected_tokens -=
      std::min<uint64_t>(report.kv_expected_tokens, assignment.life_tokens);
  Refresh(assignment.decode.worker);
}

void Dispatcher::DecodeBegins(AssignmentId id, double now_s) {
  Assignment* const assignment = Find(id);
  if (assignment == nullptr) return;
  if (Worker* worker = Find(assignment->decode)) worker->pending_decode.push_back({id, now_s});
}

void Dispatcher::PromptComputed(AssignmentId id, double now_s) {
  Assignment* const assignment = Find(id);
  if (assignment == nullptr) return;
  Worker* const worker = Find(assignment->prefill);
  if (worker == nullptr) return;
  if (assignment->prefill.unreported) return PrefillReported(*assignment);
  std::vector<WorkerReport::Prompt>& prompts = worker->report.prompts;
  const auto own = std::ranges::find(prompts, id, &WorkerReport::Prompt::id);
  if (own == prompts.end()) return;
  // Of the others' tokens no more are left than there were, nor than by time.
  const Hot& hot = hot_[assignment->prefill.worker];
  const double left = hot.ReportedSeconds(now_s) / (hot.TokenSeconds() * hot.slowdown);
  uint64_t& tokens = worker->report.tokens_to_compute;
  tokens -= std::min<uint64_t>(tokens, own->tokens_to_compute);
  tokens = std::min(tokens, static_cast<uint64_t>(left));
  prompts.erase(own);
  worker->reported_s = std::max(worker->reported_s, now_s);
  Refresh(assignment->prefill.worker);
}

void Dispatcher::ReleasePrefill(AssignmentId id) {
  Assignment* const assignment = Find(id);
  if (assignment == nullptr || assignment->prefill.worker == kNoWorker) return;
  PrefillReported(*assignment);
  if (Worker* worker = Find(assignment->prefill)) --worker->assigned_prefill;
  assignment->prefill = Part();
  FreeIfDone(id);
}

void Dispatcher::ReleaseDecode(AssignmentId id) {
  Assignment* const assignment = Find(id);
  if (assignment == nullptr || assignment->decode.worker == kNoWorker) return;
  if (assignment->decode.unreported) {
    DecodeReported(*assignment);
  } else {
    LeaveReport(*assignment);
  }
  if (Worker* worker = Find(assignment->decode)) --worker->assigned_decode;
  assignment->decode = Part();
  FreeIfDone(id);
}

void Dispatcher::FreeIfDone(AssignmentId id) {
  const auto slot = static_cast<uint32_t>(id);
  Assignment& assignment = assignments_[slot];
  if (assignment.prefill.worker != kNoWorker || assignment.decode.worker != kNoWorker) return;
  ++assignment.generation;
  free_assignments_.push_back(slot);
  --n_assignments_;
}

uint32_t Dispatcher::assigned(WorkerIndex worker) const {
  return workers_[worker].assigned_prefill + workers_[worker].assigned_decode;
}

double Dispatcher::PrefillTokensPerSecond() const {
  double rate = 0;
  for (size_t i = 0; i < hot_.size(); ++i) {
    if ((bounds_.role[i] & Bounds::kPrefills) == 0) continue;
    rate += 1 / hot_[i].TokenSeconds();
  }
  return rate;
}

uint32_t Dispatcher::Takers(bool prefill) const {
  return static_cast<uint32_t>(
      std::count_if(workers_.begin(), workers_.end(), [&](const Worker& worker) {
        return prefill ? worker.report.takes_prefill && !worker.report.decode_first
                       : worker.report.takes_decode;
      }));
}

}  // namespace tandem::scheduler
