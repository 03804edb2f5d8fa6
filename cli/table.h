// Tables for people. Used by the sub-commands that show what a cluster has.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace tandem::cli {

using Row = std::vector<std::string>;

/// Rows as lines, the columns aligned; the first row is the heading. REQUIRES: a heading, and rows
/// as long as it is.
std::string Table(const std::vector<Row>& rows);

/// "17 B", "1.5 KiB" … "2.0 TiB".
std::string Bytes(uint64_t bytes);

}  // namespace tandem::cli
