// Finds out what the codec must know of a model: heads, their widths, and how keys are rotated.
// Called where an engine's KV is to be coded, and by the calibration.
#pragma once

#include "absl/status/statusor.h"
#include "kvstore/codec/geometry.h"
#include "workers/engine/engine.h"

namespace tandem::workers {

/// The geometry of the engine's KV. The rotation is read from libllama's own graph, and believed
/// only when a token's keys at several far positions, turned back, are the same; otherwise, and
/// for quantised caches (which libllama stores mixed), its style is kNone and the log says why. No
/// layers when the layout is opaque. Computes a few tokens in a context of its own; does not touch
/// the engine's, but only the engine's owner thread may call it. RESOURCE_EXHAUSTED without memory
/// for that, INTERNAL when libllama fails or its graph has not the layers that the KV has.
absl::StatusOr<kvstore::KvGeometry> GeometryOf(const Engine& engine);

}  // namespace tandem::workers
