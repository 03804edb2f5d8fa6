// Text to typed values and back, for configuration and command line: sizes, durations, addresses.
// Pure functions, thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace tandem::server {

/// "4096", "64KiB", "64MiB", "1GiB", "2TiB" (powers of 1024; the short forms Ki, Mi, Gi, Ti too)
/// or "10kB", "10MB", "1GB", "1TB" (powers of 1000) to bytes. INVALID_ARGUMENT otherwise.
absl::StatusOr<uint64_t> ParseBytes(std::string_view text);
/// The shortest form that ParseBytes gives back unchanged.
std::string FormatBytes(uint64_t bytes);

/// "250ms", "1.5s", "2m", "1h30m", "0" to a finite duration, at least 0. INVALID_ARGUMENT
/// otherwise, a number without unit included.
absl::StatusOr<absl::Duration> ParseDuration(std::string_view text);

struct HostPort {
  /// A name, an IPv4 address, or an IPv6 address without brackets.
  std::string host;
  uint16_t port = 0;
};

/// "host:port" or "[IPv6]:port". INVALID_ARGUMENT says what is wrong.
absl::StatusOr<HostPort> ParseHostPort(std::string_view text);

/// True when only processes of this machine reach a listener on `host`: 127.0.0.0/8, ::1,
/// "localhost".
bool IsLoopback(std::string_view host);

/// True for the addresses that mean "every interface": 0.0.0.0 and ::.
bool IsAnyAddress(std::string_view host);

}  // namespace tandem::server
