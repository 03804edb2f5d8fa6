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

namespace rocksdb {
struct CompactRangeOptions;
class DB;
class Status;
}  // namespace rocksdb

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
  /// Opens the database of this folder, or makes it. One that is damaged starts anew, empty:
  /// RocksDB's own repair (tried with 7.8) forgets all blob files, and leaves tables that name
  /// them, so that later compactions fail. `limit_bytes`: what it will hold, which sets the size of
  /// files. UNAVAILABLE, with the path and what to do.
  static absl::StatusOr<std::unique_ptr<DiskDatabase>> Open(std::string path, uint64_t limit_bytes);
  ~DiskDatabase();

  /// How often it was opened: what a call before the last time found says nothing any more.
  uint64_t openings() const { return openings_; }
  /// Calls `visit` with each key and record, as bytes: they may be damaged.
  absl::Status ReadIndex(
      const std::function<void(std::string_view key, std::string_view record)>& visit);
  /// NOT_FOUND besides.
  absl::StatusOr<std::vector<uint8_t>> Read(const ChunkKey& key);
  absl::Status Write(const DiskBatch& batch);

  /// After a write failed: lets RocksDB go on, or reopens it where that does not help. Sets
  /// `reopened`; then what was not acknowledged may be there or not.
  absl::Status Resume(bool& reopened);
  /// Closes and opens it.
  absl::Status Reopen();
  /// Deletes it and opens it, empty.
  absl::Status StartAnew();

  /// Of all blob files, with what is garbage in them.
  uint64_t BlobBytes() const;
  /// What RocksDB knows to be garbage of that: without what was deleted since AccountForDeletes.
  uint64_t KnownGarbageBytes() const;
  /// Brings deletions to where they count as garbage, and deletes files of nothing but garbage.
  absl::Status AccountForDeletes();
  /// Moves the live values of the oldest blob files, `max_moved_bytes` of them (or one file's), and
  /// deletes these files.
  absl::Status CollectGarbage(uint64_t max_moved_bytes);
  /// Stops the two above with CANCELLED, now and from now on (until it is opened again).
  void CancelGarbageCollection() { canceled_ = true; }

  /// Of the memory and the log file that take a write before a blob file does.
  uint64_t write_buffer_bytes() const;
  /// What the file system has left. Nothing when it does not tell.
  std::optional<uint64_t> FreeBytes() const;

 private:
  DiskDatabase(std::string path, uint64_t limit_bytes);
  // These: mutex_ is held exclusively.
  absl::Status OpenLocked();
  rocksdb::Status TryOpen();
  void Destroy();

  rocksdb::CompactRangeOptions TidyingOptions();
  uint64_t Property(const std::string& name) const;

  const std::string path_;
  const uint64_t limit_bytes_;
  std::atomic<bool> canceled_ = false;
  std::atomic<uint64_t> openings_ = 0;
  // Exclusive: db_ changes. Shared: it is used.
  mutable std::shared_mutex mutex_;
  std::unique_ptr<rocksdb::DB> db_;  // null while it could not be opened
};

}  // namespace tandem::kvstore
