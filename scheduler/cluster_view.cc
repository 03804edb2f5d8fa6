#include "scheduler/cluster_view.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace tandem::scheduler {
namespace {

double Seconds(absl::Time time) { return absl::ToDoubleSeconds(time - absl::UnixEpoch()); }

/// FNV-1a and splitmix64's last steps: the same in every router, unlike absl's hashes.
uint64_t Weight(uint64_t hash, const std::string& address) {
  uint64_t x = hash;
  for (const char c : address) x = (x ^ static_cast<uint8_t>(c)) * 0x100000001b3;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

bool Prefills(v1::Phase phase, const v1::WorkerInfo& info) {
  return phase == v1::PHASE_PREFILL || phase == v1::PHASE_MIXED ||
         (phase == v1::PHASE_DECODE && info.prefills_too());
}

bool Decodes(v1::Phase phase) { return phase == v1::PHASE_DECODE || phase == v1::PHASE_MIXED; }

/// The phase of now: a worker that has not told one has that of its registration.
v1::Phase PhaseOf(const v1::WorkerInfo& info, const v1::WorkerLoad& load) {
  return load.phase() == v1::PHASE_UNSPECIFIED ? info.phase() : load.phase();
}

/// Something that only a step can bring forward.
bool HasWork(const v1::WorkerLoad& load) {
  return load.decode().running() > 0 ||
         (load.prefill().running() > 0 && load.prefill().tokens_to_compute() > 0);
}

}  // namespace

LatencyModel ModelFrom(const v1::LatencyModel& told, const LatencyModel& otherwise) {
  LatencyModel model = otherwise;
  model.prefill_samples = told.prefill_samples();
  model.decode_samples = told.decode_samples();
  if (told.prefill_samples() > 0) {
    model.prefill = {.base_s = told.prefill_base_s(),
                     .per_token_s = told.prefill_per_token_s(),
                     .per_position_s = told.prefill_per_position_s()};
    model.saturation_tokens = std::max(1u, told.saturation_tokens());
  }
  if (told.decode_samples() > 0) {
    model.decode.base_s = told.decode_base_s();
    model.decode.per_sequence_s = told.decode_per_sequence_s();
    model.decode.per_context_token_s = told.decode_per_context_token_s();
    const int n = std::min<int>(told.decode_factors_size(), DecodeCost::kFactors - 1);
    model.decode.factor = DecodeCost().factor;
    for (int i = 0; i < n; ++i) {
      // What is no number is not within bounds either.
      const float factor = told.decode_factors(i);
      const bool believed = factor > DecodeCost::kLeastFactor && factor < DecodeCost::kMostFactor;
      model.decode.factor[i + 1] = believed ? factor : 1;
    }
  }
  return model;
}

uint64_t ClusterView::Add(v1::WorkerInfo info, absl::Time now) {
  std::lock_guard lock(mutex_);
  const std::string id = info.worker_id();
  Entry& entry = entries_[id];
  if (entry.index == kNoWorker) {
    entry.index = dispatcher_.Add();
    if (entry_of_index_.size() <= entry.index) entry_of_index_.resize(entry.index + 1);
    entry_of_index_[entry.index] = &entry;
  } else {
    index_of_address_.erase(entry.info.data_address());
  }
  index_of_address_[info.data_address()] = entry.index;
  entry.info = std::move(info);
  entry.load.Clear();
  SetReported(entry, now);
  entry.progressed = now;
  entry.told = false;
  entry.registration = ++registrations_;
  TellDispatcher(entry, now);
  return entry.registration;
}

void ClusterView::Remove(const std::string& worker_id, uint64_t registration) {
  std::lock_guard lock(mutex_);
  auto found = entries_.find(worker_id);
  if (found == entries_.end() || found->second.registration != registration) return;
  const Entry& entry = found->second;
  dispatcher_.Remove(entry.index);
  by_report_.erase({entry.reported, entry.index});
  entry_of_index_[entry.index] = nullptr;
  const auto at = index_of_address_.find(entry.info.data_address());
  if (at != index_of_address_.end() && at->second == entry.index) index_of_address_.erase(at);
  for (NodeWorker& node : worker_of_node_) {
    if (node.index == entry.index) node = {};
  }
  entries_.erase(found);
}

void ClusterView::Report(const std::string& worker_id, v1::WorkerLoad load, absl::Time now) {
  std::lock_guard lock(mutex_);
  auto found = entries_.find(worker_id);
  if (found == entries_.end()) return;
  Entry& entry = found->second;
  if (!HasWork(load) || !HasWork(entry.load) || load.steps() != entry.load.steps()) {
    entry.progressed = now;
  }
  entry.load = std::move(load);
  SetReported(entry, now);
  if (!Stalled(entry)) entry.told = false;
  if (directory_ != nullptr) {
    if (const auto number = directory_->NumberOf(worker_id)) {
      if (worker_of_node_.size() <= *number) worker_of_node_.resize(*number + 1);
      worker_of_node_[*number] = {.index = entry.index, .chunk_tokens = entry.info.chunk_tokens()};
    }
  }
  TellLinks(entry);
  TellDispatcher(entry, now);
}

void ClusterView::SetReported(Entry& entry, absl::Time now) {
  by_report_.erase({entry.reported, entry.index});
  entry.reported = now;
  by_report_.emplace(now, entry.index);
}

void ClusterView::TellLinks(const Entry& entry) {
  for (const v1::LinkEstimate& link : entry.load.links()) {
    const auto from = index_of_address_.find(link.data_address());
    if (from == index_of_address_.end() || from->second == entry.index) continue;
    dispatcher_.SetLink(from->second, entry.index,
                        {.bytes_per_s = link.bytes_per_s(), .rtt_s = link.rtt_s()});
  }
}

void ClusterView::TellDispatcher(const Entry& entry, absl::Time now) {
  const v1::WorkerInfo& info = entry.info;
  const v1::WorkerLoad& load = entry.load;
  const v1::Phase phase = PhaseOf(info, load);
  const v1::Phase next = load.changing_to() == v1::PHASE_UNSPECIFIED ? phase : load.changing_to();
  const bool usable = IsUsable(entry, now);
  if (load.latency().prefill_samples() > 0 || load.latency().decode_samples() > 0) {
    typical_ = ModelFrom(load.latency(), typical_);
  }
  WorkerReport report = {.takes_prefill = usable && Prefills(phase, info) && Prefills(next, info),
                         .takes_decode = usable && Decodes(phase) && Decodes(next),
                         .decode_first = phase == v1::PHASE_DECODE,
                         .tokens_to_compute = load.prefill().tokens_to_compute(),
                         .decode_running = load.decode().running(),
                         .decode_waiting = load.decode().waiting() + load.parked(),
                         .max_sequences = load.decode().max_sequences(),
                         .kv_used_tokens = load.decode().kv_used_tokens(),
                         .kv_expected_tokens = load.decode().kv_expected_tokens(),
                         .kv_capacity_tokens = load.decode().kv_capacity_tokens(),
                         .latency = ModelFrom(load.latency(), typical_)};
  for (const v1::Job& job : load.prefill().jobs()) {
    report.prompts.push_back(
        {.id = job.id() ^ job_salt_, .tokens_to_compute = job.tokens_to_compute()});
  }
  for (const v1::Job& job : load.decode().jobs()) {
    report.sequences.push_back(job.id() ^ job_salt_);
  }
  if (report.max_sequences == 0) report.max_sequences = info.max_sequences();
  if (report.kv_capacity_tokens == 0) report.kv_capacity_tokens = info.kv_capacity_tokens();
  dispatcher_.Report(entry.index, report, Seconds(now));
}

bool ClusterView::Silent(const Entry& entry, absl::Time now) const {
  return now - entry.reported > options_.worker_timeout;
}

bool ClusterView::Stalled(const Entry& entry) const {
  return HasWork(entry.load) && entry.load.steps() > 0 &&
         entry.reported - entry.progressed > options_.stall_timeout;
}

bool ClusterView::IsUsable(const Entry& entry, absl::Time now) const {
  return !entry.load.draining() && !Silent(entry, now) && !Stalled(entry);
}

void ClusterView::SuspendSilent(absl::Time now) {
  for (const auto& [reported, index] : by_report_) {
    if (now - reported <= options_.worker_timeout) break;
    dispatcher_.Suspend(index);
  }
}

std::vector<LostWorker> ClusterView::Lost(absl::Time now) {
  std::lock_guard lock(mutex_);
  std::vector<LostWorker> lost;
  for (auto& [id, entry] : entries_) {
    const bool silent = Silent(entry, now);
    if (entry.told || (!silent && !Stalled(entry))) continue;
    entry.told = true;
    dispatcher_.Suspend(entry.index);
    lost.push_back({.worker_id = id,
                    .name = entry.info.name(),
                    .reason = silent ? absl::StrCat("has not reported for ",
                                                    absl::FormatDuration(now - entry.reported))
                                     : absl::StrCat("has made no step for ",
                                                    absl::FormatDuration(now - entry.progressed),
                                                    ", though it has work")});
  }
  return lost;
}

WorkerIndex ClusterView::IndexOf(const std::string& worker_id) const {
  const auto found = entries_.find(worker_id);
  return found == entries_.end() ? kNoWorker : found->second.index;
}

std::vector<CachedAt> ClusterView::Cached(const Placement& what) const {
  std::vector<CachedAt> cached;
  if (directory_ == nullptr || what.chunk_ids.empty()) return cached;
  const std::vector<LeadingChunks> leading = directory_->Leading(what.chunk_ids, what.kv_floor);
  cached.reserve(leading.size());
  for (const LeadingChunks& node : leading) {
    if (node.node >= worker_of_node_.size()) continue;
    const auto [index, chunk_tokens] = worker_of_node_[node.node];
    if (index == kNoWorker) continue;
    cached.push_back({.worker = index, .tokens = node.n_chunks * chunk_tokens});
  }
  return cached;
}

Work ClusterView::WorkOf(const Placement& what) const {
  Work work = {.prompt_tokens = what.prompt_tokens,
               .expected_output_tokens = lengths_.Expected(0, std::max(1u, what.max_tokens)),
               .needs_decode = what.max_tokens > 1,
               .cached = Cached(what),
               .waited_s = what.waited_s};
  for (const auto& [id, entry] : entries_) {
    if (entry.info.kv_bytes_per_token() == 0) continue;
    work.kv_bytes_per_token = static_cast<double>(entry.info.kv_bytes_per_token());
    break;
  }
  for (const std::string& id : what.excluded) {
    if (const WorkerIndex index = IndexOf(id); index != kNoWorker) work.excluded.push_back(index);
  }
  for (const auto& [prefill, decode] : what.excluded_pairs) {
    work.excluded_pairs.emplace_back(IndexOf(prefill), IndexOf(decode));
  }
  if (!what.kv_address.empty()) {
    const auto at = index_of_address_.find(what.kv_address);
    work.fixed_prefill = at == index_of_address_.end() ? kNoWorker : at->second;
    work.excluded.push_back(*work.fixed_prefill);
  }
  return work;
}

absl::StatusOr<Decision> ClusterView::Choose(const Work& work, absl::Time now) {
  SuspendSilent(now);
  return dispatcher_.Choose(work, Seconds(now), random_);
}

absl::StatusOr<Pair> ClusterView::Assign(const Placement& what, absl::Time now) {
  std::lock_guard lock(mutex_);
  const Work work = WorkOf(what);
  ASSIGN_OR_RETURN(const Decision decision, Choose(work, now));
  const Candidate& choice = decision.choice;
  Pair pair = {.ttft_s = choice.ttft_s, .tpot_s = choice.tpot_s};
  if (choice.prefill != kNoWorker) pair.prefill = entry_of_index_[choice.prefill]->info;
  if (choice.decode != kNoWorker) pair.decode = entry_of_index_[choice.decode]->info;
  pair.assignment = dispatcher_.Assign(work, choice, Seconds(now));
  pair.job_id = pair.assignment ^ job_salt_;
  pair.decision.set_prompt_tokens(what.prompt_tokens);
  for (const Candidate& candidate : decision.candidates) {
    *pair.decision.add_candidates() = Explain(candidate);
  }
  return pair;
}

v1::Candidate ClusterView::Explain(const Candidate& candidate) const {
  v1::Candidate told;
  if (candidate.prefill != kNoWorker) {
    told.set_prefill_worker(entry_of_index_[candidate.prefill]->info.name());
  }
  if (candidate.decode != kNoWorker) {
    told.set_decode_worker(entry_of_index_[candidate.decode]->info.name());
  }
  told.set_chosen(candidate.chosen);
  told.set_score(candidate.score);
  told.set_ttft_s(candidate.ttft_s);
  told.set_tpot_s(candidate.tpot_s);
  told.set_queue_s(candidate.queue_s);
  told.set_compute_s(candidate.compute_s);
  told.set_load_s(candidate.load_s);
  told.set_cached_tokens(candidate.cached_tokens);
  told.set_step_s(candidate.step_s);
  told.set_decode_wait_s(candidate.decode_wait_s);
  told.set_handoff_s(candidate.handoff_s);
  return told;
}

absl::StatusOr<Candidate> ClusterView::Predict(const Placement& what, absl::Time now) {
  std::lock_guard lock(mutex_);
  ASSIGN_OR_RETURN(const Decision decision, Choose(WorkOf(what), now));
  return decision.choice;
}

void ClusterView::DecodeBegins(AssignmentId id, absl::Time now) {
  std::lock_guard lock(mutex_);
  dispatcher_.DecodeBegins(id, Seconds(now));
}

void ClusterView::PromptComputed(AssignmentId id, absl::Time now) {
  std::lock_guard lock(mutex_);
  dispatcher_.PromptComputed(id, Seconds(now));
}

void ClusterView::ReleasePrefill(AssignmentId id) {
  std::lock_guard lock(mutex_);
  dispatcher_.ReleasePrefill(id);
}

void ClusterView::ReleaseDecode(AssignmentId id) {
  std::lock_guard lock(mutex_);
  dispatcher_.ReleaseDecode(id);
}

void ClusterView::AvoidPair(const std::string& a, const std::string& b, absl::Time now) {
  std::lock_guard lock(mutex_);
  dispatcher_.AvoidPair(IndexOf(a), IndexOf(b), Seconds(now + options_.avoid_pair));
}

void ClusterView::ObserveOutput(uint32_t generated_tokens) {
  std::lock_guard lock(mutex_);
  lengths_.Observe(generated_tokens);
}

size_t ClusterView::assignments() const {
  std::lock_guard lock(mutex_);
  return dispatcher_.assignments();
}

double ClusterView::PrefillTokensPerSecond() const {
  std::lock_guard lock(mutex_);
  return dispatcher_.PrefillTokensPerSecond();
}

ChunkNaming ClusterView::naming() const {
  std::lock_guard lock(mutex_);
  for (const auto& [id, entry] : entries_) {
    if (entry.info.kv_namespace().empty() || entry.info.chunk_tokens() == 0) continue;
    return {.kv_namespace = entry.info.kv_namespace(), .chunk_tokens = entry.info.chunk_tokens()};
  }
  return {};
}

std::string ClusterView::DataAddress(const std::string& worker_id, absl::Time now) const {
  std::lock_guard lock(mutex_);
  const auto found = entries_.find(worker_id);
  if (found == entries_.end() || Silent(found->second, now)) return "";
  return found->second.info.data_address();
}

std::string ClusterView::StoreFor(uint64_t hash, absl::Time now) const {
  std::lock_guard lock(mutex_);
  std::string address;
  uint64_t highest = 0;
  for (const auto& [id, entry] : entries_) {
    if (entry.info.phase() != v1::PHASE_STORE || !IsUsable(entry, now)) continue;
    const uint64_t weight = Weight(hash, entry.info.data_address());
    if (!address.empty() && weight <= highest) continue;
    highest = weight;
    address = entry.info.data_address();
  }
  return address;
}

bool ClusterView::Ready(absl::Time now) const {
  std::lock_guard lock(mutex_);
  bool prefills = false, decodes = false;
  for (const auto& [id, entry] : entries_) {
    if (!IsUsable(entry, now)) continue;
    const v1::Phase phase = PhaseOf(entry.info, entry.load);
    prefills |= Prefills(phase, entry.info);
    decodes |= Decodes(phase);
  }
  return prefills && decodes;
}

uint32_t ClusterView::Usable(v1::Phase phase, absl::Time now) const {
  std::lock_guard lock(mutex_);
  return static_cast<uint32_t>(
      std::count_if(entries_.begin(), entries_.end(), [&](const auto& each) {
        return PhaseOf(each.second.info, each.second.load) == phase && IsUsable(each.second, now);
      }));
}

std::vector<v1::WorkerState> ClusterView::List(absl::Time now) const {
  std::vector<v1::WorkerState> states;
  {
    std::lock_guard lock(mutex_);
    for (const auto& [id, entry] : entries_) {
      v1::WorkerState& state = states.emplace_back();
      *state.mutable_info() = entry.info;
      *state.mutable_load() = entry.load;
      state.set_report_age_s(absl::ToDoubleSeconds(now - entry.reported));
      state.set_assigned(dispatcher_.assigned(entry.index));
    }
  }
  std::sort(states.begin(), states.end(), [](const auto& a, const auto& b) {
    return std::tie(a.info().name(), a.info().worker_id()) <
           std::tie(b.info().name(), b.info().worker_id());
  });
  return states;
}

}  // namespace tandem::scheduler
