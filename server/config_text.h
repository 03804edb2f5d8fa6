// What is printed about the configuration: --help, --version, the table in docs/configure.md.
// Private to server/config*.cc and its tests.
#pragma once

#include <string>

namespace tandem::server {

/// For --help, from the table of properties.
std::string HelpText();

/// For --version: one line.
std::string VersionText();

/// The Markdown tables that docs/configure.md carries between its markers.
std::string PropertyDocs();

}  // namespace tandem::server
