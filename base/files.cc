#include "base/files.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <system_error>

#include "absl/strings/str_cat.h"

namespace tandem {

absl::StatusOr<std::string> ReadWholeFile(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::exists(path, error)) {
    return absl::NotFoundError(absl::StrCat("there is no file ", path));
  }
  std::ifstream file(path, std::ios::binary);
  std::ostringstream bytes;
  // An empty file would set the stream's fail bit.
  if (file.good() && file.peek() != std::ifstream::traits_type::eof()) bytes << file.rdbuf();
  if (!file.is_open() || file.bad() || bytes.bad()) {
    return absl::InvalidArgumentError(absl::StrCat("cannot read ", path));
  }
  return std::move(bytes).str();
}

absl::Status WriteWholeFile(const std::string& path, const std::string& bytes) {
  const std::string temporary = absl::StrCat(path, ".", getpid(), ".tmp");
  std::ofstream file(temporary, std::ios::binary);
  file << bytes;
  file.close();
  std::error_code error;
  if (file.good()) std::filesystem::rename(temporary, path, error);
  if (file.good() && !error) return absl::OkStatus();
  std::filesystem::remove(temporary, error);
  return absl::InvalidArgumentError(absl::StrCat("cannot write ", path));
}

}  // namespace tandem
