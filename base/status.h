// Error handling for the whole project: the macros of status_macros.h, and the one mapping between
// absl and gRPC status. Included by every module that may know gRPC.
#pragma once

#include <grpcpp/support/status.h>

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/status_macros.h"

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
