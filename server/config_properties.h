// The one table of configuration properties. The YAML file, flags, environment, --help,
// --check-config and docs/configure.md all come from it. Private to server/config*.cc.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/config.h"

namespace tandem::server {

/// Which roles read a property (kKeeper: workers and stores). Others accept it, so that all nodes
/// can share one file.
enum class Users { kEveryRole, kRouter, kWorker, kKeeper };

/// What may stand in a text, beyond being text.
enum class TextKind {
  kAny,
  kPath,
  /// One of Property::words.
  kWord,
  /// Where to listen, host:port; port 0 takes a free one.
  kListener,
  /// The same, or empty for none.
  kOptionalListener,
  /// Whom to call, host:port with a port of at least 1.
  kPeer,
  kHost,
  /// 1 to 64 characters of [A-Za-z0-9._-]; kOptionalIdentifier: or empty.
  kIdentifier,
  kOptionalIdentifier,
  /// See tenant_limits.h.
  kTenantLimits,
};

/// The member that holds the value; its type decides how text is read. uint64_t is bytes.
using Member = std::variant<std::string Config::*, bool Config::*, uint32_t Config::*,
                            int32_t Config::*, uint64_t Config::*, absl::Duration Config::*,
                            Role Config::*, std::optional<Phase> Config::*,
                            std::vector<std::string> Config::*, std::vector<int32_t> Config::*>;

struct Property {
  const char* name;
  Users users;
  Member member;
  /// A sentence or two, in plain Markdown. The default and what is allowed are added to it.
  const char* help;
  TextKind text = TextKind::kAny;
  /// Numbers, also each number of a list: inclusive bounds. Durations: in nanoseconds. Ignored
  /// for texts.
  uint64_t max = 0;
  int64_t min = 0;
  std::vector<const char*> words = {};
};

/// All properties, grouped by users, in the order of --help. Names are in snake_case.
std::span<const Property> Properties();

/// The property of that name, where '-' counts as '_'; null when there is none.
const Property* FindProperty(std::string_view name);

/// True for properties that hold several values.
bool IsList(const Property& property);
bool IsFlag(const Property& property);

/// Puts the value into `config`. REQUIRES: one element unless IsList. INVALID_ARGUMENT
/// "`name` is '`value`' (from `origin`): why; allowed is …".
absl::Status SetProperty(const Property& property, std::span<const std::string> values,
                         std::string_view origin, Config& config);

/// The value's elements in the form that SetProperty reads; nothing for an empty list.
std::vector<std::string> PropertyValues(const Property& property, const Config& config);

/// What may be written, e.g. "a whole number from 1 to 65536".
std::string Allowed(const Property& property);

}  // namespace tandem::server
