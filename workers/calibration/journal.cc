#include "workers/calibration/journal.h"

#include <xxhash.h>

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "kvstore/codec/byte_io.h"

namespace tandem::workers {
namespace {

using kvstore::codec::ByteReader;
using kvstore::codec::ByteWriter;

constexpr uint64_t kMagic = 0x314c4e524a564b54;  // "TKVJRNL1"

void AppendString(const std::string& text, ByteWriter& out) {
  out.Write(static_cast<uint64_t>(text.size()));
  out.WriteMany(std::span(text));
}

std::vector<uint8_t> Header(const std::string& binding) {
  std::vector<uint8_t> header;
  ByteWriter out(header);
  out.Write(kMagic);
  AppendString(binding, out);
  return header;
}

/// Name, size, bytes, and a checksum over them.
std::vector<uint8_t> Record(const std::string& name, std::span<const uint8_t> result) {
  std::vector<uint8_t> record;
  ByteWriter out(record);
  AppendString(name, out);
  out.Write(static_cast<uint64_t>(result.size()));
  out.WriteMany(result);
  out.Write(static_cast<uint64_t>(XXH3_64bits(record.data(), record.size())));
  return record;
}

std::vector<uint8_t> ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

absl::StatusOr<Journal> Journal::Open(const std::string& path, const std::string& binding) {
  Journal journal;
  journal.path_ = path;
  if (path.empty()) return journal;
  const std::vector<uint8_t> bytes = ReadFile(path), header = Header(binding);
  size_t whole = 0;
  ByteReader in(bytes);
  const auto begin = in.Take(header.size());
  if (std::equal(header.begin(), header.end(), begin.begin(), begin.end())) {
    whole = header.size();
    while (!in.rest().empty()) {
      const auto record = in.rest();
      const auto name = in.Take(in.Read<uint64_t>());
      const auto result = in.Take(in.Read<uint64_t>());
      const size_t size = record.size() - in.rest().size();
      const uint64_t checksum = in.Read<uint64_t>();
      if (!in.ok() || XXH3_64bits(record.data(), size) != checksum) break;
      journal.results_[{name.begin(), name.end()}] = {result.begin(), result.end()};
      whole = bytes.size() - in.rest().size();
    }
  }
  if (whole == 0) {
    journal.file_.open(path, std::ios::binary | std::ios::trunc);
    journal.file_.write(reinterpret_cast<const char*>(header.data()),
                        static_cast<std::streamsize>(header.size()));
  } else {
    std::error_code error;
    std::filesystem::resize_file(path, whole, error);
    journal.file_.open(path, std::ios::binary | std::ios::app);
  }
  journal.file_.flush();
  if (!journal.file_.good()) {
    return absl::InvalidArgumentError(absl::StrCat("cannot write ", path));
  }
  return journal;
}

const std::vector<uint8_t>* Journal::Find(const std::string& name) const {
  const auto found = results_.find(name);
  return found == results_.end() ? nullptr : &found->second;
}

absl::Status Journal::Put(const std::string& name, std::vector<uint8_t> result) {
  if (!path_.empty()) {
    const std::vector<uint8_t> record = Record(name, result);
    file_.write(reinterpret_cast<const char*>(record.data()),
                static_cast<std::streamsize>(record.size()));
    file_.flush();
    if (!file_.good()) return absl::DataLossError(absl::StrCat("cannot write ", path_));
  }
  results_[name] = std::move(result);
  return absl::OkStatus();
}

void Journal::Remove() {
  if (path_.empty()) return;
  file_.close();
  std::error_code error;
  std::filesystem::remove(path_, error);
}

}  // namespace tandem::workers
