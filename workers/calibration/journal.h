// Results of a long calculation, written down as they come, so that it can be interrupted and taken
// up again. For the profile builder.
#pragma once

#include <cstdint>
#include <fstream>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace tandem::workers {

/// A file of named results, each with a checksum; what was written last counts. Not thread-safe.
class Journal {
 public:
  /// `binding`: of what the calculation depends on. A file for another binding, of another version
  /// or no journal at all is begun anew; of one that breaks off, what is whole counts. An empty
  /// path: nothing is kept. INVALID_ARGUMENT when it cannot be written.
  static absl::StatusOr<Journal> Open(const std::string& path, const std::string& binding);

  /// Null when there is none such.
  const std::vector<uint8_t>* Find(const std::string& name) const;
  /// DATA_LOSS when it cannot be written.
  absl::Status Put(const std::string& name, std::vector<uint8_t> result);
  /// Deletes the file: the calculation has come to its end.
  void Remove();

 private:
  std::string path_;
  std::map<std::string, std::vector<uint8_t>> results_;
  std::ofstream file_;
};

}  // namespace tandem::workers
