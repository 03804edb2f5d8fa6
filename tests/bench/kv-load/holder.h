// The process that holds a context's KV: as Tandem's chunks and in the plain formats.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "tests/bench/kv-load/context.h"

namespace tandem::bench {

/// Computes the context, encodes it, and serves it until standard input ends. Before, it writes one
/// line to standard output: "ports" of "all" levels, of "lossless" and "q1" alone and of the
/// "plain" server, and the "bytes" of each way.
absl::Status RunHolder(const LoadedContext& loaded, uint32_t threads);

}  // namespace tandem::bench
