#include "kvstore/holdings.h"

namespace tandem::kvstore {

uint8_t Holdings::Slot::mask() const {
  uint8_t mask = 0;
  for (size_t i = 0; i < levels.size(); ++i) {
    if (levels[i].held()) mask |= static_cast<uint8_t>(1u << i);
  }
  return mask;
}

bool Holdings::Set(const ChunkKey& key, const TierEntry* entry, bool in_memory, bool on_disk) {
  auto found = slots_.find(key.id);
  if (found == slots_.end()) {
    if (!entry || !(in_memory || on_disk)) return false;
    found = slots_.try_emplace(key.id).first;
  }
  Slot& slot = found->second;
  const uint8_t before = slot.mask();
  Place& place = slot.levels[static_cast<size_t>(key.level)];
  if (entry) {
    slot.first_position = entry->first_position;
    slot.n_tokens = entry->n_tokens;
    place.bytes = entry->bytes;
  } else if (!place.held()) {
    return false;
  }
  place.in_memory = in_memory;
  place.on_disk = on_disk;
  const uint8_t after = slot.mask();
  if (after == 0) Erase(key.id);
  return after != before;
}

bool Holdings::Erase(const ChunkId& id) {
  const auto found = slots_.find(id);
  if (found == slots_.end()) return false;
  if (found->second.pinned) --pins_;
  EndLease(found->second);
  slots_.erase(found);
  return true;
}

Store::Holding Holdings::Find(const ChunkId& id) const {
  Store::Holding holding;
  const auto found = slots_.find(id);
  if (found == slots_.end()) return holding;
  const Slot& slot = found->second;
  holding.levels = slot.mask();
  holding.n_tokens = slot.n_tokens;
  for (size_t i = 0; i < slot.levels.size(); ++i) {
    if (!slot.levels[i].held()) continue;
    holding.bytes[i] = slot.levels[i].bytes;
    holding.origins[i] = slot.levels[i].in_memory ? Origin::kMemory : Origin::kDisk;
  }
  return holding;
}

uint8_t Holdings::Levels(const ChunkId& id) const {
  const auto found = slots_.find(id);
  return found == slots_.end() ? uint8_t{0} : found->second.mask();
}

const Holdings::Place* Holdings::FindPlace(const ChunkKey& key) const {
  const auto found = slots_.find(key.id);
  return found == slots_.end() ? nullptr : &found->second.levels[static_cast<size_t>(key.level)];
}

bool Holdings::InMemory(const ChunkKey& key) const {
  const Place* place = FindPlace(key);
  return place && place->in_memory;
}

bool Holdings::Holds(const ChunkKey& key) const {
  const Place* place = FindPlace(key);
  return place && place->held();
}

bool Holdings::pinned(const ChunkId& id) const {
  const auto found = slots_.find(id);
  return found != slots_.end() && found->second.pinned;
}

bool Holdings::SetPinned(const ChunkId& id, bool pinned) {
  const auto found = slots_.find(id);
  if (found == slots_.end()) return false;
  if (found->second.pinned != pinned) pins_ += pinned ? 1 : -1;
  found->second.pinned = pinned;
  return true;
}

bool Holdings::AddLease(const ChunkId& id, uint64_t most_bytes) {
  const auto found = slots_.find(id);
  if (found == slots_.end()) return false;
  Slot& slot = found->second;
  if (slot.leases == 0) {
    uint64_t bytes = 0;
    for (const Place& place : slot.levels) bytes += place.in_memory ? place.bytes : 0;
    if (leased_bytes_ + bytes > most_bytes) return false;
    slot.leased_bytes = bytes;
    leased_bytes_ += bytes;
    ++leases_;
  }
  ++slot.leases;
  return true;
}

void Holdings::DropLease(const ChunkId& id) {
  const auto found = slots_.find(id);
  // Removed meanwhile, and perhaps put again.
  if (found == slots_.end() || found->second.leases == 0) return;
  if (found->second.leases == 1) return EndLease(found->second);
  --found->second.leases;
}

void Holdings::EndLease(Slot& slot) {
  if (slot.leases == 0) return;
  slot.leases = 0;
  --leases_;
  leased_bytes_ -= slot.leased_bytes;
}

bool Holdings::leased(const ChunkId& id) const {
  const auto found = slots_.find(id);
  return found != slots_.end() && found->second.leases > 0;
}

std::vector<Holdings::Listed> Holdings::List() const {
  std::vector<Listed> all;
  all.reserve(slots_.size());
  for (const auto& [id, slot] : slots_) {
    for (const Level level : codec::kAllLevels) {
      const Place& place = slot.levels[static_cast<size_t>(level)];
      if (!place.held()) continue;
      all.push_back({{{id, level}, slot.first_position, slot.n_tokens, place.bytes, slot.pinned},
                     place.in_memory ? Origin::kMemory : Origin::kDisk});
    }
  }
  return all;
}

}  // namespace tandem::kvstore
