#include "kvstore/tiers/disk_database.h"

#include <rocksdb/cache.h>
#include <rocksdb/db.h>
#include <rocksdb/env.h>
#include <rocksdb/filter_policy.h>
#include <rocksdb/table.h>
#include <rocksdb/write_batch.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <filesystem>
#include <system_error>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace tandem::kvstore {
namespace {

using rocksdb::CompactRangeOptions;
using rocksdb::Slice;

constexpr uint64_t kMiB = uint64_t{1} << 20;
// Names in the database: a prefix, then the key's bytes. One column family for both: RocksDB 7.8
// does not close well after it failed to flush several.
constexpr char kRecordPrefix = 'i', kValuePrefix = 'v';
// Between a record and the smallest value, an envelope: only values go to blob files.
constexpr uint64_t kMinBlobBytes = StoredChunk::kEnvelopeBytes;

// A small database gets small files, so that what garbage and logs take stays in proportion.
uint64_t WriteBufferBytes(uint64_t limit_bytes) {
  return std::clamp<uint64_t>(limit_bytes / 64, kMiB / 4, 8 * kMiB);
}

// RocksDB's messages, to our log. Its own log file would be one more that a full disk breaks, and
// builds with assertions do not survive that.
class Log final : public rocksdb::Logger {
 public:
  Log() : Logger(rocksdb::ERROR_LEVEL) {}
  using rocksdb::Logger::Logv;
  void Logv(const char* format, va_list arguments) override {
    char text[1024];
    std::vsnprintf(text, sizeof(text), format, arguments);
    const size_t size = absl::StripTrailingAsciiWhitespace(text).size();
    spdlog::warn("rocksdb: {}", std::string_view(text, size));
  }
};

void SetDatabaseOptions(rocksdb::Options& options) {
  options.create_if_missing = true;
  options.max_background_jobs = 2;
  options.max_open_files = 256;
  options.max_file_opening_threads = 2;
  options.max_manifest_file_size = 4 * kMiB;
  options.manifest_preallocation_size = 64 * 1024;
  options.info_log = std::make_shared<Log>();
  options.stats_dump_period_sec = 0;
  options.stats_persist_period_sec = 0;
  // In steps, so that the system does not write back everything at one go, under readers.
  options.bytes_per_sync = kMiB;
  options.wal_bytes_per_sync = kMiB;
  // The owner decides when to try again.
  options.max_bgerror_resume_count = 0;
}

void SetTableOptions(rocksdb::Options& options, uint64_t limit_bytes) {
  rocksdb::BlockBasedTableOptions table;
  table.block_cache = rocksdb::NewLRUCache(4 * kMiB);
  table.filter_policy.reset(rocksdb::NewBloomFilterPolicy(10));
  options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  options.write_buffer_size = WriteBufferBytes(limit_bytes);
  options.max_write_buffer_number = 3;
  options.compression = rocksdb::kNoCompression;
  // Two levels: the first compaction of a deletion is the one that ends it.
  options.num_levels = 2;
  options.ttl = 0;
  options.target_file_size_base = 8 * kMiB;
  // Tables of keys are small. No writer waits for their compaction while values are being moved.
  options.level0_slowdown_writes_trigger = 200;
  options.level0_stop_writes_trigger = 400;
  options.enable_blob_files = true;
  options.min_blob_size = kMinBlobBytes;
  options.blob_file_size = std::clamp<uint64_t>(limit_bytes / 64, kMiB / 4, 64 * kMiB);
  options.blob_compaction_readahead_size = 2 * kMiB;
}

rocksdb::Options OptionsFor(uint64_t limit_bytes) {
  rocksdb::Options options;
  SetDatabaseOptions(options);
  SetTableOptions(options, limit_bytes);
  return options;
}

std::string ValueName(const ChunkKey& key) { return kValuePrefix + key.Bytes(); }
std::string RecordName(const ChunkKey& key) { return kRecordPrefix + key.Bytes(); }

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
  RETURN_IF_ERROR(database->OpenLocked());
  lock.unlock();
  return database;
}

DiskDatabase::~DiskDatabase() { canceled_ = true; }

absl::Status DiskDatabase::OpenLocked() {
  canceled_ = false;
  ++openings_;
  rocksdb::Status status = TryOpen();
  if (IsDamage(status)) {
    spdlog::warn("disk tier starts anew, its database was damaged path={} reason=\"{}\"", path_,
                 status.ToString());
    Destroy();
    status = TryOpen();
  }
  if (status.ok()) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat(
      "cannot open the chunks on disk in ", path_, ": ", status.ToString(),
      "; check that the folder is writable for this user, that the disk has room and that no "
      "other process uses it, or delete it: all in it can be computed again"));
}

rocksdb::Status DiskDatabase::TryOpen() {
  rocksdb::DB* opened = nullptr;
  const rocksdb::Status status = rocksdb::DB::Open(OptionsFor(limit_bytes_), path_, &opened);
  if (status.ok()) db_.reset(opened);
  return status;
}

// What does not go makes opening fail again, which says so.
void DiskDatabase::Destroy() {
  rocksdb::DestroyDB(path_, OptionsFor(limit_bytes_)).PermitUncheckedError();
  std::error_code ignored;
  std::filesystem::create_directories(path_, ignored);
}

absl::Status DiskDatabase::ReadIndex(
    const std::function<void(std::string_view key, std::string_view record)>& visit) {
  std::shared_lock lock(mutex_);
  if (!db_) return Closed();
  const std::string begin(1, kRecordPrefix), end(1, kRecordPrefix + 1);
  const Slice bound(end);
  rocksdb::ReadOptions options;
  options.fill_cache = false;
  options.iterate_upper_bound = &bound;
  const std::unique_ptr<rocksdb::Iterator> next(db_->NewIterator(options));
  for (next->Seek(begin); next->Valid(); next->Next()) {
    const Slice name = next->key(), record = next->value();
    visit({name.data() + 1, name.size() - 1}, {record.data(), record.size()});
  }
  return FromRocks(next->status());
}

absl::StatusOr<std::vector<uint8_t>> DiskDatabase::Read(const ChunkKey& key) {
  std::shared_lock lock(mutex_);
  if (!db_) return Closed();
  rocksdb::PinnableSlice value;
  RETURN_IF_ERROR(FromRocks(
      db_->Get(rocksdb::ReadOptions(), db_->DefaultColumnFamily(), ValueName(key), &value)));
  return std::vector<uint8_t>(value.data(), value.data() + value.size());
}

absl::Status DiskDatabase::Write(const DiskBatch& batch) {
  std::shared_lock lock(mutex_);
  if (!db_) return Closed();
  rocksdb::WriteBatch changes;
  rocksdb::Status status;
  for (const auto& [key, record] : batch.records) {
    if (!status.ok()) break;
    if (record) {
      status = changes.Put(RecordName(key), *record);
    } else {
      status = changes.Delete(RecordName(key));
      if (status.ok()) status = changes.Delete(ValueName(key));
    }
  }
  if (batch.chunk && status.ok()) {
    const std::span<const uint8_t> bytes = batch.chunk->bytes();
    status = changes.Put(ValueName(batch.chunk->key()),
                         Slice(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
  }
  // The log is written, not synced: the kernel has it, so no death of this process loses it. Only a
  // machine that dies may lose the last few, which can be computed again; a sync of each would cost
  // more than that is worth.
  if (status.ok()) status = db_->Write(rocksdb::WriteOptions(), &changes);
  return FromRocks(status);
}

absl::Status DiskDatabase::Resume(bool& reopened) {
  reopened = false;
  {
    std::shared_lock lock(mutex_);
    if (db_) {
      const rocksdb::Status resumed = db_->Resume();
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
  db_.reset();
  return OpenLocked();
}

absl::Status DiskDatabase::StartAnew() {
  canceled_ = true;
  std::unique_lock lock(mutex_);
  db_.reset();
  Destroy();
  return OpenLocked();
}

uint64_t DiskDatabase::Property(const std::string& name) const {
  std::shared_lock lock(mutex_);
  uint64_t value = 0;
  if (db_) db_->GetIntProperty(name, &value);
  return value;
}

uint64_t DiskDatabase::BlobBytes() const {
  return Property(rocksdb::DB::Properties::kTotalBlobFileSize);
}

uint64_t DiskDatabase::KnownGarbageBytes() const {
  return Property(rocksdb::DB::Properties::kLiveBlobFileGarbageSize);
}

CompactRangeOptions DiskDatabase::TidyingOptions() {
  CompactRangeOptions options;
  options.canceled = &canceled_;
  // To wait for a time without writes can take for ever.
  options.allow_write_stall = true;
  return options;
}

absl::Status DiskDatabase::AccountForDeletes() {
  std::shared_lock lock(mutex_);
  if (!db_) return Closed();
  rocksdb::FlushOptions flush;
  flush.allow_write_stall = true;
  RETURN_IF_ERROR(FromRocks(db_->Flush(flush)));
  CompactRangeOptions options = TidyingOptions();
  options.blob_garbage_collection_policy = rocksdb::BlobGarbageCollectionPolicy::kDisable;
  options.bottommost_level_compaction = rocksdb::BottommostLevelCompaction::kSkip;
  return FromRocks(db_->CompactRange(options, nullptr, nullptr));
}

absl::Status DiskDatabase::CollectGarbage(uint64_t max_moved_bytes) {
  std::shared_lock lock(mutex_);
  if (!db_) return Closed();
  rocksdb::ColumnFamilyMetaData meta;
  db_->GetColumnFamilyMetaData(&meta);
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
  CompactRangeOptions options = TidyingOptions();
  options.bottommost_level_compaction = rocksdb::BottommostLevelCompaction::kForce;
  options.blob_garbage_collection_policy = rocksdb::BlobGarbageCollectionPolicy::kForce;
  // RocksDB rounds the share of the files down; the half keeps it from losing one.
  options.blob_garbage_collection_age_cutoff =
      std::min(1.0, (static_cast<double>(n) + 0.5) / static_cast<double>(files.size()));
  return FromRocks(db_->CompactRange(options, nullptr, nullptr));
}

uint64_t DiskDatabase::write_buffer_bytes() const { return WriteBufferBytes(limit_bytes_); }

std::optional<uint64_t> DiskDatabase::FreeBytes() const {
  std::error_code error;
  const std::filesystem::space_info space = std::filesystem::space(path_, error);
  if (error) return std::nullopt;
  return space.available;
}

}  // namespace tandem::kvstore
