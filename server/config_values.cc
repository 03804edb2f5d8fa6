#include "server/config_values.h"

#include <arpa/inet.h>

#include <algorithm>
#include <limits>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "base/status.h"

namespace tandem::server {
namespace {

struct Unit {
  const char* name;
  uint64_t factor;
};

constexpr Unit kUnits[] = {{"TiB", 1ull << 40},
                           {"GiB", 1ull << 30},
                           {"MiB", 1ull << 20},
                           {"KiB", 1ull << 10},
                           {"B", 1},
                           {"", 1},
                           {"Ti", 1ull << 40},
                           {"Gi", 1ull << 30},
                           {"Mi", 1ull << 20},
                           {"Ki", 1ull << 10},
                           {"kB", 1000},
                           {"MB", 1000 * 1000},
                           {"GB", 1000000000},
                           {"TB", 1000000000000ull}};

bool IsHostName(std::string_view host) {
  return !host.empty() && host.size() <= 253 && std::all_of(host.begin(), host.end(), [](char c) {
    return absl::ascii_isalnum(c) || c == '.' || c == '-' || c == '_';
  });
}

bool IsIpv6(const std::string& host) {
  in6_addr address;
  return inet_pton(AF_INET6, host.c_str(), &address) == 1;
}

}  // namespace

absl::StatusOr<uint64_t> ParseBytes(std::string_view text) {
  const size_t digits = std::min(text.find_first_not_of("0123456789"), text.size());
  std::string_view unit = text.substr(digits);
  while (!unit.empty() && unit.front() == ' ') unit.remove_prefix(1);
  uint64_t number = 0;
  if (!absl::SimpleAtoi(View(text.substr(0, digits)), &number)) {
    return absl::InvalidArgumentError("not a size such as 4096, 64MiB or 1GiB");
  }
  for (const Unit& known : kUnits) {
    if (unit != known.name) continue;
    if (number > std::numeric_limits<uint64_t>::max() / known.factor) {
      return absl::InvalidArgumentError("larger than 64 bits hold");
    }
    return number * known.factor;
  }
  return absl::InvalidArgumentError("not a size such as 4096, 64MiB or 1GiB");
}

std::string FormatBytes(uint64_t bytes) {
  for (const Unit& unit : kUnits) {
    if (unit.factor == 1) break;
    if (bytes != 0 && bytes % unit.factor == 0) return absl::StrCat(bytes / unit.factor, unit.name);
  }
  return absl::StrCat(bytes);
}

absl::StatusOr<absl::Duration> ParseDuration(std::string_view text) {
  absl::Duration duration;
  if (!absl::ParseDuration(View(text), &duration) || duration == absl::InfiniteDuration() ||
      duration < absl::ZeroDuration()) {
    return absl::InvalidArgumentError("not a duration such as 250ms, 5s or 2m");
  }
  return duration;
}

absl::StatusOr<HostPort> ParseHostPort(std::string_view text) {
  const size_t colon = text.rfind(':');
  if (colon == std::string_view::npos) {
    return absl::InvalidArgumentError("the port is missing: host:port");
  }
  HostPort result;
  std::string_view host = text.substr(0, colon);
  const std::string_view port = text.substr(colon + 1);
  uint32_t number = 0;
  if (port.empty() || port.find_first_not_of("0123456789") != std::string_view::npos ||
      !absl::SimpleAtoi(View(port), &number) || number > 65535) {
    return absl::InvalidArgumentError("the port is not a number from 0 to 65535");
  }
  result.port = static_cast<uint16_t>(number);
  const bool bracketed = host.size() >= 2 && host.front() == '[' && host.back() == ']';
  if (bracketed) host = host.substr(1, host.size() - 2);
  result.host = std::string(host);
  if (bracketed ? !IsIpv6(result.host) : !IsHostName(host)) {
    return absl::InvalidArgumentError(
        "the host is neither a name nor an IPv4 address nor an IPv6 address in brackets");
  }
  return result;
}

bool IsLoopback(std::string_view host) {
  if (host == "localhost" || host == "::1") return true;
  in_addr address;
  return inet_pton(AF_INET, std::string(host).c_str(), &address) == 1 &&
         (ntohl(address.s_addr) >> 24) == 127;
}

bool IsAnyAddress(std::string_view host) {
  in_addr v4;
  in6_addr v6;
  const std::string text(host);
  if (inet_pton(AF_INET, text.c_str(), &v4) == 1) return v4.s_addr == INADDR_ANY;
  return inet_pton(AF_INET6, text.c_str(), &v6) == 1 && IN6_IS_ADDR_UNSPECIFIED(&v6);
}

}  // namespace tandem::server
