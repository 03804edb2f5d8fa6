// Error handling for the whole project: macros that pass a non-OK absl::Status up, and the one
// mapping between absl and gRPC status. Included by every module.
#pragma once

#include <grpcpp/support/status.h>

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace tandem {

/// Debian's Abseil is built with its own string_view; this converts without a copy.
inline absl::string_view View(std::string_view text) { return {text.data(), text.size()}; }

/// The same code and message as a gRPC status. absl's canonical codes are gRPC's.
grpc::Status ToGrpc(const absl::Status& status);

/// The same code and message as an absl status.
absl::Status FromGrpc(const grpc::Status& status);

/// `status` with "`context`: " in front of its message, the code unchanged. OK stays OK.
absl::Status Annotate(const absl::Status& status, std::string_view context);

}  // namespace tandem

#define TANDEM_CONCAT_INNER(a, b) a##b
#define TANDEM_CONCAT(a, b) TANDEM_CONCAT_INNER(a, b)

/// Returns from the function with the status of `expr` unless that is OK.
#define RETURN_IF_ERROR(expr)                                         \
  do {                                                                \
    if (absl::Status status_ = (expr); !status_.ok()) return status_; \
  } while (false)

/// `ASSIGN_OR_RETURN(auto value, Compute());`: the value of a StatusOr, or return its status.
#define ASSIGN_OR_RETURN(lhs, expr) \
  TANDEM_ASSIGN_OR_RETURN_IMPL(return, TANDEM_CONCAT(statusor_, __LINE__), lhs, expr)

/// The same two for coroutines.
#define CO_RETURN_IF_ERROR(expr)                                         \
  do {                                                                   \
    if (absl::Status status_ = (expr); !status_.ok()) co_return status_; \
  } while (false)
#define CO_ASSIGN_OR_RETURN(lhs, expr) \
  TANDEM_ASSIGN_OR_RETURN_IMPL(co_return, TANDEM_CONCAT(statusor_, __LINE__), lhs, expr)

#define TANDEM_ASSIGN_OR_RETURN_IMPL(return_keyword, statusor, lhs, expr) \
  auto statusor = (expr);                                                 \
  if (!statusor.ok()) return_keyword std::move(statusor).status();        \
  lhs = std::move(statusor).value()
