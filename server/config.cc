#include "server/config.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <fstream>
#include <numeric>
#include <set>
#include <sstream>

#include "absl/strings/ascii.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/status.h"
#include "server/config_properties.h"
#include "server/config_text.h"

namespace tandem::server {
namespace {

using Origins = std::map<std::string, std::string>;

constexpr size_t kMaxFileBytes = 1 << 20;

/// Flags that are no properties.
const std::vector<std::string> kSpecialFlags = {"help", "version", "config", "check_config",
                                                "print_config_docs"};

/// Insertions, deletions and replacements that lead from `a` to `b`.
size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), 0);
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i + 1;
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t replaced = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, row[j] + 1, diagonal + 1});
    }
  }
  return row.back();
}

/// "; did you mean 'listen'?" or, when nothing is near, "".
std::string Suggestion(std::string_view name, bool flag) {
  std::string best;
  size_t best_distance = std::max<size_t>(2, name.size() / 3) + 1;
  // Nothing of such a length is near, and the distance costs its square.
  if (name.size() > 64) return best;
  const auto consider = [&](std::string_view candidate) {
    const size_t distance = EditDistance(name, candidate);
    if (distance >= best_distance) return;
    best_distance = distance;
    best = std::string(candidate);
  };
  for (const Property& property : Properties()) consider(property.name);
  if (flag) {
    for (const std::string& special : kSpecialFlags) consider(special);
  }
  if (flag) std::replace(best.begin(), best.end(), '_', '-');
  return best.empty() ? "" : absl::StrCat("; did you mean '", flag ? "--" : "", best, "'?");
}

absl::Status Unknown(std::string_view what, std::string_view name, std::string_view origin,
                     bool flag) {
  std::string key(name.substr(0, 200));
  std::replace(key.begin(), key.end(), '-', '_');
  return absl::InvalidArgumentError(
      absl::StrCat("unknown ", View(what), " '", flag ? "--" : "", View(name.substr(0, 200)), "'",
                   origin.empty() ? "" : " (from ", View(origin), origin.empty() ? "" : ")",
                   Suggestion(key, flag), flag ? "; see --help" : ""));
}

/// Sets a property from text in which the elements of a list are separated by commas.
absl::Status SetFromText(const Property& property, std::string_view text, std::string_view origin,
                         Config& config, Origins& origins) {
  std::vector<std::string> values;
  if (!IsList(property)) {
    values.emplace_back(text);
  } else if (!text.empty()) {
    for (const auto& part : absl::StrSplit(View(text), ',')) {
      values.emplace_back(absl::StripAsciiWhitespace(part));
    }
  }
  RETURN_IF_ERROR(SetProperty(property, values, origin, config));
  origins[property.name] = std::string(origin);
  return absl::OkStatus();
}

std::string Place(std::string_view file, const YAML::Mark& mark) {
  return absl::StrCat(View(file), ":", mark.line + 1);
}

absl::Status ApplyYamlValue(const Property& property, const YAML::Node& value,
                            std::string_view origin, Config& config, Origins& origins) {
  if (value.IsScalar()) return SetFromText(property, value.Scalar(), origin, config, origins);
  const auto wrong = [&](std::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat(property.name, " is ", View(what), " (from ",
                                                   View(origin), "); allowed is ",
                                                   Allowed(property)));
  };
  if (!value.IsSequence()) return wrong(value.IsMap() ? "a mapping" : "without a value");
  if (!IsList(property)) return wrong("a list");
  std::vector<std::string> values;
  for (const YAML::Node& element : value) {
    if (!element.IsScalar()) return wrong("a list with an element that is not a plain value");
    values.push_back(element.Scalar());
  }
  RETURN_IF_ERROR(SetProperty(property, values, origin, config));
  origins[property.name] = std::string(origin);
  return absl::OkStatus();
}

absl::Status ApplyYamlDocument(const YAML::Node& document, std::string_view file, Config& config,
                               Origins& origins) {
  if (document.IsNull()) return absl::OkStatus();
  if (!document.IsMap()) {
    return absl::InvalidArgumentError(
        absl::StrCat(Place(file, document.Mark()), ": expected lines of the form 'key: value'"));
  }
  std::set<std::string> seen;
  for (const auto& entry : document) {
    const std::string origin = Place(file, entry.first.Mark());
    if (!entry.first.IsScalar()) {
      return absl::InvalidArgumentError(
          absl::StrCat(origin, ": expected lines of the form 'key: value'"));
    }
    const Property* property = FindProperty(entry.first.Scalar());
    if (property == nullptr) return Unknown("key", entry.first.Scalar(), origin, false);
    if (!seen.insert(property->name).second) {
      return absl::InvalidArgumentError(
          absl::StrCat(property->name, " is there twice (the second time in ", origin, ")"));
    }
    RETURN_IF_ERROR(ApplyYamlValue(*property, entry.second, origin, config, origins));
  }
  return absl::OkStatus();
}

/// Takes events and does nothing.
class IgnoreEvents final : public YAML::EventHandler {
  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark&, YAML::anchor_t) override {}
  void OnAlias(const YAML::Mark&, YAML::anchor_t) override {}
  void OnScalar(const YAML::Mark&, const std::string&, YAML::anchor_t,
                const std::string&) override {}
  void OnSequenceStart(const YAML::Mark&, const std::string&, YAML::anchor_t,
                       YAML::EmitterStyle::value) override {}
  void OnSequenceEnd() override {}
  void OnMapStart(const YAML::Mark&, const std::string&, YAML::anchor_t,
                  YAML::EmitterStyle::value) override {}
  void OnMapEnd() override {}
};

/// YAML::Load reads one document and ignores what follows; YAML::LoadAll never returns on some
/// malformed texts, such as ",".
bool HasSeveralDocuments(const std::string& yaml) {
  std::istringstream stream(yaml);
  YAML::Parser parser(stream);
  IgnoreEvents ignore;
  return parser.HandleNextDocument(ignore) && parser.HandleNextDocument(ignore);
}

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text(kMaxFileBytes + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (!file.eof() && !file.good()) {
    return absl::NotFoundError(absl::StrCat("configuration file '", path, "' cannot be read"));
  }
  text.resize(static_cast<size_t>(file.gcount()));
  if (text.size() > kMaxFileBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("configuration file '", path, "' is larger than 1MiB"));
  }
  return text;
}

/// One flag as it was written.
struct Flag {
  /// In snake_case, without the dashes.
  std::string name;
  /// As written, for messages: "--max-requests".
  std::string written;
  std::optional<std::string> value;
};

/// What the command line says, before any of it is applied.
struct Flags {
  bool help = false, version = false, check_config = false, print_config_docs = false;
  std::optional<std::string> config;
  std::vector<std::pair<const Property*, Flag>> properties;
};

absl::StatusOr<Flag> SplitFlag(std::string_view argument) {
  if (argument == "-h") argument = "--help";
  if (!absl::StartsWith(View(argument), "--") || argument.size() == 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("unexpected argument '", View(argument),
                     "': everything is said by flags of the form --key=value; see --help"));
  }
  Flag flag;
  const size_t equals = argument.find('=');
  flag.written = std::string(argument.substr(0, equals));
  flag.name = flag.written.substr(2);
  std::replace(flag.name.begin(), flag.name.end(), '-', '_');
  if (equals != std::string_view::npos) flag.value = std::string(argument.substr(equals + 1));
  return flag;
}

/// Sets what a flag that takes no value says. False when it is no such flag.
bool SetSwitch(const Flag& flag, Flags& flags) {
  if (flag.value) return false;
  if (flag.name == "help") return flags.help = true;
  if (flag.name == "version") return flags.version = true;
  if (flag.name == "check_config") return flags.check_config = true;
  if (flag.name == "print_config_docs") return flags.print_config_docs = true;
  return false;
}

/// The property that the flag sets, its value completed for --insecure and --no-insecure; null
/// when there is none.
const Property* FlagProperty(Flag& flag) {
  const Property* property = FindProperty(flag.name);
  if (property != nullptr) {
    if (IsFlag(*property) && !flag.value) flag.value = "true";
    return property;
  }
  if (flag.value || !absl::StartsWith(flag.name, "no_")) return nullptr;
  property = FindProperty(flag.name.substr(3));
  if (property == nullptr || !IsFlag(*property)) return nullptr;
  flag.value = "false";
  return property;
}

absl::StatusOr<Flags> ReadFlags(std::span<char* const> args) {
  Flags flags;
  for (size_t i = 1; i < args.size(); ++i) {
    ASSIGN_OR_RETURN(Flag flag, SplitFlag(args[i]));
    if (SetSwitch(flag, flags)) continue;
    const Property* property = FlagProperty(flag);
    if (property == nullptr && flag.name != "config") {
      return Unknown("flag", std::string_view(flag.written).substr(2), "", true);
    }
    if (!flag.value) {
      if (i + 1 == args.size() || absl::StartsWith(args[i + 1], "--")) {
        return absl::InvalidArgumentError(
            absl::StrCat(flag.written, " needs a value; allowed is ",
                         property == nullptr ? "the path of a YAML file" : Allowed(*property)));
      }
      flag.value = args[++i];
    }
    if (property == nullptr) {
      flags.config = flag.value;
    } else {
      flags.properties.emplace_back(property, std::move(flag));
    }
  }
  return flags;
}

absl::Status ApplyFile(const std::string& path, Config& config, Origins& origins) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  return ApplyYaml(text, path, config, origins);
}

absl::Status ApplyEnvironment(const std::function<const char*(const char*)>& getenv, Config& config,
                              Origins& origins) {
  for (const Property& property : Properties()) {
    const std::string variable = absl::StrCat("TANDEM_", absl::AsciiStrToUpper(property.name));
    if (const char* value = getenv(variable.c_str()); value != nullptr) {
      RETURN_IF_ERROR(SetFromText(property, value, variable, config, origins));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ApplyYaml(std::string_view yaml, std::string_view file, Config& config,
                       std::map<std::string, std::string>& origins) {
  try {
    const std::string text(yaml);
    if (HasSeveralDocuments(text)) {
      return absl::InvalidArgumentError(absl::StrCat(
          View(file), ": more than one YAML document; allowed is one, of lines 'key: value'"));
    }
    return ApplyYamlDocument(YAML::Load(text), file, config, origins);
  } catch (const YAML::Exception& e) {
    return absl::InvalidArgumentError(
        absl::StrCat(Place(file, e.mark), ": not valid YAML: ", e.msg));
  }
}

absl::StatusOr<ParsedCommandLine> ParseConfig(std::span<char* const> args,
                                              std::function<const char*(const char*)> getenv) {
  ASSIGN_OR_RETURN(const Flags flags, ReadFlags(args));
  ParsedCommandLine result;
  if (flags.help) result.exit = PrintAndExit{HelpText()};
  if (flags.version) result.exit = PrintAndExit{VersionText()};
  if (flags.print_config_docs) result.exit = PrintAndExit{PropertyDocs()};
  if (result.exit) return result;

  const char* from_environment = getenv("TANDEM_CONFIG");
  if (flags.config) {
    RETURN_IF_ERROR(ApplyFile(*flags.config, result.config, result.origins));
  } else if (from_environment != nullptr && *from_environment != '\0') {
    RETURN_IF_ERROR(ApplyFile(from_environment, result.config, result.origins));
  }
  RETURN_IF_ERROR(ApplyEnvironment(getenv, result.config, result.origins));
  for (const auto& [property, flag] : flags.properties) {
    RETURN_IF_ERROR(
        SetFromText(*property, *flag.value, flag.written, result.config, result.origins));
  }
  RETURN_IF_ERROR(Validate(result.config));
  result.warnings = Warnings(result.config);
  if (flags.check_config) {
    std::string text = ToYaml(result.config, result.origins);
    for (const std::string& warning : result.warnings) {
      absl::StrAppend(&text, "# warning: ", warning, "\n");
    }
    result.exit = PrintAndExit{std::move(text)};
  }
  return result;
}

}  // namespace tandem::server
