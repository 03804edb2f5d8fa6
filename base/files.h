// Whole files, read and written.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace tandem {

/// The file's bytes. NOT_FOUND when there is none, INVALID_ARGUMENT when it cannot be read; both
/// name it.
absl::StatusOr<std::string> ReadWholeFile(const std::string& path);

/// Replaces the file; nobody ever sees half of it, also when several processes write it.
/// INVALID_ARGUMENT naming the file.
absl::Status WriteWholeFile(const std::string& path, const std::string& bytes);

}  // namespace tandem
