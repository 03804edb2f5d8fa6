// Macros that pass a non-OK absl::Status up. Included by every module; needs Abseil only.
#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"

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
