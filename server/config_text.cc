#include "server/config_text.h"

#include <algorithm>
#include <array>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "base/status.h"
#include "base/version.h"
#include "server/config.h"
#include "server/config_properties.h"

namespace tandem::server {
namespace {

struct Group {
  Users users;
  const char* title;
};

constexpr std::array kGroups = {Group{Users::kEveryRole, "Every role"},
                                Group{Users::kRouter, "Routers"}, Group{Users::kWorker, "Workers"},
                                Group{Users::kKeeper, "Workers and stores"}};

constexpr char kIntroduction[] =
    R"(tandemd serves a language model (GGUF), with prefill and decode on workers of their own.

Usage: tandemd --model=FILE [--KEY=VALUE]...

Every key below is a flag (--max-requests=256), an environment variable
(TANDEM_MAX_REQUESTS=256) and a line of the YAML file (max_requests: 256). A flag wins over the
environment, the environment over the file. Lists are separated by commas; --no-KEY sets false.

Flags only:
  --config=FILE   Read this YAML file. (TANDEM_CONFIG)
  --check-config  Print the effective configuration, with where each value came from, and exit.
  --help          Print this and exit.
  --version       Print the version and exit.
)";

std::string DefaultText(const Property& property) {
  return absl::StrJoin(PropertyValues(property, Config{}), ",");
}

/// `text` in lines of at most 92 characters, each after eight spaces.
std::string Wrapped(std::string_view text) {
  std::string out;
  size_t column = 0;
  for (const auto word : absl::StrSplit(View(text), ' ')) {
    if (column == 0 || column + 1 + word.size() > 92) {
      absl::StrAppend(&out, column == 0 ? "" : "\n", "        ", word);
      column = word.size();
    } else {
      absl::StrAppend(&out, " ", word);
      column += 1 + word.size();
    }
  }
  return out + "\n";
}

std::string HelpEntry(const Property& property) {
  const std::string flag = absl::StrReplaceAll(property.name, {{"_", "-"}});
  const std::string value = DefaultText(property);
  const std::string help = absl::StrReplaceAll(property.help, {{"`", ""}});
  return absl::StrCat("  --", flag, "\n",
                      Wrapped(absl::StrCat(help, " Allowed: ", Allowed(property),
                                           ". Default: ", value.empty() ? "none" : value, ".")));
}

std::string DocsRow(const Property& property) {
  const std::string value = DefaultText(property);
  return absl::StrCat("| `", property.name, "` | ", value.empty() ? "" : "`", value,
                      value.empty() ? "" : "`", " | ", Allowed(property), " | ", property.help,
                      " |\n");
}

/// `value` as a YAML scalar, quoted unless it plainly needs no quotes.
std::string YamlScalar(const std::string& value) {
  // A leading '-' is plain in front of a digit only; "null" would be no text.
  const std::string_view digits = "0123456789", others = "._-/:";
  const bool first_is_plain =
      value.size() > 1 && value[0] == '-'
          ? digits.find(value[1]) != std::string_view::npos
          : !value.empty() && (absl::ascii_isalnum(value[0]) || value[0] == '/');
  const bool plain = first_is_plain && value.back() != ':' &&
                     !absl::EqualsIgnoreCase(value, "null") &&
                     std::all_of(value.begin(), value.end(), [&](unsigned char c) {
                       return absl::ascii_isalnum(c) || others.find(c) != std::string_view::npos;
                     });
  if (plain) return value;
  std::string quoted = "\"";
  for (const char c : value) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      absl::StrAppend(&quoted, "\\", std::string(1, c));
    } else if (byte < 0x20 || byte == 0x7f) {
      absl::StrAppend(&quoted, "\\x", absl::Hex(byte, absl::kZeroPad2));
    } else {
      quoted.push_back(c);
    }
  }
  return quoted + "\"";
}

std::string YamlValue(const Property& property, const std::vector<std::string>& values) {
  if (!IsList(property)) return YamlScalar(values[0]);
  std::vector<std::string> scalars;
  for (const std::string& value : values) scalars.push_back(YamlScalar(value));
  return absl::StrCat("[", absl::StrJoin(scalars, ", "), "]");
}

}  // namespace

std::string HelpText() {
  std::string text = kIntroduction;
  for (const Group& group : kGroups) {
    absl::StrAppend(&text, "\n", group.title, ":\n");
    for (const Property& property : Properties()) {
      if (property.users == group.users) absl::StrAppend(&text, HelpEntry(property));
    }
  }
  return text;
}

std::string VersionText() {
  return absl::StrCat("tandemd ", kVersion, " (", kCommit, "), libllama ", kLlamaVersion, " (",
                      absl::string_view(kLlamaCommit).substr(0, 12), ")\n");
}

std::string PropertyDocs() {
  std::string text;
  for (const Group& group : kGroups) {
    absl::StrAppend(&text, text.empty() ? "" : "\n", "### ", group.title,
                    "\n\n| key | default | allowed | meaning |\n| --- | --- | --- | --- |\n");
    for (const Property& property : Properties()) {
      if (property.users == group.users) absl::StrAppend(&text, DocsRow(property));
    }
  }
  return text;
}

std::string ToYaml(const Config& config, const std::map<std::string, std::string>& origins) {
  std::string text;
  for (const Group& group : kGroups) {
    absl::StrAppend(&text, text.empty() ? "" : "\n", "# ", group.title, "\n");
    for (const Property& property : Properties()) {
      if (property.users != group.users) continue;
      const std::vector<std::string> values = PropertyValues(property, config);
      if (values.empty() && !IsList(property)) {
        absl::StrAppend(&text, "# ", property.name, ": not set\n");
        continue;
      }
      absl::StrAppend(&text, property.name, ": ", YamlValue(property, values));
      const auto origin = origins.find(property.name);
      if (origin != origins.end()) absl::StrAppend(&text, "  # from ", origin->second);
      absl::StrAppend(&text, "\n");
    }
  }
  return text;
}

}  // namespace tandem::server
