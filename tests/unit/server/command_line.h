// Calls ParseConfig as a process would, with arguments and environment given by the test.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "server/config.h"

namespace tandem::server {

struct CommandLine {
  std::vector<std::string> args;
  std::map<std::string, std::string> environment;

  absl::StatusOr<ParsedCommandLine> Parse() const {
    std::vector<std::string> texts = {"tandemd"};
    texts.insert(texts.end(), args.begin(), args.end());
    std::vector<char*> pointers;
    for (std::string& text : texts) pointers.push_back(text.data());
    return ParseConfig(pointers, [this](const char* name) -> const char* {
      const auto found = environment.find(name);
      return found == environment.end() ? nullptr : found->second.c_str();
    });
  }

  /// The message of the error that Parse is expected to return.
  std::string Error() const {
    const auto parsed = Parse();
    return parsed.ok() ? "no error" : std::string(parsed.status().message());
  }
};

}  // namespace tandem::server
