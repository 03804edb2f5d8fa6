#include "server/tenant_limits.h"

#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "base/status.h"

namespace tandem::server {
namespace {

absl::StatusOr<double> Number(std::string_view key, std::string_view text, double min, double max) {
  double number = 0;
  if (absl::SimpleAtod(View(text), &number) && number >= min && number <= max) return number;
  return absl::InvalidArgumentError(absl::StrCat(
      View(key), " is '", View(text), "', which is not a number from ", min, " to ", max));
}

absl::Status SetLimit(std::string_view key, std::string_view value,
                      scheduler::TenantLimits& limits) {
  if (key == "weight") {
    ASSIGN_OR_RETURN(limits.weight, Number(key, value, 0.01, 1000));
  } else if (key == "rate") {
    ASSIGN_OR_RETURN(limits.requests_per_s, Number(key, value, 0.001, 1e6));
  } else if (key == "burst") {
    ASSIGN_OR_RETURN(limits.burst, Number(key, value, 1, 1e6));
  } else if (key == "running") {
    ASSIGN_OR_RETURN(const double running, Number(key, value, 1, 1e6));
    limits.max_running = static_cast<uint32_t>(running);
  } else {
    return absl::InvalidArgumentError(absl::StrCat("there is no limit '", View(key), "'"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::pair<std::string, scheduler::TenantLimits>> ParseTenantLimits(
    std::string_view text) {
  const std::vector<std::string> words = absl::StrSplit(View(text), ' ', absl::SkipEmpty());
  if (words.size() < 2) return absl::InvalidArgumentError("a tenant's name and a limit are needed");
  scheduler::TenantLimits limits;
  for (size_t i = 1; i < words.size(); ++i) {
    const size_t equals = words[i].find('=');
    if (equals == std::string::npos) {
      return absl::InvalidArgumentError(absl::StrCat("'", words[i], "' is not KEY=VALUE"));
    }
    const std::string_view word = words[i];
    RETURN_IF_ERROR(SetLimit(word.substr(0, equals), word.substr(equals + 1), limits));
  }
  // What may come in a second may come at once.
  if (limits.burst < limits.requests_per_s) limits.burst = limits.requests_per_s;
  return std::pair(words[0], limits);
}

}  // namespace tandem::server
