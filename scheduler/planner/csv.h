// Reads numbers from CSV text: a heading line with names, then one row a line. For workloads and
// for cases. No I/O.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace tandem::planner {

struct CsvColumn {
  std::string_view name;
  /// Its value in every row of a text that lacks the column; nothing: it must be there.
  std::optional<double> fallback;
  double min = 0, max = 1e15;
  /// Whole numbers only.
  bool whole = false;
};

/// The rows, with the columns in the order asked for; other columns are ignored. Takes LF and CRLF,
/// a byte-order mark and empty lines; no quotes. INVALID_ARGUMENT "`where`:LINE: …" for a column
/// that is missing, a row with too few fields, and a field that is no number or out of its range.
absl::StatusOr<std::vector<std::vector<double>>> ReadCsv(std::string_view text,
                                                         const std::string& where,
                                                         std::span<const CsvColumn> columns);

}  // namespace tandem::planner
