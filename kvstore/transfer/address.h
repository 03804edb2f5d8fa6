// "host:port" as the data plane's endpoints take it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace tandem::kvstore {

struct Address {
  std::string host;
  uint16_t port = 0;
};

/// Splits "host:port"; an IPv6 address stands in brackets: "[::1]:7000". INVALID_ARGUMENT for
/// anything else.
absl::StatusOr<Address> ParseAddress(std::string_view text);

}  // namespace tandem::kvstore
