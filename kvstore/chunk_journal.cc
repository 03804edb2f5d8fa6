#include "kvstore/chunk_journal.h"

#include <algorithm>

namespace tandem::kvstore {

void ChunkJournal::Record(const ChunkId& id, uint8_t levels) {
  const Entry entry{.id_hash = id.Hash(), .levels = levels};
  std::lock_guard lock(mutex_);
  if (levels == 0) {
    if (held_.erase(entry.id_hash) == 0) return;
  } else {
    const auto [held, is_new] = held_.try_emplace(entry.id_hash, levels);
    if (!is_new && held->second == levels) return;
    held->second = levels;
  }
  changes_.push_back(entry);
  if (changes_.size() > max_changes_) {
    changes_.pop_front();
    ++first_change_;
  }
}

ChunkJournal::Batch ChunkJournal::Read(Cursor& cursor, size_t max_entries) const {
  std::lock_guard lock(mutex_);
  Batch batch{.first_sequence = cursor.next_sequence};
  // A reader that is too far behind begins anew, in the middle of a snapshot too.
  if (cursor.next_change < first_change_) {
    batch.snapshot = true;
    cursor.rest.clear();
    cursor.rest.reserve(held_.size());
    for (const auto& [id_hash, levels] : held_) cursor.rest.push_back({id_hash, levels});
    cursor.next_change = first_change_ + changes_.size();
  }
  const size_t from_rest = std::min(max_entries, cursor.rest.size());
  batch.entries.assign(cursor.rest.end() - from_rest, cursor.rest.end());
  cursor.rest.resize(cursor.rest.size() - from_rest);
  if (cursor.rest.empty()) {
    cursor.rest.shrink_to_fit();
    const auto begin = changes_.begin() + (cursor.next_change - first_change_);
    const size_t from_changes = std::min<size_t>(max_entries - from_rest, changes_.end() - begin);
    batch.entries.insert(batch.entries.end(), begin, begin + from_changes);
    cursor.next_change += from_changes;
  }
  cursor.next_sequence += batch.entries.size();
  return batch;
}

size_t ChunkJournal::size() const {
  std::lock_guard lock(mutex_);
  return held_.size();
}

}  // namespace tandem::kvstore
