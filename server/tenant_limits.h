// One element of the property tenant_limits: what one tenant may have, as text.
#pragma once

#include <string>
#include <string_view>
#include <utility>

#include "absl/status/statusor.h"
#include "scheduler/core/admission.h"

namespace tandem::server {

/// "NAME KEY=VALUE …", with the keys weight (0.01 to 1000), rate (requests per second), burst
/// (requests) and running (requests). INVALID_ARGUMENT says what is wrong. Pure, thread-safe.
absl::StatusOr<std::pair<std::string, scheduler::TenantLimits>> ParseTenantLimits(
    std::string_view text);

}  // namespace tandem::server
