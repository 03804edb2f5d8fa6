// Writes arrays as NumPy's .npz: a ZIP archive of .npy files, stored as they are. For
// `tandem kv dump`.
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace tandem::cli {

/// One file being written. Not thread-safe. Without Finish nothing is left at `path`.
class NpzWriter {
 public:
  /// INVALID_ARGUMENT naming the path when it cannot be written.
  static absl::StatusOr<NpzWriter> Create(const std::string& path);
  ~NpzWriter();
  NpzWriter(NpzWriter&&) = default;
  NpzWriter& operator=(NpzWriter&&) = delete;

  /// Adds an array in C order. `type`: NumPy's, little-endian, "<f2", "<f4" or "<i4".
  /// INVALID_ARGUMENT when the archive would exceed 4 GiB, which this form of ZIP cannot hold;
  /// RESOURCE_EXHAUSTED when it cannot be written. REQUIRES: a name not used yet; `bytes` has the
  /// size that type and shape say.
  absl::Status Add(std::string_view name, std::string_view type, std::span<const uint64_t> shape,
                   std::span<const uint8_t> bytes);
  /// Writes the directory and puts the file in its place. Errors as Add. Nothing may follow.
  absl::Status Finish();

 private:
  struct FileCloser {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  struct Entry {
    std::string name;
    uint32_t crc = 0, size = 0, offset = 0;
  };
  NpzWriter() = default;
  absl::Status Write(std::span<const uint8_t> bytes);

  std::string path_, partial_path_;
  std::unique_ptr<std::FILE, FileCloser> file_;
  std::vector<Entry> entries_;
  uint64_t written_ = 0;
};

}  // namespace tandem::cli
