#include "scheduler/cluster_view.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "base/status.h"

namespace tandem::scheduler {
namespace {

/// FNV-1a and splitmix64's last steps: the same in every router, unlike absl's hashes.
uint64_t Weight(uint64_t hash, const std::string& address) {
  uint64_t x = hash;
  for (const char c : address) x = (x ^ static_cast<uint8_t>(c)) * 0x100000001b3;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

}  // namespace

uint64_t ClusterView::Add(v1::WorkerInfo info, absl::Time now) {
  std::lock_guard lock(mutex_);
  const std::string id = info.worker_id();
  Entry& entry = entries_[id];
  entry.info = std::move(info);
  entry.load.Clear();
  entry.reported = now;
  entry.registration = ++registrations_;
  return entry.registration;
}

void ClusterView::Remove(const std::string& worker_id, uint64_t registration) {
  std::lock_guard lock(mutex_);
  auto found = entries_.find(worker_id);
  if (found != entries_.end() && found->second.registration == registration) entries_.erase(found);
}

void ClusterView::Report(const std::string& worker_id, v1::WorkerLoad load, absl::Time now) {
  std::lock_guard lock(mutex_);
  auto found = entries_.find(worker_id);
  if (found == entries_.end()) return;
  found->second.load = std::move(load);
  found->second.reported = now;
}

bool ClusterView::IsUsable(const Entry& entry, v1::Phase phase, absl::Time now) const {
  return entry.info.phase() == phase && !entry.load.draining() &&
         now - entry.reported <= worker_timeout_;
}

ClusterView::Entry* ClusterView::LeastLoaded(v1::Phase phase, absl::Time now) {
  auto key = [](const Entry& entry) {
    return std::tuple(std::max(entry.assigned, entry.load.running() + entry.load.waiting()),
                      entry.last_chosen);
  };
  Entry* best = nullptr;
  for (auto& [id, entry] : entries_) {
    if (!IsUsable(entry, phase, now)) continue;
    if (best == nullptr || key(entry) < key(*best)) best = &entry;
  }
  return best;
}

absl::StatusOr<Pair> ClusterView::Assign(absl::Time now) {
  std::lock_guard lock(mutex_);
  Entry* const prefill = LeastLoaded(v1::PHASE_PREFILL, now);
  Entry* const decode = LeastLoaded(v1::PHASE_DECODE, now);
  if (prefill == nullptr || decode == nullptr) {
    return absl::UnavailableError(absl::StrCat(
        "no ", prefill == nullptr ? "prefill" : "decode",
        " worker is registered and able to take requests; `tandem status` lists the workers"));
  }
  for (Entry* entry : {prefill, decode}) {
    ++entry->assigned;
    entry->last_chosen = ++turn_;
  }
  return Pair{prefill->info, decode->info};
}

void ClusterView::Release(const std::string& worker_id) {
  std::lock_guard lock(mutex_);
  auto found = entries_.find(worker_id);
  if (found != entries_.end() && found->second.assigned > 0) --found->second.assigned;
}

std::string ClusterView::DataAddress(const std::string& worker_id, absl::Time now) const {
  std::lock_guard lock(mutex_);
  const auto found = entries_.find(worker_id);
  if (found == entries_.end() || now - found->second.reported > worker_timeout_) return "";
  return found->second.info.data_address();
}

std::string ClusterView::StoreFor(uint64_t hash, absl::Time now) const {
  std::lock_guard lock(mutex_);
  std::string address;
  uint64_t highest = 0;
  for (const auto& [id, entry] : entries_) {
    if (!IsUsable(entry, v1::PHASE_STORE, now)) continue;
    const uint64_t weight = Weight(hash, entry.info.data_address());
    if (!address.empty() && weight <= highest) continue;
    highest = weight;
    address = entry.info.data_address();
  }
  return address;
}

bool ClusterView::Ready(absl::Time now) const {
  return Usable(v1::PHASE_PREFILL, now) > 0 && Usable(v1::PHASE_DECODE, now) > 0;
}

uint32_t ClusterView::Usable(v1::Phase phase, absl::Time now) const {
  std::lock_guard lock(mutex_);
  return static_cast<uint32_t>(
      std::count_if(entries_.begin(), entries_.end(),
                    [&](const auto& each) { return IsUsable(each.second, phase, now); }));
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
      state.set_assigned(entry.assigned);
    }
  }
  std::sort(states.begin(), states.end(), [](const auto& a, const auto& b) {
    return std::tie(a.info().name(), a.info().worker_id()) <
           std::tie(b.info().name(), b.info().worker_id());
  });
  return states;
}

}  // namespace tandem::scheduler
