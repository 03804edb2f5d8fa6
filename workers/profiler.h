// Measures an engine's speed before it serves: real steps of several sizes, over KV of several
// lengths, given to the worker's learner. Called by Worker while it starts.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "workers/engine/engine.h"
#include "workers/worker_speed.h"

namespace tandem::workers {

/// Runs steps of the engine's use for `limit` at most: prompt pieces at several positions, or
/// decode steps of several batches and contexts. What lies before them is KV of zeros, which costs
/// no computing and takes as long to attend to as any other. The engine is empty afterwards.
/// Returns the number of steps, which may be none when one takes longer than `limit`. Errors of
/// Engine::Step and Engine::Inject.
/// REQUIRES: the engine is empty and nobody else uses it or its threads.
absl::StatusOr<uint32_t> ProfileSteps(Engine& engine, absl::Duration limit, WorkerSpeed& speed);

}  // namespace tandem::workers
