// The flags of one sub-command: read, checked, and explained by --help. Used by every sub-command.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace tandem::cli {

struct Option {
  /// Without the dashes in front, e.g. "max-tokens".
  std::string name;
  /// What --help calls the value, e.g. "N"; empty for a switch, which takes none.
  std::string value;
  std::string help;
  /// Takes the value ("" for a switch). An error says what is wrong with it.
  std::function<absl::Status(const std::string&)> set;
};

struct Command {
  /// "generate".
  std::string name;
  /// What may follow the flags, for --help: "PROMPT".
  std::string operands;
  /// A sentence or two.
  std::string summary;
  std::vector<Option> options;
};

/// Applies every flag ("--name value", "--name=value", underscores as dashes) and returns what is
/// none; all that follows "--" is none. INVALID_ARGUMENT names the flag, its value and the fault.
absl::StatusOr<std::vector<std::string>> ParseOptions(const Command& command,
                                                      std::span<char* const> args);

/// True when --help or -h is among the flags.
bool WantsHelp(std::span<char* const> args);

/// The text for --help.
std::string HelpText(const Command& command);

/// Setters for Option::set; `put` gets the value read.
std::function<absl::Status(const std::string&)> ReadText(std::function<void(std::string)> put);
std::function<absl::Status(const std::string&)> ReadSwitch(std::function<void()> put);
std::function<absl::Status(const std::string&)> ReadDouble(std::function<void(double)> put);
std::function<absl::Status(const std::string&)> ReadInt32(std::function<void(int32_t)> put);
std::function<absl::Status(const std::string&)> ReadUint32(std::function<void(uint32_t)> put);
std::function<absl::Status(const std::string&)> ReadUint64(std::function<void(uint64_t)> put);

}  // namespace tandem::cli
