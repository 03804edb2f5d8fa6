#include "cli/options.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "base/status.h"

namespace tandem::cli {
namespace {

using Setter = std::function<absl::Status(const std::string&)>;

template <typename Integer>
Setter ReadInteger(std::function<void(Integer)> put, const char* what) {
  return [put = std::move(put), what](const std::string& text) {
    Integer number = 0;
    if (!absl::SimpleAtoi(text, &number)) return absl::InvalidArgumentError(what);
    put(number);
    return absl::OkStatus();
  };
}

const Option* Find(const Command& command, std::string name) {
  std::replace(name.begin(), name.end(), '_', '-');
  for (const Option& option : command.options) {
    if (option.name == name) return &option;
  }
  return nullptr;
}

/// The value of the flag in args[i]; when it is an argument of its own, `i` moves on to that.
absl::StatusOr<std::string> Value(const Option& option, std::span<char* const> args, size_t& i) {
  const std::string_view argument = args[i];
  const size_t equals = argument.find('=');
  if (option.value.empty()) {
    if (equals == std::string_view::npos) return "";
    return absl::InvalidArgumentError(absl::StrCat("--", option.name, " takes no value"));
  }
  if (equals != std::string_view::npos) return std::string(argument.substr(equals + 1));
  if (i + 1 == args.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--", option.name, " needs a value: --", option.name, "=", option.value));
  }
  return std::string(args[++i]);
}

}  // namespace

absl::StatusOr<std::vector<std::string>> ParseOptions(const Command& command,
                                                      std::span<char* const> args) {
  std::vector<std::string> operands;
  for (size_t i = 0; i < args.size(); ++i) {
    const std::string_view argument = args[i];
    if (argument == "--") {
      operands.insert(operands.end(), args.begin() + static_cast<ptrdiff_t>(i) + 1, args.end());
      break;
    }
    if (!absl::StartsWith(View(argument), "--")) {
      operands.emplace_back(argument);
      continue;
    }
    const std::string name(argument.substr(2, argument.find('=') - 2));
    const Option* option = Find(command, name);
    if (option == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat("unknown flag '--", name, "'; see tandem ", command.name, " --help"));
    }
    ASSIGN_OR_RETURN(const std::string value, Value(*option, args, i));
    if (const absl::Status status = option->set(value); !status.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("--", option->name, " is '", value, "': ", status.message()));
    }
  }
  return operands;
}

bool WantsHelp(std::span<char* const> args) {
  for (const std::string_view argument : args) {
    if (argument == "--") return false;
    if (argument == "--help" || argument == "-h") return true;
  }
  return false;
}

std::string HelpText(const Command& command) {
  std::string text = absl::StrCat("Usage: tandem ", command.name, " [FLAG]...",
                                  command.operands.empty() ? "" : " ", command.operands, "\n\n",
                                  command.summary, "\n\n");
  size_t width = 0;
  const auto left = [](const Option& option) {
    return absl::StrCat("  --", option.name, option.value.empty() ? "" : "=", option.value);
  };
  for (const Option& option : command.options) width = std::max(width, left(option).size());
  for (const Option& option : command.options) {
    const std::string flag = left(option);
    absl::StrAppend(&text, flag, std::string(width + 2 - flag.size(), ' '), option.help, "\n");
  }
  return text;
}

Setter ReadText(std::function<void(std::string)> put) {
  return [put = std::move(put)](const std::string& text) {
    put(text);
    return absl::OkStatus();
  };
}

Setter ReadSwitch(std::function<void()> put) {
  return [put = std::move(put)](const std::string&) {
    put();
    return absl::OkStatus();
  };
}

Setter ReadDouble(std::function<void(double)> put) {
  return [put = std::move(put)](const std::string& text) {
    double number = 0;
    if (!absl::SimpleAtod(text, &number)) return absl::InvalidArgumentError("not a number");
    put(number);
    return absl::OkStatus();
  };
}

Setter ReadInt32(std::function<void(int32_t)> put) {
  return ReadInteger<int32_t>(std::move(put), "not a whole number of 32 bits");
}
Setter ReadUint32(std::function<void(uint32_t)> put) {
  return ReadInteger<uint32_t>(std::move(put), "not a whole number from 0 to 4294967295");
}
Setter ReadUint64(std::function<void(uint64_t)> put) {
  return ReadInteger<uint64_t>(std::move(put), "not a whole number from 0 to 2^64 - 1");
}

}  // namespace tandem::cli
