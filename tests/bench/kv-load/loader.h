// The process that loads a context, in all the ways that are compared.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/status/statusor.h"
#include "tests/bench/kv-load/context.h"

namespace tandem::bench {

/// Obeys lines of JSON on standard input until it ends. Each is {"way": …} with one of
///
///   recompute      a prefill worker that does not look at the cache
///   adapter        a prefill worker that loads from the holder; "objective_s": until when the
///                  first token is due, 0 for as soon as can be
///   raw int8 zstd  by the plain link
///   q1 lossless    by Tandem's loader at this level alone, without computing meanwhile
///
/// and is answered with "began" (seconds of Now()), "ttft_s", and for the first two how many
/// "loaded_tokens" there were and the coarsest "level" of them. `holder_host` and `ports`: where
/// RunHolder's are. "costs" is answered with the members of Costs (oracle.h) but for the bytes.
/// Between them belongs {"way": "settle"}, which is answered with {} when the link is
/// quiet and all that was loaded is forgotten.
absl::Status RunLoader(const LoadedContext& loaded, const std::string& holder_host,
                       const nlohmann::json& ports, uint32_t threads);

}  // namespace tandem::bench
