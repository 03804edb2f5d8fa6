// The peer's own profile (OPT-13B and 66B on A100-80GB, and a synthetic OPT-175B):
// peer_profile.json, built in. For searches over models that it knows when no other profile is
// given.
#pragma once

#include <string_view>

namespace tandem::planner::compat {

/// JSON for ParsePeerProfile.
std::string_view BuiltinPeerProfile();

}  // namespace tandem::planner::compat
