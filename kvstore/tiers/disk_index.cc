#include "kvstore/tiers/disk_index.h"

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvstore/tiers/disk_tier.h"

namespace tandem::kvstore {
namespace {

constexpr uint8_t kRecordVersion = 1;
constexpr size_t kRecordBytes = 26;

template <typename T>
void Append(std::string& to, T value) {
  to.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

template <typename T>
T Take(std::string_view& from) {
  T value;
  std::memcpy(&value, from.data(), sizeof(value));
  from.remove_prefix(sizeof(value));
  return value;
}

}  // namespace

std::string DiskRecord::Encode() const {
  std::string bytes;
  bytes.reserve(kRecordBytes);
  Append(bytes, kRecordVersion);
  Append(bytes, static_cast<uint8_t>(pinned));
  Append(bytes, first_position);
  Append(bytes, n_tokens);
  Append(bytes, this->bytes);
  Append(bytes, last_use);
  return bytes;
}

absl::StatusOr<DiskRecord> DiskRecord::Decode(std::string_view bytes) {
  if (bytes.size() != kRecordBytes || static_cast<uint8_t>(bytes[0]) != kRecordVersion) {
    return absl::DataLossError(
        absl::StrCat("an index record of ", bytes.size(), " bytes that is none of this version"));
  }
  bytes.remove_prefix(1);
  DiskRecord record;
  record.pinned = Take<uint8_t>(bytes) != 0;
  record.first_position = Take<uint32_t>(bytes);
  record.n_tokens = Take<uint32_t>(bytes);
  record.bytes = Take<uint64_t>(bytes);
  record.last_use = Take<int64_t>(bytes);
  return record;
}

const DiskRecord* DiskIndex::Find(const ChunkKey& key) const {
  const auto found = records_.find(key);
  return found == records_.end() ? nullptr : &found->second;
}

void DiskIndex::Insert(const ChunkKey& key, DiskRecord record) {
  record.generation = ++last_generation_;
  const uint64_t size = SizeOf(record.bytes);
  bytes_ += size;
  if (record.pinned) {
    pinned_bytes_ += size;
  } else {
    order_.insert(PlaceOf(key, record));
  }
  records_.emplace(key, record);
}

std::optional<DiskRecord> DiskIndex::Erase(const ChunkKey& key) {
  const auto found = records_.find(key);
  if (found == records_.end()) return std::nullopt;
  const DiskRecord record = found->second;
  const uint64_t size = SizeOf(record.bytes);
  bytes_ -= size;
  if (record.pinned) {
    pinned_bytes_ -= size;
  } else {
    order_.erase(PlaceOf(key, record));
  }
  records_.erase(found);
  return record;
}

bool DiskIndex::Touch(const ChunkKey& key, int64_t now) {
  const auto found = records_.find(key);
  if (found == records_.end() || found->second.last_use == now) return false;
  DiskRecord& record = found->second;
  if (!record.pinned) order_.erase(PlaceOf(key, record));
  record.last_use = now;
  if (!record.pinned) order_.insert(PlaceOf(key, record));
  return true;
}

bool DiskIndex::SetPinned(const ChunkKey& key, bool pinned) {
  const auto found = records_.find(key);
  if (found == records_.end() || found->second.pinned == pinned) return false;
  DiskRecord& record = found->second;
  record.pinned = pinned;
  if (pinned) {
    order_.erase(PlaceOf(key, record));
    pinned_bytes_ += SizeOf(record.bytes);
  } else {
    order_.insert(PlaceOf(key, record));
    pinned_bytes_ -= SizeOf(record.bytes);
  }
  return true;
}

uint64_t DiskIndex::SizeOf(uint64_t chunk_bytes) { return chunk_bytes + kDiskEntryOverhead; }

std::optional<std::vector<ChunkKey>> DiskIndex::Victims(uint64_t bytes_to_add,
                                                        uint64_t limit_bytes) const {
  std::vector<ChunkKey> victims;
  uint64_t left = bytes_ + bytes_to_add;
  for (auto next = order_.begin(); left > limit_bytes; ++next) {
    if (next == order_.end()) return std::nullopt;
    left -= SizeOf(records_.at(next->key).bytes);
    victims.push_back(next->key);
  }
  return victims;
}

}  // namespace tandem::kvstore
