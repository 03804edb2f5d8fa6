// Reads the fields of a JSON object into typed, range-checked variables; the first fault is kept
// and named with where it is. For the readers of this folder.
#pragma once

#include <cmath>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"

namespace tandem::planner::compat {

using Json = nlohmann::json;

/// The text as JSON. INVALID_ARGUMENT with `where` and the place of the fault.
absl::StatusOr<Json> ParseJson(std::string_view text, const std::string& where);

/// Use: Fields fields(object, "cases.json: o01"); fields.Integer("n", 1, 10, n); …;
/// RETURN_IF_ERROR(fields.status()). The object must outlive it.
class Fields {
 public:
  /// A fault at once when `json` is no object.
  Fields(const Json& json, std::string where);

  void Integer(const char* name, int64_t min, int64_t max, int64_t& value);
  void Integer(const char* name, int64_t min, int64_t max, int32_t& value);
  /// Finite and within the bounds.
  void Number(const char* name, double min, double max, double& value);
  void Text(const char* name, std::string& value);
  /// A list of exactly three finite numbers.
  void Three(const char* name, double& a, double& b, double& c);
  /// Null, with a fault, when it is missing.
  const Json* Find(const char* name);
  bool Has(const char* name) const { return json_.is_object() && json_.contains(name); }

  /// Keeps the first one.
  void Fault(const std::string& what);
  /// Takes over the fault of an object within this one.
  void Adopt(const Fields& inner) {
    if (status_.ok()) status_ = inner.status_;
  }
  const std::string& where() const { return where_; }
  const absl::Status& status() const { return status_; }

 private:
  const Json& json_;
  std::string where_;
  absl::Status status_;
};

}  // namespace tandem::planner::compat
