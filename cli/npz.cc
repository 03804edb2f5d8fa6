#include "cli/npz.h"

#include <zlib.h>

#include <cerrno>
#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status.h"

namespace tandem::cli {
namespace {

constexpr uint32_t kLocalHeader = 0x04034b50, kCentralHeader = 0x02014b50, kEnd = 0x06054b50;
constexpr uint16_t kVersion = 20;         // ZIP 2.0: plain files
constexpr uint16_t kDate = (1 << 5) | 1;  // 1980-01-01: equal contents give equal files
constexpr uint64_t kMaxSize = std::numeric_limits<uint32_t>::max();

/// Little-endian fields, one after the other.
class Record {
 public:
  Record& U16(uint32_t value) { return Put(value, 2); }
  Record& U32(uint32_t value) { return Put(value, 4); }
  Record& Text(std::string_view text) {
    bytes_.insert(bytes_.end(), text.begin(), text.end());
    return *this;
  }
  size_t size() const { return bytes_.size(); }
  std::span<const uint8_t> bytes() const { return bytes_; }

 private:
  Record& Put(uint32_t value, int n) {
    for (int i = 0; i < n; ++i) bytes_.push_back(static_cast<uint8_t>(value >> (8 * i)));
    return *this;
  }
  std::vector<uint8_t> bytes_;
};

/// What precedes the data in a .npy file of version 1.0, padded as NumPy does.
Record NpyHeader(std::string_view type, std::span<const uint64_t> shape) {
  constexpr size_t kAlignment = 64, kMagicAndLength = 10;
  std::string text =
      absl::StrCat("{'descr': '", View(type), "', 'fortran_order': False, 'shape': (",
                   absl::StrJoin(shape, ", "), ",), }");
  text.append(kAlignment - (kMagicAndLength + text.size() + 1) % kAlignment, ' ');
  text += '\n';
  Record header;
  header.Text(std::string_view("\x93NUMPY\x01\x00", 8)).U16(static_cast<uint32_t>(text.size()));
  return header.Text(text);
}

uint32_t Crc(uint32_t crc, std::span<const uint8_t> bytes) {
  return static_cast<uint32_t>(crc32_z(crc, bytes.data(), bytes.size()));
}

}  // namespace

absl::StatusOr<NpzWriter> NpzWriter::Create(const std::string& path) {
  NpzWriter writer;
  writer.path_ = path;
  writer.partial_path_ = path + ".partial";
  writer.file_.reset(std::fopen(writer.partial_path_.c_str(), "wb"));
  if (writer.file_ != nullptr) return writer;
  return absl::InvalidArgumentError(
      absl::StrCat("cannot write ", writer.partial_path_, ": ", std::strerror(errno)));
}

NpzWriter::~NpzWriter() {
  if (file_ == nullptr) return;
  file_.reset();
  std::remove(partial_path_.c_str());
}

absl::Status NpzWriter::Write(std::span<const uint8_t> bytes) {
  written_ += bytes.size();
  if (std::fwrite(bytes.data(), 1, bytes.size(), file_.get()) == bytes.size()) {
    return absl::OkStatus();
  }
  return absl::ResourceExhaustedError(
      absl::StrCat("cannot write ", partial_path_, ": ", std::strerror(errno)));
}

absl::Status NpzWriter::Add(std::string_view name, std::string_view type,
                            std::span<const uint64_t> shape, std::span<const uint8_t> bytes) {
  const Record npy = NpyHeader(type, shape);
  constexpr uint64_t kRoomForDirectory = 1 << 16;
  if (written_ + npy.size() + bytes.size() + kRoomForDirectory > kMaxSize) {
    return absl::InvalidArgumentError(
        absl::StrCat("array ", View(name), " of ", bytes.size() >> 20,
                     " MiB would make the file larger than 4 GiB; dump fewer tokens"));
  }
  Entry entry{.name = absl::StrCat(View(name), ".npy"),
              .crc = Crc(Crc(0, npy.bytes()), bytes),
              .size = static_cast<uint32_t>(npy.size() + bytes.size()),
              .offset = static_cast<uint32_t>(written_)};
  Record local;
  local.U32(kLocalHeader).U16(kVersion).U16(0).U16(0).U16(0).U16(kDate);
  local.U32(entry.crc).U32(entry.size).U32(entry.size);
  local.U16(static_cast<uint32_t>(entry.name.size())).U16(0).Text(entry.name);
  RETURN_IF_ERROR(Write(local.bytes()));
  RETURN_IF_ERROR(Write(npy.bytes()));
  RETURN_IF_ERROR(Write(bytes));
  entries_.push_back(std::move(entry));
  return absl::OkStatus();
}

absl::Status NpzWriter::Finish() {
  const auto start = static_cast<uint32_t>(written_);
  Record directory;
  for (const Entry& entry : entries_) {
    directory.U32(kCentralHeader).U16(kVersion).U16(kVersion).U16(0).U16(0).U16(0).U16(kDate);
    directory.U32(entry.crc).U32(entry.size).U32(entry.size);
    directory.U16(static_cast<uint32_t>(entry.name.size())).U16(0).U16(0).U16(0).U16(0).U32(0);
    directory.U32(entry.offset).Text(entry.name);
  }
  const auto n = static_cast<uint32_t>(entries_.size());
  Record end;
  end.U32(kEnd).U16(0).U16(0).U16(n).U16(n);
  end.U32(static_cast<uint32_t>(directory.size())).U32(start).U16(0);
  RETURN_IF_ERROR(Write(directory.bytes()));
  RETURN_IF_ERROR(Write(end.bytes()));
  const bool closed = std::fclose(file_.release()) == 0;
  if (closed && std::rename(partial_path_.c_str(), path_.c_str()) == 0) return absl::OkStatus();
  const std::string reason = std::strerror(errno);
  std::remove(partial_path_.c_str());
  return absl::ResourceExhaustedError(absl::StrCat("cannot write ", path_, ": ", reason));
}

}  // namespace tandem::cli
