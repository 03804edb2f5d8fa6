#include "scheduler/planner/csv.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace tandem::planner {
namespace {

/// Characters of a wrong field in its message.
constexpr size_t kMostShown = 100;

std::vector<absl::string_view> Cells(absl::string_view line) {
  std::vector<absl::string_view> cells = absl::StrSplit(line, ',');
  for (absl::string_view& cell : cells) cell = absl::StripAsciiWhitespace(cell);
  return cells;
}

/// What is wrong with the cell; empty when nothing is.
std::string ReadCell(absl::string_view cell, const CsvColumn& column, double& value) {
  if (absl::SimpleAtod(cell, &value) && value >= column.min && value <= column.max &&
      (!column.whole || value == std::floor(value))) {
    return "";
  }
  return absl::StrCat("it must be a ", column.whole ? "whole number" : "number", " from ",
                      column.min, " to ", column.max);
}

}  // namespace

absl::StatusOr<std::vector<std::vector<double>>> ReadCsv(std::string_view text,
                                                         const std::string& where,
                                                         std::span<const CsvColumn> columns) {
  constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
  if (text.starts_with(kByteOrderMark)) text.remove_prefix(kByteOrderMark.size());
  size_t line_number = 0;
  const auto fault = [&](auto&&... what) {
    return absl::InvalidArgumentError(absl::StrCat(where, ":", line_number, ": ", what...));
  };
  std::optional<std::vector<size_t>> places;
  constexpr size_t kAbsent = SIZE_MAX;
  std::vector<std::vector<double>> rows;
  for (absl::string_view line : absl::StrSplit(absl::string_view(text.data(), text.size()), '\n')) {
    ++line_number;
    if (absl::StripAsciiWhitespace(line).empty()) continue;
    const std::vector<absl::string_view> cells = Cells(line);
    if (!places) {
      places.emplace();
      for (const CsvColumn& column : columns) {
        const absl::string_view name(column.name.data(), column.name.size());
        const auto found = std::find(cells.begin(), cells.end(), name);
        if (found == cells.end() && !column.fallback) return fault("no column '", name, "'");
        places->push_back(found == cells.end() ? kAbsent
                                               : static_cast<size_t>(found - cells.begin()));
      }
      continue;
    }
    std::vector<double>& row = rows.emplace_back(columns.size());
    for (size_t i = 0; i < columns.size(); ++i) {
      const CsvColumn& column = columns[i];
      const size_t place = (*places)[i];
      if (place == kAbsent) {
        row[i] = *column.fallback;
        continue;
      }
      const absl::string_view name(column.name.data(), column.name.size());
      if (place >= cells.size()) return fault("no value for '", name, "'");
      if (const std::string what = ReadCell(cells[place], column, row[i]); !what.empty()) {
        return fault("'", name, "' is '", cells[place].substr(0, kMostShown), "'; ", what);
      }
    }
  }
  if (!places) {
    line_number = 1;
    return fault("there is no heading");
  }
  return rows;
}

}  // namespace tandem::planner
