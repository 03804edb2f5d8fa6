// Reads a folder of cases in simpeer's form. What such a folder holds: docs/plan.md. Files come in
// through a function, so there is no I/O here.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "scheduler/planner/compat/goodput.h"
#include "scheduler/planner/compat/placement_search.h"
#include "scheduler/planner/compat/profile.h"
#include "scheduler/planner/compat/simulator.h"

namespace tandem::planner::compat {

/// The content of the file, by its path within the folder. NOT_FOUND when there is none.
using ReadFile = std::function<absl::StatusOr<std::string>(const std::string& path)>;

struct SloSet {
  std::string name;
  SloMs slo;
};

/// A placement and requests at given times.
struct LatencyCase {
  Placement placement;
  /// One a request.
  std::vector<int64_t> request_ids;
  std::vector<Request> requests;
  std::vector<SloSet> slo_sets;
};

struct GoodputCase {
  GoodputTask task;
  std::vector<ScalableRequest> requests;
};

struct SearchCase {
  std::string model;
  SearchTask task;
  std::vector<ScalableRequest> requests;
};

/// A case, or what is wrong with it; a bad one does not keep the others from running.
template <typename Case>
struct Loaded {
  std::string id;
  absl::StatusOr<Case> content;
};

struct CaseFolder {
  std::vector<Loaded<LatencyCase>> latencies;
  std::vector<Loaded<GoodputCase>> goodputs;
  std::vector<Loaded<SearchCase>> searches, algorithm1;
};

/// Reads cases/cases.json, goodput/goodput.json, planner/search.json and planner/alg1.json, any of
/// which may be missing, and the CSV files that they name. `profile` gives what a case does not say
/// itself. NOT_FOUND when all four are missing; INVALID_ARGUMENT, naming the file, when one is not
/// a list of objects with an id each, or ids (which become file names) repeat or hold anything but
/// letters, digits, '.', '_' and '-'.
absl::StatusOr<CaseFolder> LoadCases(const ReadFile& read, const PeerProfile& profile);

}  // namespace tandem::planner::compat
