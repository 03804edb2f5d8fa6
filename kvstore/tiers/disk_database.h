// The disk tier's RocksDB: the values in blob files, an index record beside each. Knows nothing of
// limits and eviction, and everything of RocksDB; no other file includes that.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <shared_mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvstore/chunk.h"

namespace tandem::kvstore {

/// What is written at once, all or nothing.
struct DiskBatch {
  /// Index records; none: the entry goes, with its value.
  std::vector<std::pair<ChunkKey, std::optional<std::string>>> records;
  /// A value besides, or null. Its record is among the others.
  StoredChunkPtr chunk;
};

/// Thread-safe. Errors are DATA_LOSS for what is damaged and UNAVAILABLE for a medium that fails.
///
/// Space: a value that was overwritten or deleted stays in its blob file until nothing in that file
/// is used, or until CollectGarbage has moved what is. RocksDB can do that by itself, but only in
/// compactions that come along, each of which would move all values of the oldest files it allows
/// (its keys are hashes, so each compaction touches every file): many times what is written. So
/// compactions by themselves move only keys, and the owner says when, and how much.
class DiskDatabase {
 public:
  /// Opens the database of this folder, or makes it. One that is damaged is repaired: then most
  /// values are gone, and `repaired` says that all that is left must be verified. `limit_bytes`:
  /// what it will hold, which sets the size of files. UNAVAILABLE, with the path and what to do.
  static absl::StatusOr<std::unique_ptr<DiskDatabase>> Open(std::string path, uint64_t limit_bytes);
  ~DiskDatabase();

  bool repaired() const { return repaired_; }
  /// Calls `visit` with each key and record, as bytes: they may be damaged.
  absl::Status ReadIndex(
      const std::function<void(std::string_view key, std::string_view record)>& visit);
  /// NOT_FOUND besides.
  absl::StatusOr<std::vector<uint8_t>> Read(const ChunkKey& key);
  absl::Status Write(const DiskBatch& batch);

  /// After a write failed: lets RocksDB go on, or opens it anew where that does not help. Sets
  /// `reopened`; then what was not acknowledged may be there or not.
  absl::Status Resume(bool& reopened);
  /// Opens it anew. REQUIRES of this and Repair: no iteration under way.
  absl::Status Reopen();
  /// Rebuilds it from its files. Most values are gone then; see `repaired`.
  absl::Status Repair();
  /// Deletes all values but those of these keys. REQUIRES: sorted.
  absl::Status KeepOnly(const std::vector<ChunkKey>& keys);

  /// Of all blob files, with what is garbage in them.
  uint64_t BlobBytes() const;
  /// What RocksDB knows to be garbage of that: without what was deleted since AccountForDeletes.
  uint64_t KnownGarbageBytes() const;
  /// Brings deletions to where they count as garbage, and deletes files of nothing but garbage.
  absl::Status AccountForDeletes();
  /// Moves the live values of the oldest blob files, `max_moved_bytes` of them (or one file's), and
  /// deletes these files.
  absl::Status CollectGarbage(uint64_t max_moved_bytes);
  /// Stops the two above with CANCELLED, now and from now on (until Reopen or Repair).
  void CancelGarbageCollection() { canceled_ = true; }

  /// Of the memory and the log file that take a write before a blob file does.
  uint64_t write_buffer_bytes() const;
  /// What the file system has left. Nothing when it does not tell.
  std::optional<uint64_t> FreeBytes() const;

 private:
  struct Handles;

  DiskDatabase(std::string path, uint64_t limit_bytes);
  // These: mutex_ is held exclusively.
  absl::Status OpenOrRepair();
  absl::Status RepairFiles();
  void Close();

  const std::string path_;
  const uint64_t limit_bytes_;
  std::atomic<bool> canceled_ = false;
  std::atomic<bool> repaired_ = false;
  // Exclusive: handles_ changes. Shared: it is used.
  mutable std::shared_mutex mutex_;
  std::unique_ptr<Handles> handles_;  // null while it could not be opened
};

}  // namespace tandem::kvstore
