// Comparison of two workers' identities, and sizes of KV layouts.
#include "kvstore/kv_layout.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace tandem::kvstore {
namespace {

std::string ValueOf(const Identity& identity, const std::string& name) {
  auto found = identity.find(name);
  return found == identity.end() ? "(absent)" : found->second;
}

}  // namespace

absl::Status CompareIdentity(const Identity& ours, const Identity& theirs) {
  Identity names = ours;
  names.insert(theirs.begin(), theirs.end());
  std::vector<std::string> differences;
  for (const auto& [name, unused] : names) {
    const std::string here = ValueOf(ours, name), there = ValueOf(theirs, name);
    if (here != there) {
      differences.push_back(absl::StrCat(name, " is ", here, " here and ", there, " there"));
    }
  }
  if (differences.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("the peer's KV cache is not compatible: ", absl::StrJoin(differences, "; ")));
}

uint64_t KvLayout::BytesPerToken() const {
  uint64_t bytes = 0;
  for (const PlaneLayout& plane : planes) bytes += plane.row_bytes;
  return bytes;
}

}  // namespace tandem::kvstore
