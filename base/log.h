// Structured logs: one JSON object a line on stderr, or plain text for people. spdlog underneath.
#pragma once

#include <spdlog/spdlog.h>

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "base/request_context.h"

namespace tandem {

/// Sets the process's log level ("debug", "info", "warn", "error") and format ("json", "text").
/// INVALID_ARGUMENT for other words. Call once, at start.
absl::Status InitLog(std::string_view level, std::string_view format);

/// Log lines are `event key=value …`; these add the request's identity, so that all lines of one
/// request on every worker are found by its id. Thread-safe.
///   Log(spdlog::level::info, *context, "prefill done", "tokens={} seconds={:.3f}", n, s);
template <typename... Args>
void Log(spdlog::level::level_enum level, const RequestContext& context, std::string_view event,
         fmt::format_string<Args...> format, Args&&... args) {
  if (!spdlog::should_log(level)) return;
  spdlog::log(level, "{} request_id={} tenant={} attempt={} {}", event, context.request_id(),
              context.tenant(), context.attempt(),
              fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace tandem
