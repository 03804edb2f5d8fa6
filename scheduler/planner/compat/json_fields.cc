#include "scheduler/planner/compat/json_fields.h"

#include <utility>

namespace tandem::planner::compat {

absl::StatusOr<Json> ParseJson(std::string_view text, const std::string& where) {
  try {
    return Json::parse(text);
  } catch (const Json::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": ", error.what()));
  }
}

Fields::Fields(const Json& json, std::string where) : json_(json), where_(std::move(where)) {
  if (!json.is_object()) Fault("is not a JSON object");
}

void Fields::Fault(const std::string& what) {
  if (status_.ok()) status_ = absl::InvalidArgumentError(absl::StrCat(where_, ": ", what));
}

const Json* Fields::Find(const char* name) {
  if (Has(name)) return &json_.at(name);
  Fault(absl::StrCat("'", name, "' is missing"));
  return nullptr;
}

void Fields::Integer(const char* name, int64_t min, int64_t max, int64_t& value) {
  const Json* const field = Find(name);
  if (field == nullptr) return;
  // Written as 5.0 it is one too.
  const double number = field->is_number() ? field->get<double>() : NAN;
  if (!(number >= static_cast<double>(min) && number <= static_cast<double>(max)) ||
      number != std::floor(number)) {
    return Fault(absl::StrCat("'", name, "' is ",
                              field->dump(-1, ' ', true, Json::error_handler_t::replace),
                              "; it must be a whole number from ", min, " to ", max));
  }
  value = field->is_number_integer() ? field->get<int64_t>() : static_cast<int64_t>(number);
}

void Fields::Integer(const char* name, int64_t min, int64_t max, int32_t& value) {
  int64_t wide = value;
  Integer(name, min, max, wide);
  value = static_cast<int32_t>(wide);
}

void Fields::Number(const char* name, double min, double max, double& value) {
  const Json* const field = Find(name);
  if (field == nullptr) return;
  const double number = field->is_number() ? field->get<double>() : NAN;
  if (!(number >= min && number <= max) || !std::isfinite(number)) {
    return Fault(absl::StrCat("'", name, "' is ",
                              field->dump(-1, ' ', true, Json::error_handler_t::replace),
                              "; it must be a number from ", min, " to ", max));
  }
  value = number;
}

void Fields::Text(const char* name, std::string& value) {
  const Json* const field = Find(name);
  if (field == nullptr) return;
  if (!field->is_string()) return Fault(absl::StrCat("'", name, "' is not a text"));
  value = field->get<std::string>();
}

void Fields::Three(const char* name, double& a, double& b, double& c) {
  const Json* const field = Find(name);
  if (field == nullptr) return;
  bool good = field->is_array() && field->size() == 3;
  for (size_t i = 0; good && i < 3; ++i) {
    good = field->at(i).is_number() && std::isfinite(field->at(i).get<double>());
  }
  if (!good) return Fault(absl::StrCat("'", name, "' is not a list of three numbers"));
  a = field->at(0).get<double>();
  b = field->at(1).get<double>();
  c = field->at(2).get<double>();
}

}  // namespace tandem::planner::compat
