#include "kvstore/tiers/disk_database.h"

#include <rocksdb/cache.h>
#include <rocksdb/db.h>
#include <rocksdb/filter_policy.h>
#include <rocksdb/table.h>
#include <rocksdb/write_batch.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace tandem::kvstore {
namespace {

using rocksdb::ColumnFamilyDescriptor;
using rocksdb::ColumnFamilyOptions;
using rocksdb::CompactRangeOptions;
using rocksdb::DBOptions;
using rocksdb::Slice;

constexpr uint64_t kMiB = uint64_t{1} << 20;

// A small database gets small files, so that what garbage and logs take stays in proportion.
uint64_t WriteBufferBytes(uint64_t limit_bytes) {
  return std::clamp<uint64_t>(limit_bytes / 32, kMiB / 4, 8 * kMiB);
}

DBOptions DatabaseOptions() {
  DBOptions options;
  options.create_if_missing = true;
  options.create_missing_column_families = true;
  // Values and index records reach their files together. So a log that is damaged costs the writes
  // after the damage, and never sets one at odds with the other.
  options.atomic_flush = true;
  options.max_background_jobs = 2;
  options.max_open_files = 256;
  options.max_file_opening_threads = 2;
  options.max_manifest_file_size = 4 * kMiB;
  options.manifest_preallocation_size = 64 * 1024;
  options.max_log_file_size = kMiB;
  options.keep_log_file_num = 2;
  options.info_log_level = rocksdb::WARN_LEVEL;
  options.stats_dump_period_sec = 0;
  options.stats_persist_period_sec = 0;
  // In steps, so that the system does not write back everything at one go, under readers.
  options.bytes_per_sync = kMiB;
  options.wal_bytes_per_sync = kMiB;
  // The owner decides when to try again.
  options.max_bgerror_resume_count = 0;
  return options;
}

std::vector<ColumnFamilyDescriptor> ColumnFamilies(uint64_t limit_bytes) {
  rocksdb::BlockBasedTableOptions table;
  table.block_cache = rocksdb::NewLRUCache(4 * kMiB);
  table.filter_policy.reset(rocksdb::NewBloomFilterPolicy(10));
  ColumnFamilyOptions index;
  index.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  index.write_buffer_size = kMiB;
  index.compression = rocksdb::kNoCompression;
  // Two levels: the first compaction of a deletion is the one that ends it.
  index.num_levels = 2;
  index.ttl = 0;
  index.target_file_size_base = 8 * kMiB;
  // Files of keys are small. No writer waits for their compaction while values are being moved.
  index.level0_slowdown_writes_trigger = 200;
  index.level0_stop_writes_trigger = 400;
  ColumnFamilyOptions values = index;
  values.write_buffer_size = WriteBufferBytes(limit_bytes);
  values.enable_blob_files = true;
  values.min_blob_size = 0;
  values.blob_file_size = std::clamp<uint64_t>(limit_bytes / 64, kMiB / 4, 64 * kMiB);
  values.blob_compaction_readahead_size = 2 * kMiB;
  return {{rocksdb::kDefaultColumnFamilyName, values}, {"index", index}};
}

bool IsDamage(const rocksdb::Status& status) {
  return status.IsCorruption() || status.IsPathNotFound();
}

absl::Status FromRocks(const rocksdb::Status& status) {
  if (status.ok()) return absl::OkStatus();
  if (status.IsNotFound()) return absl::NotFoundError("not on disk");
  const std::string text = status.ToString();
  if (status.IsIncomplete()) return absl::CancelledError(text);
  return IsDamage(status) ? absl::DataLossError(text) : absl::UnavailableError(text);
}

absl::Status Closed() { return absl::UnavailableError("the database could not be opened again"); }

}  // namespace

struct DiskDatabase::Handles {
  std::unique_ptr<rocksdb::DB> db;
  rocksdb::ColumnFamilyHandle* values = nullptr;
  rocksdb::ColumnFamilyHandle* index = nullptr;

  ~Handles() {
    if (!db) return;
    for (rocksdb::ColumnFamilyHandle* family : {values, index}) {
      db->DestroyColumnFamilyHandle(family).PermitUncheckedError();
    }
  }
  rocksdb::Status Open(const std::string& path, uint64_t limit_bytes) {
    std::vector<rocksdb::ColumnFamilyHandle*> families;
    rocksdb::DB* opened = nullptr;
    const rocksdb::Status status =
        rocksdb::DB::Open(DatabaseOptions(), path, ColumnFamilies(limit_bytes), &families, &opened);
    if (!status.ok()) return status;
    db.reset(opened);
    values = families[0];
    index = families[1];
    return status;
  }
  uint64_t Property(const std::string& name) const {
    uint64_t value = 0;
    db->GetIntProperty(values, name, &value);
    return value;
  }
};

DiskDatabase::DiskDatabase(std::string path, uint64_t limit_bytes)
    : path_(std::move(path)), limit_bytes_(limit_bytes) {}

absl::StatusOr<std::unique_ptr<DiskDatabase>> DiskDatabase::Open(std::string path,
                                                                 uint64_t limit_bytes) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) {
    return absl::UnavailableError(absl::StrCat("cannot make the folder for chunks on disk, ", path,
                                               ": ", error.message(),
                                               "; make it writable for this user or name another"));
  }
  std::unique_ptr<DiskDatabase> database(new DiskDatabase(std::move(path), limit_bytes));
  std::unique_lock lock(database->mutex_);
  RETURN_IF_ERROR(database->OpenOrRepair());
  lock.unlock();
  return database;
}

DiskDatabase::~DiskDatabase() {
  canceled_ = true;
  std::unique_lock lock(mutex_);
  Close();
}

void DiskDatabase::Close() { handles_.reset(); }

absl::Status DiskDatabase::OpenOrRepair() {
  canceled_ = false;
  auto handles = std::make_unique<Handles>();
  rocksdb::Status status = handles->Open(path_, limit_bytes_);
  if (IsDamage(status)) {
    spdlog::warn("disk tier damaged path={} reason=\"{}\"; repairing", path_, status.ToString());
    if (const absl::Status repaired = RepairFiles(); !repaired.ok()) {
      spdlog::warn("disk tier repair failed path={} reason=\"{}\"", path_, repaired.ToString());
    }
    status = handles->Open(path_, limit_bytes_);
  }
  if (!status.ok()) {
    return absl::UnavailableError(absl::StrCat(
        "cannot open the chunks on disk in ", path_, ": ", status.ToString(),
        "; check that the folder is writable for this user, that the disk has room and that no "
        "other process uses it, or delete it: all in it can be computed again"));
  }
  handles_ = std::move(handles);
  return absl::OkStatus();
}

absl::Status DiskDatabase::RepairFiles() {
  repaired_ = true;
  const rocksdb::Status status =
      rocksdb::RepairDB(path_, DatabaseOptions(), ColumnFamilies(limit_bytes_));
  // Where it puts what it could not use, which nobody would ever delete.
  std::error_code ignored;
  std::filesystem::remove_all(std::filesystem::path(path_) / "lost", ignored);
  return FromRocks(status);
}

absl::Status DiskDatabase::ReadIndex(
    const std::function<void(std::string_view key, std::string_view record)>& visit) {
  std::shared_lock lock(mutex_);
  if (!handles_) return Closed();
  rocksdb::ReadOptions options;
  options.fill_cache = false;
  const std::unique_ptr<rocksdb::Iterator> next(
      handles_->db->NewIterator(options, handles_->index));
  for (next->SeekToFirst(); next->Valid(); next->Next()) {
    const Slice key = next->key(), record = next->value();
    visit({key.data(), key.size()}, {record.data(), record.size()});
  }
  return FromRocks(next->status());
}

absl::StatusOr<std::vector<uint8_t>> DiskDatabase::Read(const ChunkKey& key) {
  std::shared_lock lock(mutex_);
  if (!handles_) return Closed();
  rocksdb::PinnableSlice value;
  RETURN_IF_ERROR(
      FromRocks(handles_->db->Get(rocksdb::ReadOptions(), handles_->values, key.Bytes(), &value)));
  return std::vector<uint8_t>(value.data(), value.data() + value.size());
}

absl::Status DiskDatabase::Write(const DiskBatch& batch) {
  std::shared_lock lock(mutex_);
  if (!handles_) return Closed();
  rocksdb::WriteBatch changes;
  rocksdb::Status status;
  for (const auto& [key, record] : batch.records) {
    const std::string name = key.Bytes();
    if (record && status.ok()) {
      status = changes.Put(handles_->index, name, *record);
    } else if (status.ok()) {
      status = changes.Delete(handles_->index, name);
      if (status.ok()) status = changes.Delete(handles_->values, name);
    }
  }
  if (batch.chunk && status.ok()) {
    const std::span<const uint8_t> bytes = batch.chunk->bytes();
    status = changes.Put(handles_->values, batch.chunk->key().Bytes(),
                         Slice(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
  }
  // The log is written, not synced: the kernel has it, so no death of this process loses it. Only a
  // machine that dies may lose the last few, which can be computed again; a sync of each would cost
  // more than that is worth.
  if (status.ok()) status = handles_->db->Write(rocksdb::WriteOptions(), &changes);
  return FromRocks(status);
}

absl::Status DiskDatabase::Resume(bool& reopened) {
  reopened = false;
  {
    std::shared_lock lock(mutex_);
    if (handles_) {
      const rocksdb::Status resumed = handles_->db->Resume();
      if (resumed.ok()) return absl::OkStatus();
      // Opening writes too. Where there is no room, what is open serves reads at least.
      const std::optional<uint64_t> free = FreeBytes();
      if (free && *free < 4 * write_buffer_bytes()) return FromRocks(resumed);
    }
  }
  reopened = true;
  return Reopen();
}

absl::Status DiskDatabase::Reopen() {
  canceled_ = true;
  std::unique_lock lock(mutex_);
  Close();
  return OpenOrRepair();
}

absl::Status DiskDatabase::Repair() {
  canceled_ = true;
  std::unique_lock lock(mutex_);
  Close();
  if (const absl::Status repaired = RepairFiles(); !repaired.ok()) {
    spdlog::warn("disk tier repair failed path={} reason=\"{}\"", path_, repaired.ToString());
  }
  return OpenOrRepair();
}

absl::Status DiskDatabase::KeepOnly(const std::vector<ChunkKey>& keys) {
  std::shared_lock lock(mutex_);
  if (!handles_) return Closed();
  rocksdb::WriteBatch changes;
  std::string from;
  const auto drop_until = [&](const std::string& to) {
    const rocksdb::Status status = changes.DeleteRange(handles_->values, from, to);
    from = to + '\0';  // the first key after
    return FromRocks(status);
  };
  for (const ChunkKey& key : keys) RETURN_IF_ERROR(drop_until(key.Bytes()));
  RETURN_IF_ERROR(drop_until(std::string(64, '\xff')));
  return FromRocks(handles_->db->Write(rocksdb::WriteOptions(), &changes));
}

uint64_t DiskDatabase::BlobBytes() const {
  std::shared_lock lock(mutex_);
  return handles_ ? handles_->Property(rocksdb::DB::Properties::kTotalBlobFileSize) : 0;
}

uint64_t DiskDatabase::KnownGarbageBytes() const {
  std::shared_lock lock(mutex_);
  return handles_ ? handles_->Property(rocksdb::DB::Properties::kLiveBlobFileGarbageSize) : 0;
}

absl::Status DiskDatabase::AccountForDeletes() {
  std::shared_lock lock(mutex_);
  if (!handles_) return Closed();
  RETURN_IF_ERROR(
      FromRocks(handles_->db->Flush(rocksdb::FlushOptions(), {handles_->values, handles_->index})));
  CompactRangeOptions options;
  options.canceled = &canceled_;
  options.blob_garbage_collection_policy = rocksdb::BlobGarbageCollectionPolicy::kDisable;
  options.bottommost_level_compaction = rocksdb::BottommostLevelCompaction::kSkip;
  return FromRocks(handles_->db->CompactRange(options, handles_->values, nullptr, nullptr));
}

absl::Status DiskDatabase::CollectGarbage(uint64_t max_moved_bytes) {
  std::shared_lock lock(mutex_);
  if (!handles_) return Closed();
  rocksdb::ColumnFamilyMetaData meta;
  handles_->db->GetColumnFamilyMetaData(handles_->values, &meta);
  std::vector<rocksdb::BlobMetaData>& files = meta.blob_files;
  if (files.empty()) return absl::OkStatus();
  std::sort(files.begin(), files.end(),
            [](const auto& a, const auto& b) { return a.blob_file_number < b.blob_file_number; });
  size_t n = 0;
  uint64_t moved = 0;
  while (n < files.size()) {
    moved += files[n].total_blob_bytes - files[n].garbage_blob_bytes;
    if (n > 0 && moved > max_moved_bytes) break;
    ++n;
  }
  CompactRangeOptions options;
  options.canceled = &canceled_;
  options.allow_write_stall = true;
  options.bottommost_level_compaction = rocksdb::BottommostLevelCompaction::kForce;
  options.blob_garbage_collection_policy = rocksdb::BlobGarbageCollectionPolicy::kForce;
  // RocksDB rounds the share of the files down; the half keeps it from losing one.
  options.blob_garbage_collection_age_cutoff =
      std::min(1.0, (static_cast<double>(n) + 0.5) / static_cast<double>(files.size()));
  return FromRocks(handles_->db->CompactRange(options, handles_->values, nullptr, nullptr));
}

uint64_t DiskDatabase::write_buffer_bytes() const { return WriteBufferBytes(limit_bytes_); }

std::optional<uint64_t> DiskDatabase::FreeBytes() const {
  std::error_code error;
  const std::filesystem::space_info space = std::filesystem::space(path_, error);
  if (error) return std::nullopt;
  return space.available;
}

}  // namespace tandem::kvstore
